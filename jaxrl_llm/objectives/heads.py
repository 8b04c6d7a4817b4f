"""Heads of critics: what the outputs [..., n] of a value head say of the return from a state, as one value [...].

A head is a composable `head(outputs) -> value`; `width(head)` is its n. Losses that fit a head are in `values`.
Heads of a distribution may read another functional of it than its mean, a *risk*
`risk(values, shares) -> value`, of values [..., n] in ascending order and the probabilities of each.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from jaxrl_llm.compose import Composable, composable, require


def _outputs(count: Callable[[dict], int]):
    def mark(function):
        function.outputs = count
        return function

    return mark


def width(head: Composable) -> int:
    """Number of outputs that a head reads."""
    return head.function.outputs(dict(head.options))


@composable
@_outputs(lambda options: 1)
def plain(outputs):
    """The one output, as it is."""
    return outputs[..., 0]


@composable
@_outputs(lambda options: options["count"])
def bins(outputs, *, count: int = 51, low: float = 0.0, high: float = 1.0, risk: Composable | None = None):
    """Logits of `count` values, equally spaced from `low` to `high`.

    Args:
      count: of bins, at least 2.
      risk: what is read of the distribution; None for its mean.

    Raises ValueError: fewer than two bins, or a range that does not rise.
    Source: https://arxiv.org/abs/1707.06887
    """
    if count < 2 or not low < high:
        raise ValueError(f"bins of count={count} from low={low} to high={high}: give 2 or more that rise")
    shares, values = jax.nn.softmax(outputs), jnp.linspace(low, high, count)
    return shares @ values if risk is None else risk(jnp.broadcast_to(values, shares.shape), shares)


@composable
@_outputs(lambda options: options["count"])
def quantiles(outputs, *, count: int = 32, risk: Composable | None = None):
    """Quantiles of the return at the levels (i + 1/2) / n.

    Args:
      count: n, at least 2.
      risk: what is read of the distribution, in which each has the share 1 / n; None for its mean.

    Raises ValueError: fewer than two.
    Source: https://arxiv.org/abs/1710.10044
    """
    if count < 2:
        raise ValueError(f"count is {count} quantiles; give 2 or more")
    ordered = jnp.sort(outputs, axis=-1)
    return outputs.mean(axis=-1) if risk is None else risk(ordered, jnp.full_like(ordered, 1.0 / outputs.shape[-1]))


@composable
@_outputs(lambda options: 2 * options["members"])
def gaussian(outputs, *, members: int = 1):
    """The mean of a normal distribution whose mean and deviation are a pair of outputs; of `members` pairs, the least mean.

    Raises ValueError: no pair.
    Source: DSAC, https://arxiv.org/abs/2001.02811; twin distributions: DSAC-T, https://arxiv.org/abs/2310.05858
    """
    if members < 1:
        raise ValueError(f"members is {members}; give 1 or more")
    return outputs[..., ::2].min(axis=-1)


@composable
@_outputs(lambda options: options["count"])
def ensemble(outputs, *, count: int = 2):
    """`count` plain outputs, 2 or more, of which the least is the value.

    Raises ValueError: fewer than two members.
    Source: clipped double Q-learning, https://arxiv.org/abs/1802.09477
    """
    if count < 2:
        raise ValueError(f"count is {count} members; give 2 or more")
    return outputs.min(axis=-1)


@composable
def tail_mean(values, shares, *, share: float = 0.25):
    """Conditional value at risk: the mean of the lowest `share` of the distribution.

    Raises ValueError: the share is not in (0, 1].
    Source: https://arxiv.org/abs/1806.06923, section 3 on distortion risk measures
    """
    require(0 < share <= 1, "share", share, "above 0 and at most 1")
    return _distorted(values, shares, lambda level: jnp.minimum(level / share, 1.0))


@composable
def wang(values, shares, *, shift: float = 0.75):
    """Mean under the levels Phi(Phi^-1(u) + `shift`): above 0 it fears, below 0 it hopes.

    Source: Wang, https://doi.org/10.2307/253675; IQN, https://arxiv.org/abs/1806.06923, distorts the levels that it samples
    instead, and its eta is -`shift`
    """
    return _distorted(values, shares, lambda level: ndtr(ndtri(level) + shift))


def _distorted(values, shares, distortion):
    """Mean of values under shares whose cumulative levels are distorted."""
    ends = distortion(jnp.clip(jnp.cumsum(shares, axis=-1), 0.0, 1.0)).at[..., -1].set(1.0)
    return jnp.sum(values * jnp.diff(ends, axis=-1, prepend=0.0), axis=-1)


@composable
def soft_maximum(values, shares, *, temperature: float = 1.0):
    """`temperature` log E exp(Z / `temperature`): the best value that a policy can have under a KL penalty of that size.

    Raises ValueError: `temperature` is 0 or less.
    Source: Q#, https://arxiv.org/abs/2502.20548, theorem on the optimal regularised Q
    """
    require(temperature > 0, "temperature", temperature, "above 0")
    return temperature * jax.nn.logsumexp(values / temperature, b=shares, axis=-1)
