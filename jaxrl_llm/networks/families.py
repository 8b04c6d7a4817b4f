"""Model families of Hugging Face: how their config.json and tensor names map to ours.

A family is data: the traits that its configuration must have and the names of its tensors. Adding one takes an entry in
`FAMILIES`, and an option of `DecoderConfig` where its layers do something new.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxrl_llm.networks.config import ROPE_OPTIONS, DecoderConfig

Path = tuple[str, ...]


class Stored(NamedTuple):
    """How one of our parameters is stored in a checkpoint.

    Attributes:
      name: of the tensor, with `{layer}` for the number of the layer where there is one tensor a layer.
      inputs: None where the tensor has the shape of the parameter; otherwise the tensor is a matrix [outputs, inputs],
        or a vector of outputs, and the first `inputs` axes of our parameter are those that it contracts.
    """

    name: str
    inputs: int | None = None


def _linear(ours: str, theirs: str, inputs: int = 1) -> dict[Path, Stored]:
    path, name = tuple(ours.split(".")), f"model.layers.{{layer}}.{theirs}"
    kernel = {("layers", *path, "kernel"): Stored(f"{name}.weight", inputs)}
    return kernel | {("layers", *path, "bias"): Stored(f"{name}.bias", 0)}


def _norm(ours: str, theirs: str) -> dict[Path, Stored]:
    return {("layers", *ours.split("."), "scale"): Stored(f"model.layers.{{layer}}.{theirs}.weight")}


LLAMA_NAMES = {
    ("embedding",): Stored("model.embed_tokens.weight"),
    ("final_norm", "scale"): Stored("model.norm.weight"),
    ("head",): Stored("lm_head.weight"),
    ("value_head",): Stored("value_head.weight"),
    **_norm("attention_norm", "input_layernorm"),
    **_norm("mlp_norm", "post_attention_layernorm"),
    **_norm("attention.query_norm", "self_attn.q_norm"),
    **_norm("attention.key_norm", "self_attn.k_norm"),
    **_linear("attention.query", "self_attn.q_proj"),
    **_linear("attention.key", "self_attn.k_proj"),
    **_linear("attention.value", "self_attn.v_proj"),
    **_linear("attention.output", "self_attn.o_proj", inputs=2),
    **_linear("mlp.gate", "mlp.gate_proj"),
    **_linear("mlp.up", "mlp.up_proj"),
    **_linear("mlp.down", "mlp.down_proj"),
}


class Family(NamedTuple):
    """What is fixed in a family.

    Attributes:
      architecture: class of `transformers` that holds the model.
      traits: fields of `DecoderConfig` and the values that they must have.
      names: how each parameter is stored.
      required: fields of config.json and the value that they must have where they are present.
      head_dim: of a config.json that does not say; None for hidden_size / num_attention_heads.
    """

    architecture: str
    traits: dict[str, Any]
    names: dict[Path, Stored]
    required: dict[str, Any]
    head_dim: int | None = None


_PLAIN = {"quantization_config": None, "hidden_act": "silu", "use_sliding_window": False, "partial_rotary_factor": 1.0}
_NO_BIAS = _PLAIN | {"attention_bias": False, "mlp_bias": False}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", {"attention_bias": False, "qk_norm": False}, LLAMA_NAMES, _NO_BIAS),
    "qwen2": Family("Qwen2ForCausalLM", {"attention_bias": True, "qk_norm": False}, LLAMA_NAMES, _PLAIN),
    "qwen3": Family("Qwen3ForCausalLM", {"attention_bias": False, "qk_norm": True}, LLAMA_NAMES, _NO_BIAS, head_dim=128),
}
# Their name of each field that only has to be copied.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}


def check_family(config: DecoderConfig) -> None:
    """Raises ValueError where `config` names a family that does not exist or lacks a trait of its family."""
    if config.family is None:
        return
    if config.family not in FAMILIES:
        raise ValueError(f"family={config.family!r} is unknown; choose one of {', '.join(FAMILIES)}, or None")
    for name, wanted in FAMILIES[config.family].traits.items():
        if getattr(config, name) != wanted:
            raise ValueError(f"{name}={getattr(config, name)!r} does not fit family={config.family!r}; set {name}={wanted!r}")


def from_huggingface(theirs: dict[str, Any], **settings) -> DecoderConfig:
    """Configuration that a config.json describes; `settings` are fields that it says nothing about.

    Raises:
      ValueError: something there is not supported; the message names the field and its value.
    """
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"config.json: model_type={kind!r} is not supported; the families are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    _check_required(theirs, family.required)
    missing = [name for name in _FIELDS.values() if theirs.get(name) is None]
    if missing:
        raise ValueError(f"config.json: {missing[0]} is missing; a {kind} checkpoint must have it")
    theta, scaling = _read_rope(theirs)
    return DecoderConfig(
        family=kind,
        num_kv_heads=theirs.get("num_key_value_heads"),
        head_dim=theirs.get("head_dim") or family.head_dim,
        tie_embeddings=bool(theirs.get("tie_word_embeddings", False)),
        norm_epsilon=theirs.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_length=theirs.get("max_position_embeddings", DecoderConfig.max_length),
        bos_id=theirs.get("bos_token_id"),
        eos_ids=_as_tuple(theirs.get("eos_token_id")),
        pad_id=theirs.get("pad_token_id"),
        **{ours: theirs[name] for ours, name in _FIELDS.items()},
        **family.traits,
        **settings,
    )


def to_huggingface(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a network whose parameters are of `dtype`; the inverse of `from_huggingface`."""
    family = FAMILIES[config.family]
    eos = list(config.eos_ids)
    return {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
        "max_position_embeddings": config.max_length,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
        "hidden_act": "silu",
        "dtype": dtype,
    }


def _check_required(theirs: dict[str, Any], required: dict[str, Any]) -> None:
    for name, wanted in required.items():
        if theirs.get(name, wanted) not in (wanted, None):
            raise ValueError(f"config.json: {name}={theirs[name]!r} is not supported; it must be {wanted!r} or absent")
    unlike = set(theirs.get("layer_types") or ()) - {"full_attention"}
    if unlike:
        raise ValueError(f"config.json: layer_types has {sorted(unlike)}, which are not supported; only 'full_attention' is")


def _read_rope(theirs: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling rule, from `rope_parameters` or, as older files have it, `rope_theta` and `rope_scaling`."""
    field = "rope_scaling" if theirs.get("rope_scaling") else "rope_parameters"
    options = {name: value for name, value in (theirs.get(field) or {}).items() if value is not None}
    theta = options.pop("rope_theta", theirs.get("rope_theta") or 10000.0)
    legacy = options.pop("type", "default")
    kind = options.pop("rope_type", legacy)
    partial = options.pop("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise ValueError(f"config.json: {field}.partial_rotary_factor={partial} is not supported; it must be 1.0 or absent")
    if kind == "default" and not options:
        return theta, None
    if kind not in ROPE_OPTIONS:
        supported = ", ".join(["default", *ROPE_OPTIONS])
        raise ValueError(f"config.json: {field}.rope_type={kind!r} with {options} is not supported; the types are {supported}")
    if kind == "llama3":
        options.setdefault("original_max_position_embeddings", theirs.get("max_position_embeddings"))
    return theta, {"rope_type": kind, **options}


def _as_tuple(ids) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
