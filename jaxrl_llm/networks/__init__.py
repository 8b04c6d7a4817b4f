"""Decoder transformers as pure functions, with import from and export to Hugging Face directories."""

from jaxrl_llm.networks.adapters import ADAPTER, add_adapter, merge_adapter, remove_adapter, unmerge_adapter
from jaxrl_llm.networks.config import (
    AdapterConfig,
    DecoderConfig,
    DeltaConfig,
    ExpertsConfig,
    LatentConfig,
    QuantizationConfig,
)  # fmt: skip
from jaxrl_llm.networks.experts import Routing
from jaxrl_llm.networks.huggingface import huggingface_config, load_huggingface, save_huggingface
from jaxrl_llm.networks.named import config, count_parameters, names
from jaxrl_llm.networks.network import Network, as_computed, decoder, from_apply, logical_axes
from jaxrl_llm.networks.peft import load_peft, save_peft
from jaxrl_llm.networks.quantization import QuantizationGap, dequantize, quantization_gap, quantize
from jaxrl_llm.networks.trees import join_params, split_params

__all__ = [
    "ADAPTER", "AdapterConfig", "DecoderConfig", "DeltaConfig", "ExpertsConfig", "LatentConfig", "Network",
    "QuantizationConfig", "QuantizationGap", "Routing", "add_adapter", "as_computed", "config", "count_parameters", "decoder",
    "dequantize", "from_apply", "huggingface_config", "join_params", "load_huggingface", "load_peft", "logical_axes",
    "merge_adapter", "names", "quantization_gap", "quantize", "remove_adapter", "save_huggingface", "save_peft",
    "split_params", "unmerge_adapter",
]  # fmt: skip
