"""Decoder transformers as pure functions, with import from and export to Hugging Face directories."""

from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.decoder import Cache
from jaxrl_llm.networks.huggingface import load_huggingface, save_huggingface
from jaxrl_llm.networks.network import Network, decoder, from_apply, logical_axes

__all__ = [
    "Cache",
    "DecoderConfig",
    "Network",
    "decoder",
    "from_apply",
    "load_huggingface",
    "logical_axes",
    "save_huggingface",
]
