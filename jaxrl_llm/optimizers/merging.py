"""Online merging: each optimizer step is merged with the direction that supervised training took."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.compose import require
from jaxrl_llm.numerics import materialised


class MergingState(NamedTuple):
    """State of an online merge."""

    direction: Any  # task vector, in the shape of the parameters
    count: jax.Array  # int32 [], steps done


def task_vector(tuned: Any, base: Any, *, density: float = 1.0, bound: float = 1.0) -> Any:
    """`tuned - base`, of each leaf only the share `density` of largest magnitude, clipped to +-`bound`.

    Args:
      tuned: parameters after supervised training.
      base: parameters before it, in the same shape.
      density: share of the entries of each leaf that are kept.
      bound: largest magnitude of an entry.

    Raises ValueError: the density is not in (0, 1].
    Source: https://arxiv.org/abs/2405.17931
    """
    require(0 < density <= 1, "density", density, "above 0 and at most 1")
    return jax.tree.map(lambda a, b: jnp.clip(_largest(a - b, density), -bound, bound), tuned, base)


def online_dare(direction: Any, *, keep: float, mix: float, seed: int = 0) -> optax.GradientTransformation:
    """OnDARE: update <- mix * direction + (1 - mix) * Bernoulli(keep) * update / keep, to be chained behind Adam.

    Args:
      direction: see `task_vector`; it becomes part of the optimizer's state.
      keep: probability that an entry of the update is kept.
      mix: share of the direction in each step.
      seed: of the mask; a step's mask depends on seed, step and leaf alone.

    Raises ValueError: `keep` is not in (0, 1].
    Source: https://arxiv.org/abs/2405.17931; the authors' script has keep 0.01 and mix 1e-7
    """
    require(0 < keep <= 1, "keep", keep, "above 0 and at most 1")

    def update(updates, state: MergingState, params=None):
        key = jax.random.fold_in(jax.random.key(seed), state.count)
        leaves, structure = jax.tree.flatten(updates)

        def merged(number, leaf, towards):
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), keep, leaf.shape)
            return mix * towards + (1.0 - mix) * jnp.where(kept, leaf / keep, 0.0)

        towards = jax.tree.leaves(state.direction)
        found = [merged(number, *pair) for number, pair in enumerate(zip(leaves, towards, strict=True))]
        return jax.tree.unflatten(structure, found), state._replace(count=state.count + 1)

    return optax.GradientTransformation(_begin(direction), update)


def online_ties(direction: Any, *, density: float, mix: float) -> optax.GradientTransformation:
    """OnTIES: entries of the direction and of the update count where they agree with the sign of the two together.

    With d the largest entries of the update and s = sign(direction + d):
    update <- mix * direction * [sign(direction) = s] + (1 - mix) * d * [sign(d) = s].

    Args:
      direction: see `task_vector`; it becomes part of the optimizer's state.
      density: share of the entries of each leaf of the update that are kept, the largest.
      mix: share of the direction in each step.

    Raises ValueError: the density is not in (0, 1].
    Source: https://arxiv.org/abs/2405.17931
    """
    require(0 < density <= 1, "density", density, "above 0 and at most 1")

    def merged(leaf, towards):
        kept = _largest(leaf, density)
        sign = jnp.sign(towards + kept)
        of_direction = jnp.where(jnp.sign(towards) == sign, towards, 0.0)
        return mix * of_direction + (1.0 - mix) * jnp.where(jnp.sign(kept) == sign, kept, 0.0)

    def update(updates, state: MergingState, params=None):
        return jax.tree.map(merged, updates, state.direction), state._replace(count=state.count + 1)

    return optax.GradientTransformation(_begin(direction), update)


def _begin(direction):
    return lambda params: MergingState(jax.tree.map(jnp.asarray, direction), jnp.zeros((), jnp.int32))


def _largest(leaf, density: float):
    """The leaf with all but its share `density` of largest magnitude set to 0; at least one entry stays, ties all stay."""
    count = max(int(density * leaf.size), 1)
    sizes = materialised(jnp.abs(leaf))
    lowest = jax.lax.top_k(sizes.ravel(), count)[0][-1]
    return jnp.where(sizes >= lowest, leaf, 0.0)
