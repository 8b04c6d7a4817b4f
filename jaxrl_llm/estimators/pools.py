"""Statistics of the rows that a row is compared with: its group, the whole step, or a part of its group."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

# Where the small number that keeps a division finite may stand; see `divisor`.
PLACEMENTS = ("outside", "inside", "floor", "where_positive")
# What a row that has nobody to be compared with is compared with.
ALONE = ("own", "none")


def classes(*keys):
    """Numbers [n], from 0, that are equal where all of `keys` (integers [n]) are equal."""
    keys = [jnp.asarray(key) for key in keys]
    order = jnp.lexsort(keys)
    differs = sum(key[order][1:] != key[order][:-1] for key in keys) > 0
    number = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(differs, dtype=jnp.int32)])
    return jnp.zeros_like(number).at[order].set(number)


def pool_of(rollouts: Rollouts, over: str):
    """Number of each row's pool [N]: its "group", the whole "batch", or the rows of its group with an equal `extras[over]`."""
    if over == "group":
        return rollouts.group
    if over == "batch":
        return jnp.zeros_like(rollouts.group)
    return classes(rollouts.group, rollouts.extras[over])


def pool_annotations(options) -> tuple[str, ...]:
    """Annotations of a function with an option `over`."""
    return () if options["over"] in ("group", "batch") else (options["over"],)


def group_sum(values, group):
    """Sum of `values` [N] over the rows of each row's own group, [N]."""
    return jax.ops.segment_sum(values, group, num_segments=values.shape[0])[group]


def group_mean(values, present, group, virtual: tuple[float, ...] = ()):
    """Mean of `values` [N] over the present rows of each row's own group and the `virtual` values; 0 where there are none.

    Exact where all are equal: the float32 mean of equal numbers may miss them by a bit.
    """
    total = group_sum(masked(values, present), group) + sum(virtual)
    low, high = group_bounds(values, present, group, virtual)
    return jnp.where(high > low, safe_divide(total, group_sum(present, group) + len(virtual)), jnp.where(high < low, 0.0, low))


def group_bounds(values, present, group, virtual: tuple[float, ...] = ()):
    """Smallest and largest of the present `values` [N] of each row's own group; (inf, -inf) where there are none."""
    rows = values.shape[0]
    low = jax.ops.segment_min(jnp.where(present > 0, values, jnp.inf), group, num_segments=rows)[group]
    high = jax.ops.segment_max(jnp.where(present > 0, values, -jnp.inf), group, num_segments=rows)[group]
    for value in virtual:
        low, high = jnp.minimum(low, value), jnp.maximum(high, value)
    return low, high


def group_range(values, present, group):
    """Largest minus smallest of the present `values` [N] of each row's own group, [N]; 0 where there are none."""
    low, high = group_bounds(values, present, group)
    return jnp.where(high >= low, high - low, 0.0)


def alone_in(present, group, alone: str):
    """Which rows [N] are the only present one of their group where `alone` is "none"; None where it is "own".

    Raises ValueError: another word.
    """
    require(alone in ALONE, "alone", alone, f"one of {ALONE}")
    return None if alone == "own" else group_sum(present, group) - present <= 0


def one_each(present, group):
    """One [N] for the first present row of each group, 0 for all others."""
    rows = jnp.arange(present.shape[0])
    return present * (rows == group_bounds(rows, present, group)[0])


def group_variance(values, present, group, degrees_of_freedom: int = 0, virtual: tuple[float, ...] = ()):
    """Variance [N] of what `group_mean` takes the mean of; 0 where no degree of freedom is left."""
    mean = group_mean(values, present, group, virtual)
    squares = group_sum(jnp.square(masked(values - mean, present)), group) + sum(jnp.square(value - mean) for value in virtual)
    return safe_divide(squares, jnp.maximum(group_sum(present, group) + len(virtual) - degrees_of_freedom, 0.0))


def others_variance(values, present, group, degrees_of_freedom: int = 0):
    """Variance [N] of the present `values` of the other rows of each row's group; 0 where no degree of freedom is left.

    Exactly 0 where the others are equal.
    """
    centred = masked(values - group_mean(values, present, group), present)
    count = group_sum(present, group) - present
    total, squares = group_sum(centred, group) - centred, group_sum(jnp.square(centred), group) - jnp.square(centred)
    deviation = jnp.maximum(squares - safe_divide(jnp.square(total), count), 0.0)
    low, high = _others_bound(-values, present, group), _others_bound(values, present, group)
    return jnp.where(high > -low, safe_divide(deviation, jnp.maximum(count - degrees_of_freedom, 0.0)), 0.0)


def _others_bound(values, present, group):
    """Largest of the present `values` of the other rows of each row's group; -inf where there are none."""
    highest = group_bounds(values, present, group)[1]
    holds = present * (values == highest)
    second = group_bounds(values, present * (1 - holds), group)[1]
    return jnp.where((holds > 0) & (group_sum(holds, group) == 1), second, highest)


def group_rank(values, present, group):
    """How many present rows of the own group have a smaller value, [N]; equal values share a rank."""
    order = jnp.lexsort((values, present <= 0, group))
    place = jnp.arange(values.shape[0])
    starts = _first(group[order]) | _first(values[order]) | _first(present[order] > 0)
    first_of_tie = jax.lax.cummax(jnp.where(starts, place, 0))
    first_of_group = jax.lax.cummax(jnp.where(_first(group[order]), place, 0))
    return jnp.zeros_like(place).at[order].set(first_of_tie - first_of_group)


def group_quantile(values, present, group, share: float):
    """Quantile of the present `values` of each row's own group, [N], linear between neighbours; 0 where there are none."""
    order = jnp.lexsort((values, present <= 0, group))
    place = jnp.arange(values.shape[0])
    count = group_sum((present > 0).astype(jnp.int32), group)
    start = group_bounds(jnp.zeros_like(place).at[order].set(place), present, group)[0]
    exact = share * jnp.maximum(count - 1, 0)
    below = jnp.floor(exact).astype(jnp.int32)
    sorted_values = jnp.where(present > 0, values, 0.0)[order]
    first = jnp.where(count > 0, start, 0).astype(jnp.int32) + below
    low, high = sorted_values[first], sorted_values[jnp.where(exact > below, first + 1, first)]
    return jnp.where(count > 0, low + (exact - below) * (high - low), 0.0)


def divisor(variance, epsilon: float, placement: str):
    """The number to divide by, out of a variance: "outside" of the root sqrt(v) + epsilon, "inside" sqrt(v + epsilon).

    "floor" is max(sqrt(v), epsilon), and "where_positive" sqrt(v) + epsilon where v > 0 and 1 elsewhere.

    Raises ValueError: an unknown placement.
    """
    require(placement in PLACEMENTS, "placement", placement, f"one of {PLACEMENTS}")
    if placement == "inside":
        return jnp.sqrt(variance + epsilon)
    deviation = jnp.sqrt(variance)
    if placement == "floor":
        return jnp.maximum(deviation, epsilon)
    return deviation + epsilon if placement == "outside" else jnp.where(variance > 0, deviation + epsilon, 1.0)


def _first(values):
    """Where a run of equal entries begins."""
    return jnp.concatenate([jnp.ones(1, bool), values[1:] != values[:-1]])
