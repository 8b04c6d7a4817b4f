"""What the fields of a configuration must be, alone and together."""

import re
from typing import TYPE_CHECKING

from jaxrl_llm import reading

if TYPE_CHECKING:
    from jaxrl_llm.networks.config import DecoderConfig

LAYER_TYPES = ("full", "sliding", "delta")
ROPE_OPTIONS = {
    "linear": ("factor",),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "factor", "original_max_position_embeddings"),
    "dynamic": ("alpha",),
    "proportional": ("partial_rotary_factor",),
}
# Options that a rule may do without.
ROPE_OPTIONAL = {"yarn": ("llama_4_scaling_beta", "mscale_all_dim", "truncate")}
# The largest sizes, far above those of any network that there is: more would fill the memory before anything is computed.
LIMITS = {"vocab_size": 10**8, "hidden_size": 10**7, "intermediate_size": 10**7, "num_layers": 10**4, "num_heads": 10**5}
LIMITS |= {"num_kv_heads": 10**5, "head_dim": 10**6, "max_length": 10**12, "value_head": 10**6}
MOST_EXPERTS = 10**5  # of all layers together
MOST_PARAMETERS = 10**14
POSITIVE, BASE = reading.real(above=0.0), reading.real(above=1.0, most=1e15)
_NUMBERS = {"norm_epsilon": reading.real(0.0, 1.0), "norm_offset": reading.real(), "rope_theta": BASE}
_NUMBERS |= dict.fromkeys(("embedding_scale", "residual_scale", "logit_divisor", "swiglu_limit"), POSITIVE)
_NUMBERS |= {"sliding_rope_theta": BASE, "query_scale": POSITIVE, "attention_softcap": POSITIVE, "logit_softcap": POSITIVE}
ROPE_NUMBERS = dict.fromkeys(("factor", "high_freq_factor", "low_freq_factor", "attention_factor", "alpha"), POSITIVE)
ROPE_NUMBERS |= dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "llama_4_scaling_beta"), POSITIVE)
ROPE_NUMBERS |= {"truncate": reading.flag, "partial_rotary_factor": reading.real(above=0.0, most=1.0)}
ROPE_NUMBERS |= {"original_max_position_embeddings": reading.whole(1, LIMITS["max_length"])}


def check_choice(field: str, value, choices) -> None:
    """Refuses a value that is none of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{field}={value!r} is unknown; choose one of {', '.join(choices)}")


def check_pattern(field: str, pattern: str) -> None:
    """Refuses a text that is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{field}={pattern!r} is no regular expression: {error}") from error


def derived_head_dim(config: "DecoderConfig") -> int:
    """Width of a head where nobody gives it: `hidden_size / num_heads`."""
    if config.num_heads < 1 or config.hidden_size % config.num_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} must be a multiple of num_heads={config.num_heads}, or give head_dim"
        )
    return config.hidden_size // config.num_heads


def check_sizes(config: "DecoderConfig") -> None:
    """Refuses sizes that are out of bounds or do not divide one another."""
    for name, most in LIMITS.items():
        least = 0 if name == "value_head" else 1
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)} must be at least {least}")
        if getattr(config, name) > most:
            raise ValueError(f"{name}={getattr(config, name)} must be at most {most}")
    if _rough_parameters(config) > MOST_PARAMETERS:
        raise ValueError(
            f"the sizes are those of about {_rough_parameters(config):.0e} parameters, more than {MOST_PARAMETERS:.0e}"
        )
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"num_heads={config.num_heads} must be a multiple of num_kv_heads={config.num_kv_heads}")
    if config.rotary_dim % 2 or not 0 < config.rotary_dim <= config.head_dim:
        raise ValueError(
            f"head_dim={config.head_dim} times rope_fraction={config.rope_fraction} is {config.rotary_dim}; it must be an "
            f"even number from 2 to {config.head_dim}: the rotary embedding turns pairs"
        )


def _rough_parameters(config: "DecoderConfig") -> float:
    """Numbers in the large matrices."""
    experts, heads = config.experts, 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    width = config.intermediate_size + (0 if experts is None else experts.count * experts.width + experts.shared_width)
    return float(config.hidden_size) * (config.num_layers * (heads + 3 * width) + 2 * config.vocab_size)


def check_numbers(config: "DecoderConfig") -> None:
    """Refuses scales, caps and bases of the rotary embedding that are out of bounds."""
    for name, check in _NUMBERS.items():
        if getattr(config, name) is not None:
            check(getattr(config, name), name)


def check_tokens(config: "DecoderConfig") -> None:
    """Refuses tokens of a file that the network does not have; whoever changes vocab_size in a program may leave them."""
    for name in ("bos_id", "eos_ids", "pad_id"):
        ids = getattr(config, name)
        for token in ids if isinstance(ids, tuple) else () if ids is None else (ids,):
            if not 0 <= token < config.vocab_size:
                raise ValueError(
                    f"{name}={ids} has a token outside of vocab_size={config.vocab_size}; correct it, or leave it out"
                )


def check_layers(config: "DecoderConfig") -> None:
    """Refuses kinds of layers that do not fit their number, their window or the experts."""
    for name in config.layer_types:
        check_choice("layer_types", name, LAYER_TYPES)
    if config.layer_types and len(config.layer_types) != config.num_layers:
        raise ValueError(f"layer_types has {len(config.layer_types)} entries; num_layers={config.num_layers} need as many")
    slides = "sliding" in config.layer_types if config.layer_types else config.sliding_window is not None
    if slides and (config.sliding_window is None or config.sliding_window < 1):
        raise ValueError(f"sliding_window={config.sliding_window} must be at least 1 where layers are sliding")
    if not slides and (config.sliding_window, config.sliding_rope_theta) != (None, None):
        raise ValueError("sliding_window and sliding_rope_theta would change nothing: no layer is sliding; set them to None")
    if (config.activation == "clipped_swiglu") != (config.swiglu_limit is not None):
        raise ValueError(
            f"swiglu_limit={config.swiglu_limit} belongs to activation='clipped_swiglu'; here it is {config.activation!r}"
        )
    if not set(config.unrotated_layers) <= set(range(config.num_layers)):
        raise ValueError(f"unrotated_layers={config.unrotated_layers} must be numbers below num_layers={config.num_layers}")
    if ("delta" in config.layer_types) != (config.delta is not None):
        raise ValueError(f"delta={config.delta} is of layers of type 'delta'; layer_types={config.layer_types}")
    if config.reusing_layers:
        types = config.layer_types or ("all",) * config.num_layers
        own = config.num_layers - config.reusing_layers
        if own < 1 or not set(types[own:]) <= set(types[:own]):
            raise ValueError(f"reusing_layers={config.reusing_layers} need layers of each of their types below them")
    if config.experts is not None and config.experts.count * config.num_layers > MOST_EXPERTS:
        raise ValueError(f"experts.count={config.experts.count} in num_layers={config.num_layers} are more than {MOST_EXPERTS}")
    if config.experts is not None and not 0 <= config.experts.dense_layers < config.num_layers:
        raise ValueError(f"experts.dense_layers={config.experts.dense_layers} must be less than num_layers={config.num_layers}")


def check_rope_scaling(scaling) -> None:
    """Refuses an unknown rule of the rotary embedding, and options that are not its own or out of bounds."""
    if scaling is None:
        return
    options = dict(scaling)
    kind = options.pop("rope_type", None)
    check_choice("rope_scaling.rope_type", kind, ROPE_OPTIONS)
    if set(options) - set(ROPE_OPTIONAL.get(kind, ())) != set(ROPE_OPTIONS[kind]):
        raise ValueError(f"rope_scaling of type {kind!r} takes {list(ROPE_OPTIONS[kind])}; got {sorted(options)}")
    found = reading.fields(options, ROPE_NUMBERS, "rope_scaling.")
    if kind == "llama3" and found["high_freq_factor"] <= found["low_freq_factor"]:
        raise ValueError(f"rope_scaling.high_freq_factor={found['high_freq_factor']} must be above that of low frequencies")
