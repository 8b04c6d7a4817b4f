"""Normalisation of advantages over the whole step."""

import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import stateful, stateless
from jaxrl_llm.estimators.pools import divisor
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.numerics import masked, materialised, safe_divide
from jaxrl_llm.types import Rollouts

UNITS = ("tokens", "rows")


@stateless
def whiten(
    rollouts: Rollouts,
    *,
    over: str = "tokens",
    shift_mean: bool = True,
    degrees_of_freedom: int = 1,
    epsilon: float = 1e-8,
    placement: str = "inside",
) -> Rollouts:
    """Scales the advantages of all actions of valid rows to mean 0 and variance 1.

    A = (A - mean) / sqrt(variance + epsilon); with `shift_mean=False` the mean is added back. Fewer actions than
    degrees of freedom, or equal advantages, give 0 (or the mean).

    Args:
      rollouts: with advantages.
      over: "tokens", so that long rows count more in mean and variance, or "rows": each row counts as one, its actions sharing.
      shift_mean: whether the mean is taken off.
      degrees_of_freedom: taken off the number of tokens or rows in the variance.
      epsilon: keeps the division finite.
      placement: of epsilon, as in `std_scale`.

    Raises:
      ValueError: an unknown unit or placement.

    Source: REINFORCE++ "global advantage normalisation", https://arxiv.org/abs/2501.03262; PPO practice,
      https://arxiv.org/abs/2006.05990.
    """
    require(over in UNITS, "over", over, f"one of {UNITS}")
    taken = rollouts.mask * rollouts.valid[:, None]
    share = taken if over == "tokens" else safe_divide(taken, taken.sum(axis=1, keepdims=True))
    count = (taken if over == "tokens" else taken.max(axis=1, initial=0.0)).sum()
    advantage = materialised(rollouts.advantage)
    lowest = jnp.where(taken > 0, advantage, jnp.inf).min(initial=jnp.inf)
    highest = jnp.where(taken > 0, advantage, -jnp.inf).max(initial=-jnp.inf)
    # The float32 mean of equal numbers may miss them by a bit, which the division would blow up.
    mean = jnp.where(lowest < highest, safe_divide((share * masked(advantage, taken)).sum(), count), lowest)
    centred = masked(advantage - mean, taken)
    variance = safe_divide((share * jnp.square(centred)).sum(), jnp.maximum(count - degrees_of_freedom, 0.0))
    scaled = safe_divide(centred, divisor(variance, epsilon, placement))
    return rollouts.replace(advantage=masked(scaled if shift_mean else scaled + mean, taken))


@stateful(lambda **options: {"count": jnp.zeros(()), "mean": jnp.zeros(()), "squares": jnp.zeros(())})
def running_scale(
    rollouts: Rollouts,
    state,
    key,
    *,
    decay: float = 0.99,
    epsilon: float = 1e-6,
    placement: str = "outside",
    reward_weights: tuple[float, ...] | None = None,
):
    """Divides all advantages by the standard deviation of the scores of this step and, less and less, of those before it.

    Steps k ago weigh decay^k for each of their present rows. With `decay=1` it is the deviation of all scores so far.

    Args:
      decay: in (0, 1].
      epsilon: keeps the division finite.
      placement: of epsilon, as in `std_scale`.
      reward_weights: factor of each reward component; 1 by default.

    Raises:
      ValueError: a decay out of (0, 1], or an unknown placement.
    """
    require(0 < decay <= 1, "decay", decay, "above 0 and at most 1")
    score, present = row_scores(rollouts, reward_weights)
    state = _merged(state, masked(score, present), present, decay)
    deviation = divisor(safe_divide(state["squares"], state["count"]), epsilon, placement)
    return rollouts.replace(advantage=safe_divide(masked(rollouts.advantage, rollouts.mask), deviation)), state


def _merged(state, score, present, decay: float):
    """Count, mean and sum of squared deviations of earlier scores, faded, and of new ones."""
    before, new = decay * state["count"], present.sum()
    mean = safe_divide(score.sum(), new)
    squares = (present * jnp.square(score - mean)).sum()
    count, apart = before + new, mean - state["mean"]
    return {
        "count": count,
        "mean": state["mean"] + apart * safe_divide(new, count),
        "squares": decay * state["squares"] + squares + jnp.square(apart) * safe_divide(before * new, count),
    }
