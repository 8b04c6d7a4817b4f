"""Directories with one GGUF file in place of config.json and safetensors: Llama's architecture, quantised or not."""

import functools
import pathlib
from typing import Any

import numpy as np

from jaxrl_llm.networks.tensor_files import Slab

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def gguf_file(directory: pathlib.Path) -> pathlib.Path | None:
    """The one GGUF file of a directory without config.json; None where there is no such file.

    Raises ValueError: there are several.
    """
    found = [] if (directory / "config.json").is_file() else sorted(directory.glob("*.gguf"))
    if len(found) > 1:
        raise ValueError(f"{directory} has {len(found)} GGUF files ({', '.join(path.name for path in found[:4])}); keep one")
    return found[0] if found else None


def read_gguf(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Slab]]:
    """What its config.json would say, and its tensors as float32 under the names of Hugging Face.

    Raises:
      ImportError: the package `gguf` is not installed.
      ValueError: the architecture is another than Llama's, a tensor is unknown, or the file is damaged.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"{path} is a GGUF file: install jaxrl_llm[gguf] to read it") from error
    try:
        reader = gguf.GGUFReader(str(path))
        said = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is truncated or no GGUF file ({error}); fetch it again") from error
    theirs = _config(path, said, {tensor.name for tensor in reader.tensors})
    count = theirs.get("num_attention_heads", 1)
    heads = {"attn_q": count, "attn_k": theirs.get("num_key_value_heads") or count}
    tensors = {}
    for tensor in reader.tensors:
        name, kind = _name(path, tensor.name)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        view = functools.partial(_read, gguf.quants.dequantize, tensor.data, tensor.tensor_type, shape, heads.get(kind))
        tensors[name] = Slab((), None, "F32", shape, view)
    return theirs, tensors


def _config(path: pathlib.Path, said: dict[str, Any], names: set[str]) -> dict[str, Any]:
    kind = said.get("general.architecture")
    if kind != "llama":
        raise ValueError(f"{path}: general.architecture={kind!r} is not supported; it must be 'llama'")
    own = {name.removeprefix("llama."): value for name, value in said.items() if name.startswith("llama.")}
    scaling = own.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ValueError(f"{path}: llama.rope.scaling.type={scaling!r} is not supported; it must be 'none' or 'linear'")
    if own.get("expert_count"):
        raise ValueError(f"{path}: llama.expert_count={own['expert_count']} is not supported; it must be 0")
    theirs = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": "output.weight" not in names}
    theirs |= {name: own[field] for name, field in _FIELDS.items() if field in own}
    theirs |= {name: said[f"tokenizer.ggml.{field}"] for name, field in _TOKENS.items() if f"tokenizer.ggml.{field}" in said}
    theirs["vocab_size"] = own.get("vocab_size") or len(said.get("tokenizer.ggml.tokens", ()))
    if scaling == "linear":
        theirs["rope_scaling"] = {"rope_type": "linear", "factor": own.get("rope.scaling.factor", 1.0)}
    return theirs


def _name(path: pathlib.Path, name: str) -> tuple[str, str]:
    """Hugging Face's name of a tensor, and what it is in its layer."""
    parts = name.split(".")
    if len(parts) == 2 and parts[0] in _NAMES:
        return f"{_NAMES[parts[0]]}.{parts[1]}", parts[0]
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}", parts[2]
    raise ValueError(f"{path}: tensor {name} is not supported; convert the model with transformers")


def _read(dequantize, data: np.ndarray, kind, shape: tuple[int, ...], heads: int | None) -> np.ndarray:
    """A tensor as float32; rows of queries and keys are pairs of neighbours there, and of halves of a head here."""
    matrix = np.asarray(dequantize(data, kind), np.float32).reshape(shape)
    return matrix if heads is None else matrix.reshape(heads, -1, 2, shape[-1]).swapaxes(1, 2).reshape(shape)
