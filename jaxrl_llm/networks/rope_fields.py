"""Rotary settings in config.json, in the old spelling (`rope_theta`, `rope_scaling`) and in the new one (`rope_parameters`)."""

import math
from collections.abc import Mapping
from typing import Any

from jaxrl_llm import reading
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.config_checks import BASE, ROPE_NUMBERS, ROPE_OPTIONAL, ROPE_OPTIONS
from jaxrl_llm.networks.family_table import FAMILIES, Family, Fields
from jaxrl_llm.reading import mapping, real, text

FRACTION = "partial_rotary_factor"


def rope(value: Any, place: str) -> dict[str, Any]:
    """Rotary settings, checked."""
    return reading.fields(mapping()(value, place), ROPE_CHECKS, f"{place}.")


ROPE_CHECKS = ROPE_NUMBERS | {"rope_type": text, "type": text, "rope_theta": BASE, FRACTION: real(above=0.0, most=1.0)}
ROPE_CHECKS |= {"full_attention": rope, "sliding_attention": rope}


def check_fraction(kind: str, theirs: Fields) -> None:
    """A part of each head is turned only where the family says so: elsewhere `transformers` does not look at the field."""
    options = [theirs.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    options += [own for some in options for own in some.values() if isinstance(own, Mapping)]
    for own in [theirs, *options]:
        fraction = None if own.get("rope_type") == "proportional" else own.get(FRACTION)
        if fraction not in (None, 1.0) and FRACTION not in FAMILIES[kind].defaults:
            raise ValueError(f"{FRACTION}={fraction} is not supported with model_type={kind!r}; remove it")


def read_rope(theirs: Fields) -> dict[str, Any]:
    """Rotary fields, from `rope_parameters` or, as older files have it, `rope_theta`, `rope_scaling` and others."""
    field = "rope_scaling" if theirs.get("rope_scaling") else "rope_parameters"
    options = theirs.get(field) or {}
    return _rope_rule(field, options.get("full_attention", options), theirs)


def sliding_theta(theirs: Fields, family: Family) -> float | None:
    """Base of the rotary frequencies of sliding layers, where they have one of their own."""
    options = (theirs.get("rope_parameters") or {}).get("sliding_attention") or {}
    options = {name: value for name, value in options.items() if value is not None}
    unlike = set(options) - {"rope_type", "rope_theta", FRACTION}
    if unlike or options.get("rope_type", "default") != "default":
        raise ValueError(
            f"rope_parameters.sliding_attention={options} is not supported; it may have rope_type='default' and "
            "rope_theta alone"
        )
    if "rope_theta" in options or not family.local_rope:
        return options.get("rope_theta", theirs.get("rope_local_base_freq"))
    return theirs.get("rope_theta")


def _rope_rule(field: str, options: dict[str, Any], theirs: Fields) -> dict[str, Any]:
    options = {name: value for name, value in options.items() if value is not None}
    theta = options.pop("rope_theta", theirs.get("rope_theta") or 10000.0)
    legacy = options.pop("type", "default")
    options.pop("max_position_embeddings", None)  # Ministral repeats it there.
    kind = options.pop("rope_type", legacy)
    fraction = 1.0 if kind == "proportional" else options.pop(FRACTION, theirs.get(FRACTION, 1.0))
    found = {"rope_theta": theta, "rope_fraction": fraction}
    foreign = {"alpha", "llama_4_scaling_beta"} & set(options) - {FAMILIES[theirs["model_type"]].rope_option}
    if foreign:
        raise ValueError(f"{field} has {sorted(foreign)}, not supported with model_type={theirs['model_type']!r}; remove it")
    if FAMILIES[theirs["model_type"]].rope_option == "mrope_section":  # In a text all sections have the same positions.
        options = {name: value for name, value in options.items() if not name.startswith("mrope_")}
    if kind == "default" and not options:
        return found
    if kind not in ROPE_OPTIONS:
        supported = ", ".join(["default", *ROPE_OPTIONS])
        raise ValueError(f"{field}.rope_type={kind!r} with {options} is not supported; the types are {supported}")
    if kind in ("llama3", "yarn"):
        options.setdefault("original_max_position_embeddings", theirs.get("max_position_embeddings", DecoderConfig.max_length))
    if kind == "yarn":
        options = _yarn_options(field, options)
    if kind == "dynamic":
        options = _fixed_alpha(field, options)
    return found | {"rope_scaling": {"rope_type": kind, **options}}


def _yarn_options(field: str, options: dict[str, Any]) -> dict[str, Any]:
    """YaRN's options with their defaults filled in."""
    unknown = set(options) - {*ROPE_OPTIONS["yarn"], *ROPE_OPTIONAL["yarn"], "mscale"}
    if unknown:
        raise ValueError(f"{field} of type 'yarn' has {sorted(unknown)}, which are not supported; remove them")
    if "factor" not in options:
        raise ValueError(f"{field} of type 'yarn' has no factor; give it one")
    both = options.pop("mscale", None), options.get("mscale_all_dim")
    usual = yarn_scale(options["factor"])
    if all(both):
        usual = yarn_scale(options["factor"], both[0]) / yarn_scale(options["factor"], both[1])
    if options.get("truncate"):
        options.pop("truncate")
    return {"beta_fast": 32, "beta_slow": 1, "attention_factor": usual} | options


def yarn_scale(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies rotations by, where texts became `factor` times as long."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _fixed_alpha(field: str, options: dict[str, Any]) -> dict[str, Any]:
    """The one rule called "dynamic" that does not depend on the length of a text: `alpha` stretches the base."""
    if "alpha" not in options or options.get("factor", 1.0) != 1.0:
        raise ValueError(f"{field}.rope_type='dynamic' with {options} is not supported; it must have alpha, and factor=1.0")
    return {"alpha": options["alpha"]}


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """Rotary settings of a network."""
    options = None if config.rope_scaling is None else dict(config.rope_scaling)
    if options and options["rope_type"] == "dynamic":
        options["factor"] = 1.0
    if FAMILIES[config.family].local_rope:
        both = {"full_attention": {"rope_theta": config.rope_theta, **(options or {"rope_type": "default"})}}
        local = config.rope_theta if config.sliding_rope_theta is None else config.sliding_rope_theta
        return {"rope_parameters": both | {"sliding_attention": {"rope_type": "default", "rope_theta": local}}}
    theirs = {"rope_theta": config.rope_theta, "rope_scaling": options}
    if FRACTION in FAMILIES[config.family].defaults:
        theirs |= {FRACTION: config.rope_fraction}
    return theirs | ({} if config.sliding_rope_theta is None else {"rope_local_base_freq": config.sliding_rope_theta})
