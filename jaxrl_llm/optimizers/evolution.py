"""Evolution strategies: gradients from the rewards of perturbed parameters, whose noise is drawn anew from its seed."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.compose import composable


def member(key, number):
    """Key of the noise of pair `number`."""
    return jax.random.fold_in(key, number)


def noise_of(params, key):
    """Standard normal noise in the shapes of the parameters, float32; each leaf's depends on the key and its place."""
    leaves, structure = jax.tree.flatten(params)
    drawn = [jax.random.normal(jax.random.fold_in(key, place), leaf.shape) for place, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def perturbed(params, key, scale):
    """params + `scale` * noise of the key.

    Args:
      params: floating-point parameters.
      key: see `member`.
      scale: standard deviation, with the sign of the member of a pair.
    """
    return jax.tree.map(lambda leaf, noise: (leaf + scale * noise).astype(leaf.dtype), params, noise_of(params, key))


def evolution_gradient(params, key, weights, scale):
    """-sum_i (w_i+ - w_i-) noise_i / (2 n `scale`), the gradient of what is to fall; noise is drawn one pair at a time.

    Args:
      params: the unperturbed ones.
      key: of the step.
      weights: [n, 2], of the two members of each pair, larger ones for better ones.
      scale: standard deviation of the noise.
    """
    weights, count = jnp.asarray(weights), weights.shape[0]

    def add(number, total):
        factor = -(weights[number, 0] - weights[number, 1]) / (2.0 * count * scale)
        return jax.tree.map(lambda sum_, noise: sum_ + factor * noise, total, noise_of(params, member(key, number)))

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return jax.lax.fori_loop(0, count, add, zeros)


@composable
def centred_ranks(fitness):
    """Ranks from -1/2 for the worst to 1/2 for the best, equal ones their mean; NaN counts as the worst.

    Source: https://arxiv.org/abs/1703.03864
    """
    return _comparisons(_ordered(fitness)) / (2.0 * max(fitness.size - 1, 1))


@composable
def best_comparisons(fitness, *, best: int = 1):
    """Wins less losses over all comparisons that an order of the `best` members alone tells; they sum to 0.

    Each of the `best` is better than those behind it in the order, and than all others, which are not compared with each other.

    Raises ValueError: `best` is not from 1 to the number of members.
    Source: ZO-RankSGD, https://arxiv.org/abs/2303.03751, with the mean over comparisons times the number of members
    """
    if not 1 <= best <= fitness.size:
        raise ValueError(f"best is {best} of {fitness.size} members; it must be at least 1 and at most all")
    values = _ordered(fitness)
    threshold = np.sort(values, axis=None)[-best]
    # Of members that are as good as the last that counts, all are within the order.
    told = np.where(values >= threshold, values, -np.inf)
    compared = (told.ravel()[:, None] > told.ravel()).sum()
    return _comparisons(told) * fitness.size / max(compared, 1)


def _ordered(fitness):
    return np.where(np.isfinite(fitness), fitness, -np.inf)


def _comparisons(values):
    """Of each member the number of those that it is better than, less that of those that are better."""
    flat = values.ravel()
    return ((flat[:, None] > flat).sum(axis=1) - (flat[:, None] < flat).sum(axis=1)).reshape(values.shape).astype(np.float64)
