"""Model families of Hugging Face: how their config.json maps to our configuration and back.

A family is data: the traits that its networks have, the fields of its config.json, the names of its tensors. Adding one
takes an entry in `FAMILIES`, and an option of `DecoderConfig` where its layers do something new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxrl_llm.networks import tensor_names
from jaxrl_llm.networks.config import ROPE_OPTIONS, DecoderConfig, ExpertsConfig
from jaxrl_llm.networks.tensor_names import Path, Stored

Fields = Mapping[str, Any]
_NONE: Fields = MappingProxyType({})


class Family(NamedTuple):
    """What is fixed in a family.

    Attributes:
      model: prefix of the classes of `transformers` that hold it, such as "Llama" of LlamaForCausalLM.
      names: how each parameter is stored.
      traits: fields of `DecoderConfig` and the values that they must have.
      fields: further fields of `DecoderConfig` and their names in config.json.
      sliding: which layers have a window where config.json does not list them: "none", "all", "most" (all but every
        n-th) or "upper" (those from a number on, and only if `use_sliding_window` says so).
      experts: fields of `ExpertsConfig` and their names in config.json; none for dense families.
      expert_traits: fields of `ExpertsConfig` and the values that they must have.
      required: fields of config.json and the value that they must have where they are present.
      defaults: what fields of config.json mean where they are missing; a family without `partial_rotary_factor` turns
        whole heads.
      classifier: `model` of the class for sequence classification, where it is another.
    """

    model: str
    names: dict[Path, Stored]
    traits: Fields = _NONE
    fields: Fields = _NONE
    sliding: str = "none"
    experts: Fields = _NONE
    expert_traits: Fields = _NONE
    required: Fields = _NONE
    defaults: Fields = _NONE
    classifier: str | None = None


_PLAIN = {"quantization_config": None, "mlp_bias": False, "attention_bias": False}
_QWEN = {"quantization_config": None}
_GEMMA = {"activation": "gelu_tanh", "norm_offset": 1.0, "scale_embeddings": True}
_GEMMA2 = _GEMMA | {"post_norms": True}
_GEMMA_PLAIN = _PLAIN | {"use_bidirectional_attention": False}
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA2_DEFAULTS = _GEMMA_DEFAULTS | {"query_pre_attn_scalar": 256, "sliding_window": 4096}
_SOFTCAPS = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
_QWEN_EXPERTS = {
    "count": "num_experts",
    "per_token": "num_experts_per_tok",
    "width": "moe_intermediate_size",
    "normalize": "norm_topk_prob",
}

FAMILIES = {
    "llama": Family("Llama", tensor_names.LLAMA, required=_PLAIN),
    "mistral": Family("Mistral", tensor_names.LLAMA, sliding="all", required=_PLAIN, defaults={"sliding_window": 4096}),
    "qwen2": Family("Qwen2", tensor_names.LLAMA, {"attention_bias": True}, sliding="upper", required=_QWEN),
    "qwen3": Family(
        "Qwen3",
        tensor_names.LLAMA,
        {"qk_norm": "head"},
        sliding="upper",
        required=_QWEN | {"attention_bias": False},
        defaults={"head_dim": 128},
    ),
    "gemma": Family("Gemma", tensor_names.LLAMA, _GEMMA, required=_GEMMA_PLAIN, defaults=_GEMMA_DEFAULTS),
    "gemma2": Family(
        "Gemma2",
        tensor_names.GEMMA2,
        _GEMMA2,
        _SOFTCAPS,
        sliding="most",
        required=_GEMMA_PLAIN,
        defaults=_GEMMA2_DEFAULTS
        | {"sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": Family(
        "Gemma3",
        tensor_names.GEMMA2,
        _GEMMA2 | {"qk_norm": "head"},
        _SOFTCAPS,
        sliding="most",
        required=_GEMMA_PLAIN,
        defaults=_GEMMA2_DEFAULTS | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        classifier="Gemma3Text",
    ),
    "phi3": Family(
        "Phi3",
        tensor_names.PHI3,
        sliding="all",
        required=_PLAIN,
        defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0},
    ),
    "mixtral": Family(
        "Mixtral",
        tensor_names.MIXTRAL,
        sliding="all",
        experts={"count": "num_local_experts", "per_token": "num_experts_per_tok", "width": "intermediate_size"},
        expert_traits={"normalize": True},
        required=_PLAIN | {"router_jitter_noise": 0.0},
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 1e6},
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        tensor_names.QWEN_EXPERTS,
        {"qk_norm": "head"},
        experts=_QWEN_EXPERTS,
        required=_PLAIN | {"decoder_sparse_step": 1, "use_sliding_window": False},
        defaults={"norm_topk_prob": False},
    ),
    "olmoe": Family(
        "Olmoe",
        tensor_names.OLMOE,
        {"qk_norm": "width"},
        experts=_QWEN_EXPERTS | {"width": "intermediate_size"},
        required=_PLAIN | {"clip_qkv": None},
        defaults={"norm_topk_prob": False, "rms_norm_eps": 1e-5},
    ),
    "glm4_moe": Family(
        "Glm4Moe",
        tensor_names.QWEN_EXPERTS,
        fields={"attention_bias": "attention_bias"},
        experts=_QWEN_EXPERTS
        | {"count": "n_routed_experts", "dense_layers": "first_k_dense_replace", "scale": "routed_scaling_factor"}
        | {"groups": "n_group", "top_groups": "topk_group"},
        expert_traits={"score": "sigmoid", "selection_bias": True},
        required={"quantization_config": None},
        defaults={"norm_topk_prob": True, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "attention_bias": False}
        | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "n_shared_experts": 1},
    ),
}
# Their name of each field that only has to be copied.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}
# What `transformers` calls a field where published checkpoints have another name.
_ALIASES = {("qwen3_moe", "num_local_experts"): "num_experts"}
_ROPE_FRACTION = "partial_rotary_factor"
# Fields where null says "none", not "as usual".
_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def check_family(config: DecoderConfig) -> None:
    """Raises ValueError where `config` names a family that does not exist or lacks a trait of its family."""
    if config.family is None:
        return
    if config.family not in FAMILIES:
        raise ValueError(f"family={config.family!r} is unknown; choose one of {', '.join(FAMILIES)}, or None")
    family = FAMILIES[config.family]
    if bool(family.experts) != (config.experts is not None):
        raise ValueError(f"experts={config.experts} does not fit family={config.family!r}; choose another family")
    wanted = [(config, name, value) for name, value in family.traits.items()]
    wanted += [(config.experts, name, value) for name, value in family.expert_traits.items()]
    for owner, name, value in wanted:
        if getattr(owner, name) != value:
            raise ValueError(f"{name}={getattr(owner, name)!r} does not fit family={config.family!r}; set {name}={value!r}")
    if config.rope_fraction != 1.0 and _ROPE_FRACTION not in family.defaults:
        raise ValueError(f"rope_fraction={config.rope_fraction} does not fit family={config.family!r}; set rope_fraction=1.0")


def from_huggingface(theirs: dict[str, Any], **settings) -> DecoderConfig:
    """Configuration that a config.json describes; `settings` are fields that it says nothing about.

    A `*ForSequenceClassification` gives a network with a value head and without a language head.

    Raises:
      ValueError: something there is not supported; the message names the field and its value.
    """
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"config.json: model_type={kind!r} is not supported; the families are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    _check_required(theirs, family.required)
    _check_rope_fraction(kind, theirs)
    theirs = {_ALIASES.get((kind, name), name): value for name, value in theirs.items()}
    theirs = family.defaults | {name: value for name, value in theirs.items() if value is not None or name in _NULLABLE}
    needed = [*_FIELDS.values(), *family.experts.values()]
    missing = [name for name in needed if theirs.get(name) is None]
    if missing:
        raise ValueError(f"config.json: {missing[0]} is missing; a {kind} checkpoint must have it")
    return DecoderConfig(
        family=kind,
        num_kv_heads=theirs.get("num_key_value_heads"),
        head_dim=theirs.get("head_dim"),
        tie_embeddings=bool(theirs.get("tie_word_embeddings", False)),
        norm_epsilon=theirs.get("rms_norm_eps", 1e-6),
        max_length=theirs.get("max_position_embeddings", DecoderConfig.max_length),
        bos_id=theirs.get("bos_token_id"),
        eos_ids=_as_tuple(theirs.get("eos_token_id")),
        pad_id=theirs.get("pad_token_id"),
        **{ours: theirs[name] for ours, name in _FIELDS.items()},
        **dict(family.traits) | _read_activation(theirs, family) | _read_special(kind, theirs, family),
        **_read_rope(theirs) | _read_layers(theirs, family),
        **_read_heads(theirs) | settings,
    )


def to_huggingface(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a network whose parameters are of `dtype`; the inverse of `from_huggingface`."""
    family = FAMILIES[config.family]
    eos = list(config.eos_ids)
    architecture = f"{family.model}ForCausalLM"
    if not config.language_head:
        architecture = f"{family.classifier or family.model}ForSequenceClassification"
    activation = "hidden_activation" if "query_pre_attn_scalar" in family.defaults else "hidden_act"
    theirs = {
        "architectures": [architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in (_FIELDS | dict(family.fields)).items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.max_length,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
        activation: next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation),
        "dtype": dtype,
    }
    theirs |= _write_rope(config) | _write_layers(config, family) | _write_experts(config, family)
    if not config.language_head:
        theirs |= {"id2label": {str(number): f"LABEL_{number}" for number in range(config.value_head)}}
    if "query_pre_attn_scalar" in family.defaults:
        theirs |= {"query_pre_attn_scalar": round(config.query_scale**-2)}
    if config.family == "glm4_moe":
        theirs |= {"use_qk_norm": config.qk_norm == "head", "num_nextn_predict_layers": 0}
    return theirs


def _check_required(theirs: Fields, required: Fields) -> None:
    for name, wanted in required.items():
        if theirs.get(name, wanted) not in (wanted, None):
            raise ValueError(f"config.json: {name}={theirs[name]!r} is not supported; it must be {wanted!r} or absent")


def _check_rope_fraction(kind: str, theirs: Fields) -> None:
    """A part of each head is turned only where the family says so: elsewhere `transformers` does not look at the field."""
    options = [theirs.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    options += [own for some in options for own in some.values() if isinstance(own, Mapping)]
    for own in [theirs, *options]:
        fraction = own.get(_ROPE_FRACTION)
        if fraction not in (None, 1.0) and _ROPE_FRACTION not in FAMILIES[kind].defaults:
            raise ValueError(f"config.json: {_ROPE_FRACTION}={fraction} is not supported with model_type={kind!r}; remove it")


def _read_activation(theirs: Fields, family: Family) -> dict[str, Any]:
    wanted = family.traits.get("activation", "silu")
    names = [name for name, ours in _ACTIVATIONS.items() if ours == wanted]
    found = theirs.get("hidden_activation") or theirs.get("hidden_act") or names[0]
    # The first files of Gemma say "gelu" and mean its approximation.
    if found not in [*names, "gelu"] if wanted == "gelu_tanh" else found not in names:
        raise ValueError(f"config.json: the activation {found!r} is not supported; it must be {names[0]!r}")
    return {"activation": wanted}


def _read_special(kind: str, theirs: Fields, family: Family) -> dict[str, Any]:
    """What is more than a field to copy: the scale of queries, experts, a norm that a family may or may not have."""
    special = {ours: theirs.get(name) for ours, name in family.fields.items()}
    if "query_pre_attn_scalar" in family.defaults:
        special["query_scale"] = float(theirs["query_pre_attn_scalar"]) ** -0.5
    if kind == "glm4_moe":
        special["qk_norm"] = "head" if theirs.get("use_qk_norm") else "none"
    if family.experts:
        special["experts"] = _read_experts(theirs, family)
    return special


def _read_experts(theirs: Fields, family: Family) -> ExpertsConfig:
    options = {ours: theirs[name] for ours, name in family.experts.items()}
    shared = theirs.get("n_shared_experts") or 0
    dense = theirs.get("mlp_only_layers") or []
    if dense:
        if sorted(dense) != list(range(len(dense))):
            raise ValueError(f"config.json: mlp_only_layers={dense} is not supported; dense layers must be the lowest ones")
        options["dense_layers"] = len(dense)
    return ExpertsConfig(shared_width=shared * options["width"], **options, **family.expert_traits)


def _write_experts(config: DecoderConfig, family: Family) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        return {}
    theirs = {name: getattr(experts, ours) for ours, name in family.experts.items()}
    if config.family == "qwen3_moe":
        theirs |= {"mlp_only_layers": list(range(experts.dense_layers)), "decoder_sparse_step": 1}
    if config.family == "glm4_moe":
        theirs |= {"n_shared_experts": experts.shared_width // experts.width}
    return theirs


def _read_layers(theirs: Fields, family: Family) -> dict[str, Any]:
    """Windows and kinds of layers; empty where all layers see everything."""
    unknown = set(theirs.get("layer_types") or ()) - set(_LAYER_TYPES)
    if unknown:
        raise ValueError(f"config.json: layer_types has {sorted(unknown)}; the supported types are {list(_LAYER_TYPES)}")
    types = _layer_types(theirs, family)
    if "sliding" not in types:
        return {}
    found = {"sliding_window": theirs["sliding_window"], "sliding_rope_theta": _sliding_theta(theirs)}
    return found | ({"layer_types": types} if "full" in types else {})


def _layer_types(theirs: Fields, family: Family) -> tuple[str, ...]:
    layers = range(theirs["num_hidden_layers"])
    switched_off = family.sliding == "upper" and not theirs.get("use_sliding_window")
    if theirs.get("sliding_window") is None or family.sliding == "none" or switched_off:
        return ("full",) * len(layers)
    if theirs.get("layer_types"):
        return tuple(_LAYER_TYPES[name] for name in theirs["layer_types"])
    pattern, upper = theirs.get("sliding_window_pattern", 1), theirs.get("max_window_layers", 28)
    slides = {"all": lambda layer: True, "most": lambda layer: (layer + 1) % pattern, "upper": lambda layer: layer >= upper}
    return tuple("sliding" if slides[family.sliding](layer) else "full" for layer in layers)


def _write_layers(config: DecoderConfig, family: Family) -> dict[str, Any]:
    theirs = {"sliding_window": config.sliding_window} if family.sliding != "none" else {}
    if family.sliding == "upper":
        theirs |= {"use_sliding_window": config.sliding_window is not None}
    if family.sliding in ("most", "upper"):
        names = {ours: name for name, ours in _LAYER_TYPES.items()}
        windows = (config.kinds[kind].window for kind in config.kind_of_layer)
        theirs |= {"layer_types": [names["full" if window is None else "sliding"] for window in windows]}
    return theirs


def _read_heads(theirs: Fields) -> dict[str, Any]:
    """A sequence classification model scores with a head of its own and has no other."""
    architectures = theirs.get("architectures") or ["ForCausalLM"]
    if not architectures[0].endswith(("ForCausalLM", "ForSequenceClassification")):
        raise ValueError(
            f"config.json: architectures={architectures} is not supported; the classes are *ForCausalLM and "
            "*ForSequenceClassification"
        )
    if architectures[0].endswith("ForCausalLM"):
        return {}
    labels = theirs.get("id2label")
    return {"language_head": False, "value_head": len(labels) if labels else theirs.get("num_labels", 2)}


def _read_rope(theirs: Fields) -> dict[str, Any]:
    """Rotary fields, from `rope_parameters` or, as older files have it, `rope_theta`, `rope_scaling` and others."""
    field = "rope_scaling" if theirs.get("rope_scaling") else "rope_parameters"
    options = theirs.get(field) or {}
    return _rope_rule(field, options.get("full_attention", options), theirs)


def _sliding_theta(theirs: Fields) -> float | None:
    """Base of the rotary frequencies of sliding layers, where they have one of their own."""
    options = (theirs.get("rope_parameters") or {}).get("sliding_attention") or {}
    unlike = set(options) - {"rope_type", "rope_theta", _ROPE_FRACTION}
    if unlike or options.get("rope_type", "default") != "default":
        raise ValueError(
            f"config.json: rope_parameters.sliding_attention={options} is not supported; it may have rope_type='default' and "
            "rope_theta alone"
        )
    return options.get("rope_theta", theirs.get("rope_local_base_freq"))


def _rope_rule(field: str, options: dict[str, Any], theirs: Fields) -> dict[str, Any]:
    options = {name: value for name, value in options.items() if value is not None}
    theta = options.pop("rope_theta", theirs.get("rope_theta") or 10000.0)
    legacy = options.pop("type", "default")
    kind = options.pop("rope_type", legacy)
    fraction = options.pop(_ROPE_FRACTION, theirs.get(_ROPE_FRACTION, 1.0))
    found = {"rope_theta": theta, "rope_fraction": fraction}
    if kind == "default" and not options:
        return found
    if kind not in ROPE_OPTIONS:
        supported = ", ".join(["default", *ROPE_OPTIONS])
        raise ValueError(f"config.json: {field}.rope_type={kind!r} with {options} is not supported; the types are {supported}")
    if kind in ("llama3", "yarn"):
        options.setdefault("original_max_position_embeddings", theirs.get("max_position_embeddings"))
    if kind == "yarn":
        options = _yarn_options(field, options)
    return found | {"rope_scaling": {"rope_type": kind, **options}}


def _yarn_options(field: str, options: dict[str, Any]) -> dict[str, Any]:
    """YaRN's options with their defaults filled in."""
    unknown = set(options) - set(ROPE_OPTIONS["yarn"])
    if unknown:
        raise ValueError(f"config.json: {field} of type 'yarn' has {sorted(unknown)}, which are not supported; remove them")
    usual = 0.1 * math.log(options["factor"]) + 1.0 if options["factor"] > 1 else 1.0
    return {"beta_fast": 32, "beta_slow": 1, "attention_factor": usual} | options


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    theirs = {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
    }
    if _ROPE_FRACTION in FAMILIES[config.family].defaults:
        theirs |= {_ROPE_FRACTION: config.rope_fraction}
    return theirs | ({} if config.sliding_rope_theta is None else {"rope_local_base_freq": config.sliding_rope_theta})


def _as_tuple(ids) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
