"""Model families of Hugging Face: how their config.json maps to our configuration and back.

A family is data: the traits that its networks have, the fields of its config.json, the names of its tensors. Adding one
takes an entry in `FAMILIES`, and an option of `DecoderConfig` where its layers do something new.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from jaxrl_llm import reading
from jaxrl_llm.networks.config import DecoderConfig, DeltaConfig, ExpertsConfig, LatentConfig
from jaxrl_llm.networks.config_checks import LIMITS, check_tokens
from jaxrl_llm.networks.family_checks import CHECKS, FIELDS
from jaxrl_llm.networks.family_table import FAMILIES, Family, Fields
from jaxrl_llm.networks.rope_fields import FRACTION, check_fraction, read_rope, sliding_theta, write_rope, yarn_scale
from jaxrl_llm.networks.whole import is_whole, text_config
from jaxrl_llm.reading import whole

# Our name of each activation -> theirs.
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2", "clipped_swiglu": "silu"}
_LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding", "linear_attention": "delta"}
# What `transformers` calls a field where published checkpoints have another name.
_ALIASES = {("qwen3_moe", "num_local_experts"): "num_experts"}
# Fields where null says "none", not "as usual".
_NULLABLE = ("q_lora_rank", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
# Our name in messages -> theirs.
_THEIR_NAMES = FIELDS | {"num_kv_heads": "num_key_value_heads", "norm_epsilon": "rms_norm_eps", "bos_id": "bos_token_id"}
_THEIR_NAMES |= {"eos_ids": "eos_token_id", "pad_id": "pad_token_id", "rope_fraction": FRACTION}


def check_family(config: DecoderConfig) -> None:
    """Raises ValueError where `config` names a family that does not exist or lacks a trait of its family."""
    if config.family is None:
        return
    if config.family not in FAMILIES:
        raise ValueError(f"family={config.family!r} is unknown; choose one of {', '.join(FAMILIES)}, or None")
    family = FAMILIES[config.family]
    if bool(family.experts) != (config.experts is not None) and not family.experts_switch:
        raise ValueError(f"experts={config.experts} does not fit family={config.family!r}; choose another family")
    for name, fields in {"latent": family.latent, "delta": family.delta}.items():
        if bool(fields) != (getattr(config, name) is not None):
            raise ValueError(f"{name}={getattr(config, name)} does not fit family={config.family!r}; choose another family")
    wanted = [(config, name, value) for name, value in family.traits.items()]
    wanted += [(config.experts, name, value) for name, value in family.expert_traits.items() if config.experts is not None]
    for owner, name, value in wanted:
        if getattr(owner, name) != value:
            raise ValueError(f"{name}={getattr(owner, name)!r} does not fit family={config.family!r}; set {name}={value!r}")
    if config.rope_fraction != 1.0 and FRACTION not in family.defaults:
        raise ValueError(f"rope_fraction={config.rope_fraction} does not fit family={config.family!r}; set rope_fraction=1.0")


def from_huggingface(theirs: dict[str, Any], place: str = "config.json", **settings) -> DecoderConfig:
    """Configuration that a config.json describes.

    A `*ForSequenceClassification` gives a network with a value head and without a language head, a model that sees or hears
    its text part.

    Args:
      theirs: what config.json holds; null is as if the field were not there, but for a window or a cap, which it takes away.
      place: of the file, for messages.
      **settings: fields that it says nothing about.

    Raises ValueError: a field is of another type, out of bounds or not supported; the message names file, field and value.
    """
    theirs = text_config(theirs, place) if is_whole(theirs) else theirs
    removed = {name: None for name in _NULLABLE if name in theirs and theirs[name] is None}
    found = reading.fields(theirs, CHECKS, f"{place}: ") | removed
    with reading.about(place), _in_their_words():
        config = _from_fields(found, settings)
        check_tokens(config)
        return config


@contextlib.contextmanager
def _in_their_words() -> Iterator[None]:
    """Gives fields in messages the names that they have in config.json."""
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(r"\b(\w+)=", lambda name: f"{_THEIR_NAMES.get(name[1], name[1])}=", str(error))) from error


def _from_fields(theirs: Fields, settings: Fields) -> DecoderConfig:
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type={kind!r} is not supported; the families are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    _check_required(theirs, family.required)
    check_fraction(kind, theirs)
    theirs = family.defaults | {_ALIASES.get((kind, name), name): value for name, value in theirs.items()}
    needed = [*FIELDS.values(), *(name for name in family.latent.values() if name not in _NULLABLE)]
    needed += family.experts.values() if _has_experts(theirs, family) else ()
    missing = [name for name in needed if theirs.get(name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing; a {kind} checkpoint must have it")
    return DecoderConfig(
        family=kind, num_kv_heads=theirs.get("num_key_value_heads"), head_dim=None if family.latent else theirs.get("head_dim"),
        tie_embeddings=theirs.get("tie_word_embeddings", False), norm_epsilon=theirs.get("rms_norm_eps", 1e-6),
        max_length=theirs.get("max_position_embeddings", DecoderConfig.max_length), bos_id=theirs.get("bos_token_id"),
        eos_ids=theirs.get("eos_token_id", ()), pad_id=theirs.get("pad_token_id"),
        **{ours: theirs[name] for ours, name in FIELDS.items()},
        **dict(family.traits) | _read_activation(theirs, family) | _read_special(kind, theirs, family),
        **read_rope(theirs) | _read_layers(theirs, family), **_read_heads(theirs) | settings,
    )  # fmt: skip


def to_huggingface(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a network whose parameters are of `dtype`; the inverse of `from_huggingface`."""
    family = FAMILIES[config.family]
    eos = list(config.eos_ids)
    architecture = f"{family.model}ForCausalLM"
    if not config.language_head:
        architecture = f"{family.classifier or family.model}ForSequenceClassification"
    activation = "hidden_act"
    if "query_pre_attn_scalar" in family.defaults or config.family == "gemma4_text":
        activation = "hidden_activation"
    theirs = {
        "architectures": [architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in (FIELDS | dict(family.fields)).items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.max_length,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
        activation: _ACTIVATIONS[config.activation],
        "dtype": dtype,
    }
    theirs |= write_rope(config) | _write_layers(config, family) | _write_experts(config, family)
    if not config.language_head:
        theirs |= {"id2label": {str(number): f"LABEL_{number}" for number in range(config.value_head)}}
    if "query_pre_attn_scalar" in family.defaults:
        theirs |= {"query_pre_attn_scalar": round(config.query_scale**-2)}
    if config.family == "gemma4_text":
        theirs |= _write_gemma4(config)
    if family.latent:
        theirs |= {name: getattr(config.latent, ours) for ours, name in family.latent.items()}
        theirs |= {"head_dim": config.latent.rotary_dim, "rope_interleave": config.rope_pairs == "interleaved"}
    if config.family == "smollm3":
        theirs |= {"no_rope_layers": [int(layer not in config.unrotated_layers) for layer in range(config.num_layers)]}
    if config.family == "glm4_moe":
        theirs |= {"use_qk_norm": config.qk_norm == "head"}
    if family.experts.get("count") == "n_routed_experts":
        theirs |= {"num_nextn_predict_layers": 0}
    return theirs


def _has_experts(theirs: Fields, family: Family) -> bool:
    return bool(family.experts) and (family.experts_switch is None or bool(theirs.get(family.experts_switch)))


def _check_required(theirs: Fields, required: Fields) -> None:
    for name, wanted in required.items():
        if name == "quantization_config" and wanted and (theirs.get(name) or {}).get("quant_method") == wanted:
            continue
        if theirs.get(name, wanted) not in (wanted, None):
            raise ValueError(f"{name}={theirs[name]!r} is not supported; it must be {wanted!r} or absent")


def _read_activation(theirs: Fields, family: Family) -> dict[str, Any]:
    wanted = family.traits.get("activation", "silu")
    name = _ACTIVATIONS[wanted]
    found = theirs.get("hidden_activation") or theirs.get("hidden_act") or name
    # The first files of Gemma say "gelu" and mean its approximation.
    if found not in (name, "gelu" if wanted == "gelu_tanh" else name):
        raise ValueError(f"the activation {found!r} is not supported; it must be {name!r}")
    return {"activation": wanted}


def _read_special(kind: str, theirs: Fields, family: Family) -> dict[str, Any]:
    """What is more than a field to copy: the scale of queries, experts, a norm that a family may or may not have."""
    special = {ours: theirs.get(name) for ours, name in family.fields.items()}
    if "query_pre_attn_scalar" in family.defaults:
        special["query_scale"] = float(theirs["query_pre_attn_scalar"]) ** -0.5
    if kind == "glm4_moe":
        special["qk_norm"] = "head" if theirs.get("use_qk_norm") else "none"
    if kind == "smollm3":
        special["unrotated_layers"] = _unrotated(theirs)
    if _has_experts(theirs, family):
        special["experts"] = _read_experts(theirs, family)
    if family.latent:
        special |= _read_latent(theirs, family)
    if family.delta:
        special["delta"] = DeltaConfig(**{ours: theirs[name] for ours, name in family.delta.items()})
    if kind == "gemma4_text":
        special |= _read_gemma4(theirs)
    return special


def _read_gemma4(theirs: Fields) -> dict[str, Any]:
    """What layers without a window have of their own, and the MLPs of those that reuse keys and values."""
    if theirs.get("use_bidirectional_attention") not in (None, "vision"):  # which leaves text causal
        raise ValueError(f"use_bidirectional_attention={theirs['use_bidirectional_attention']!r} is not supported; remove it")
    full = {"head_dim": theirs["global_head_dim"]}
    if theirs["attention_k_eq_v"]:
        full["num_key_value_heads"] = theirs.get("num_global_key_value_heads")
    own = theirs.get("per_layer_config") or {}
    if own:
        full = next(iter(own.values()))
        types = theirs.get("layer_types") or ()
        layers = [str(layer) for layer, name in enumerate(types) if name == "full_attention"]
        if any(other != full for other in own.values()) or sorted(own) != sorted(layers) or set(full) - {*_FULL}:
            raise ValueError(f"per_layer_config={own} is not supported; it may give full_attention layers one {_FULL}")
    width = 2 * theirs["intermediate_size"] if theirs["use_double_wide_mlp"] else None
    check = whole(1, LIMITS["head_dim"])
    sizes = {ours: check(full[name], f"per_layer_config.{name}") for name, ours in _FULL.items() if full.get(name) is not None}
    return sizes | {"reusing_width": width}


_FULL = {"head_dim": "full_head_dim", "num_key_value_heads": "full_kv_heads"}


def _write_gemma4(config: DecoderConfig) -> dict[str, Any]:
    own = {name: getattr(config, ours) for name, ours in _FULL.items() if getattr(config, ours) is not None}
    full = [layer for layer, kind in enumerate(config.kind_of_layer) if config.kinds[kind].window is None]
    return {"use_double_wide_mlp": config.reusing_width is not None, "per_layer_config": {str(layer): own for layer in full}}


def _read_latent(theirs: Fields, family: Family) -> dict[str, Any]:
    latent = LatentConfig(**{ours: theirs.get(name) for ours, name in family.latent.items()})
    scale, options = (latent.plain_dim + latent.rotary_dim) ** -0.5, dict(read_rope(theirs).get("rope_scaling") or {})
    if "mscale_all_dim" in options:
        scale *= yarn_scale(options["factor"], options["mscale_all_dim"]) ** 2
    return {"latent": latent, "query_scale": scale, "rope_pairs": "interleaved" if theirs["rope_interleave"] else "halves"}


def _unrotated(theirs: Fields) -> tuple[int, ...]:
    """Layers without rotary embedding: those that are listed with 0, or every n-th."""
    layers, interval = range(theirs["num_hidden_layers"]), theirs["no_rope_layer_interval"]
    rotated = theirs.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in layers]
    if len(rotated) != len(layers):
        raise ValueError(f"no_rope_layers has {len(rotated)} entries; num_hidden_layers={len(layers)} need as many")
    return tuple(layer for layer in layers if not rotated[layer])


def _read_experts(theirs: Fields, family: Family) -> ExpertsConfig:
    options = {ours: theirs[name] for ours, name in family.experts.items()}
    shared = theirs.get("n_shared_experts") or 0
    dense = theirs.get("mlp_only_layers") or []
    if dense:
        if sorted(dense) != list(range(len(dense))):
            raise ValueError(f"mlp_only_layers={list(dense)} is not supported; dense layers must be the lowest ones")
        options["dense_layers"] = len(dense)
    return ExpertsConfig(**{"shared_width": shared * options["width"]} | options, **family.expert_traits)


def _write_experts(config: DecoderConfig, family: Family) -> dict[str, Any]:
    experts, switch = config.experts, family.experts_switch
    theirs = {} if switch is None else {switch: experts is not None}
    if experts is None:
        return theirs
    theirs |= {name: getattr(experts, ours) for ours, name in family.experts.items()}
    if config.family in ("qwen3_moe", "qwen3_next"):
        theirs |= {"mlp_only_layers": list(range(experts.dense_layers)), "decoder_sparse_step": 1}
    if (experts.shared_width and "shared_width" not in family.experts) or config.family == "glm4_moe":
        theirs |= {"n_shared_experts": experts.shared_width // experts.width}
    return theirs


def _read_layers(theirs: Fields, family: Family) -> dict[str, Any]:
    """Windows and kinds of layers; empty where all layers see everything."""
    known = [name for name, ours in _LAYER_TYPES.items() if ours != ("sliding" if family.delta else "delta")]
    unknown = set(theirs.get("layer_types") or ()) - set(known)
    if unknown:
        raise ValueError(f"layer_types has {sorted(unknown)}; the supported types are {known}")
    types = _layer_types(theirs, family)
    if family.delta:
        return {"layer_types": types}
    if "sliding" not in types:
        return {}
    found = {"sliding_window": theirs["sliding_window"], "sliding_rope_theta": sliding_theta(theirs, family)}
    return found | ({"layer_types": types} if "full" in types else {})


def _layer_types(theirs: Fields, family: Family) -> tuple[str, ...]:
    layers = range(theirs["num_hidden_layers"])
    switched_off = family.sliding == "upper" and not theirs.get("use_sliding_window")
    if not family.delta and (theirs.get("sliding_window") is None or family.sliding == "none" or switched_off):
        return ("full",) * len(layers)
    types = theirs.get("layer_types")
    if types and len(types) != len(layers):
        raise ValueError(f"layer_types has {len(types)} entries; num_hidden_layers={len(layers)} need as many")
    if types:
        return tuple(_LAYER_TYPES[name] for name in types)
    if family.delta:
        return tuple("full" if (layer + 1) % theirs["full_attention_interval"] == 0 else "delta" for layer in layers)
    pattern, upper = theirs.get("sliding_window_pattern", 1), theirs.get("max_window_layers", 28)
    slides = {"all": lambda layer: True, "most": lambda layer: (layer + 1) % pattern, "upper": lambda layer: layer >= upper}
    return tuple("sliding" if slides[family.sliding](layer) else "full" for layer in layers)


def _write_layers(config: DecoderConfig, family: Family) -> dict[str, Any]:
    names = {ours: name for name, ours in _LAYER_TYPES.items()}
    if family.delta:
        sizes = {name: getattr(config.delta, ours) for ours, name in family.delta.items()}
        return sizes | {"layer_types": [names[own] for own in config.layer_types]}
    theirs = {"sliding_window": config.sliding_window} if family.sliding != "none" else {}
    if family.sliding == "upper":
        theirs |= {"use_sliding_window": config.sliding_window is not None}
    if family.sliding in ("most", "upper"):
        windows = (config.kinds[kind].window for kind in config.kind_of_layer)
        theirs |= {"layer_types": [names["full" if window is None else "sliding"] for window in windows]}
    return theirs


def _read_heads(theirs: Fields) -> dict[str, Any]:
    """A sequence classification model scores with a head of its own and has no other."""
    architectures = theirs.get("architectures") or ["ForCausalLM"]
    if not architectures[0].endswith(("ForCausalLM", "ForSequenceClassification")):
        raise ValueError(
            f"architectures={list(architectures)} is not supported; the classes are *ForCausalLM and *ForSequenceClassification"
        )
    if architectures[0].endswith("ForCausalLM"):
        return {}
    labels = theirs.get("id2label")
    return {"language_head": False, "value_head": len(labels) if labels else theirs.get("num_labels", 2)}
