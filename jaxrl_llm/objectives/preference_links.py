"""Links of losses on pairs: `(chosen, rejected) -> loss`, from the implicit rewards of both sides, arrays of any one shape.

A reward is what `objectives.preference` makes of a rollout: a log-ratio to the reference in nats for most. Below, c and r
are those of the preferred and of the other rollout, and s is the logistic function.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable, require


def _cost(z):
    """-log s(z)."""
    return jax.nn.softplus(-z)


@composable
def sigmoid_link(chosen, rejected, *, beta: float = 0.1, smoothing: float = 0.0, margin: float = 0.0):
    """-(1 - e) log s(z) - e log s(-z) with z = `beta` (c - r) - `margin` and e = `smoothing`.

    Args:
      smoothing: probability that a label is wrong, for conservative DPO; from 0 up to 1/2.
      margin: what the scaled difference has to exceed, gamma in SimPO.

    Raises ValueError: `smoothing` is outside of [0, 1/2).
    Source: DPO, https://arxiv.org/abs/2305.18290, equation 7; conservative DPO, E. Mitchell,
      https://ericmitchell.ai/cdpo.pdf; margin, SimPO, https://arxiv.org/abs/2405.14734.
    """
    _check_rate("smoothing", smoothing)
    z = beta * (chosen - rejected) - margin
    return (1.0 - smoothing) * _cost(z) + smoothing * _cost(-z)


@composable
def robust_link(chosen, rejected, *, beta: float = 0.1, flip_rate: float = 0.1):
    """[-(1 - e) log s(z) + e log s(-z)] / (1 - 2 e), z = `beta` (c - r): DPO's loss, unbiased where a share e is flipped.

    It has no lower bound for e = `flip_rate` > 0.

    Raises ValueError: `flip_rate` is outside of [0, 1/2).
    Source: robust DPO, https://arxiv.org/abs/2403.00409
    """
    _check_rate("flip_rate", flip_rate)
    z = beta * (chosen - rejected)
    return ((1.0 - flip_rate) * _cost(z) - flip_rate * _cost(-z)) / (1.0 - 2.0 * flip_rate)


@composable
def biased_link(chosen, rejected, *, beta: float = 0.1, bias: float = 1.0):
    """-log s(`beta` (c - `bias` r)): a `bias` below 1 leaves more likelihood to the other side, one above takes it away.

    Source: contrastive preference learning, https://arxiv.org/abs/2310.13639
    """
    return _cost(beta * (chosen - bias * rejected))


@composable
def hinge_link(chosen, rejected, *, beta: float = 0.1, margin: float = 1.0):
    """max(0, `margin` - `beta` (c - r)).

    Source: SLiC, https://arxiv.org/abs/2305.10425; as a link of DPO, RSO, https://arxiv.org/abs/2309.06657
    """
    return jax.nn.relu(margin - beta * (chosen - rejected))


@composable
def ipo_link(chosen, rejected, *, beta: float = 0.1):
    """(c - r - 1 / (2 `beta`))^2.

    Raises ValueError: `beta` is not above 0.
    Source: IPO, https://arxiv.org/abs/2310.12036
    """
    require(beta > 0, "beta", beta, "above 0")
    return jnp.square(chosen - rejected - 0.5 / beta)


@composable
def exo_link(chosen, rejected, *, beta: float = 0.1, smoothing: float = 1e-3):
    """q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e) with q = s(`beta` (c - r)): the reverse KL to soft labels.

    Raises ValueError: e = `smoothing` is outside of (0, 1/2).
    Source: EXO, https://arxiv.org/abs/2402.00856
    """
    _check_rate("smoothing", smoothing, zero=False)
    z = beta * (chosen - rejected)
    log_win, log_lose = -_cost(z), -_cost(-z)
    return jnp.exp(log_win) * (log_win - jnp.log1p(-smoothing)) + jnp.exp(log_lose) * (log_lose - jnp.log(smoothing))


@composable
def nca_link(chosen, rejected, *, beta: float = 0.1):
    """-log s(`beta` c) - 1/2 log s(-`beta` c) - 1/2 log s(-`beta` r).

    Source: noise contrastive alignment, https://arxiv.org/abs/2402.05369
    """
    return _cost(beta * chosen) + 0.5 * _cost(-beta * chosen) + 0.5 * _cost(-beta * rejected)


@composable
def bco_link(chosen, rejected, *, beta: float = 0.1):
    """-log s(`beta` c) - log s(-`beta` r): a classifier of both sides, without a shift (see `unpaired` for that of BCO).

    Source: BCO, https://arxiv.org/abs/2404.04656
    """
    return _cost(beta * chosen) + _cost(-beta * rejected)


@composable
def sppo_link(chosen, rejected, *, beta: float = 0.1):
    """(c - 1 / (2 `beta`))^2 + (r + 1 / (2 `beta`))^2.

    Raises ValueError: `beta` is not above 0.
    Source: SPPO, https://arxiv.org/abs/2405.00675, with hard labels; 1 / `beta` is its eta
    """
    require(beta > 0, "beta", beta, "above 0")
    return jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)


@composable
def apo_zero_link(chosen, rejected, *, beta: float = 0.1):
    """1 - s(`beta` c) + s(`beta` r): raises the preferred side and lowers the other.

    Source: APO, https://arxiv.org/abs/2408.06266
    """
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


@composable
def apo_down_link(chosen, rejected, *, beta: float = 0.1):
    """s(`beta` c) + 1 - s(`beta` (c - r)): lowers both sides, the other one more.

    Source: APO, https://arxiv.org/abs/2408.06266
    """
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected))


@composable
def discopop_link(chosen, rejected, *, beta: float = 0.05, temperature: float = 0.05):
    """(1 - g) (-log s(z)) + g exp(-z) with z = `beta` (c - r) and g = s(z / `temperature`).

    Raises ValueError: `temperature` is outside of (0, 1), where the exponential would win for large negative z.
    Source: DiscoPOP (log-ratio modulated loss), https://arxiv.org/abs/2406.08414
    """
    require(0 < temperature < 1, "temperature", temperature, "between 0 and 1, without them")
    z = beta * (chosen - rejected)
    gate = z / temperature
    return jax.nn.sigmoid(-gate) * _cost(z) + jnp.exp(-_cost(gate) - z)


@composable
def positive_link(chosen, rejected, *, beta: float = 0.1, penalty: float = 50.0):
    """-log s(`beta` (c - r - `penalty` max(0, -c))): the preferred side may not become less likely than in the reference.

    Source: DPO-Positive (Smaug), https://arxiv.org/abs/2402.13228
    """
    return _cost(beta * (chosen - rejected - penalty * jax.nn.relu(-chosen)))


def _check_rate(name: str, value: float, zero: bool = True) -> None:
    if not (0 <= value < 0.5) or (value == 0 and not zero):
        raise ValueError(f"{name} is {value}; it must be {'at least 0' if zero else 'above 0'} and below 1/2")
