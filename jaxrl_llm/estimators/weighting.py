"""Aggregation, decided once: the share `weight` [N, T] of each action in the loss `sum(weight * token_loss)`; and scales.

The counts are those of the whole step, so no later split into micro-batches, rows or devices can change the loss.
Rows that are not valid have no share and do not count. With nothing valid, all shares are 0. Normalisers of advantages look at
the whole step too.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import Estimator, stateful, stateless
from jaxrl_llm.estimators.pools import divisor, group_sum
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.numerics import masked, materialised, safe_divide
from jaxrl_llm.types import Rollouts, own_weight


def _actions(rollouts: Rollouts):
    return rollouts.mask * rollouts.valid[:, None]


@stateless
def token_mean(rollouts: Rollouts) -> Rollouts:
    """Each action counts alike: 1 / (actions of the step). Source: DAPO, https://arxiv.org/abs/2503.14476"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, actions.sum()))


@stateless
def sequence_mean(rollouts: Rollouts) -> Rollouts:
    """Mean over rows of the mean over each row's actions. Source: GRPO, https://arxiv.org/abs/2402.03300"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, actions.sum(axis=1, keepdims=True) * rollouts.valid.sum()))


@stateless
def sequence_mean_token_sum(rollouts: Rollouts) -> Rollouts:
    """Mean over rows of the sum over each row's actions. Source: RLOO, https://arxiv.org/abs/2402.14740"""
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, rollouts.valid.sum()))


@stateless
def constant(rollouts: Rollouts, *, length: int) -> Rollouts:
    """Mean over rows of (sum over actions) / `length` tokens, a fixed number such as the longest answer allowed.

    Source: Dr. GRPO, https://arxiv.org/abs/2503.20783
    """
    require(length >= 1, "length", length, "at least 1 token")
    actions = _actions(rollouts)
    return rollouts.replace(weight=safe_divide(actions, jnp.float32(length) * rollouts.valid.sum()))


def _given_mask(options) -> tuple[str, ...]:
    return (options["mask"],) if options["mask"] else ()


@stateless(annotations=_given_mask, provides=lambda options: (own_weight(options["name"]),))
def named_weighting(rollouts: Rollouts, *, name: str, weighting: Estimator, mask: str | None = None) -> Rollouts:
    """Writes the shares that `weighting` gives as those of the terms `weighted(name=...)`; the others keep theirs.

    So entropies may be averaged over tokens beside a loss averaged over sequences, or a critic learn from other tokens. The
    counts are those of the whole step here too.

    Args:
      name: as in `objectives.weighted`.
      weighting: an estimator of shares without a state, such as `token_mean()`.
      mask: name of `extras` [N, T] that stands for the mask of the actions.

    Example:
      >>> chain(sequence_mean(), named_weighting(name="entropy", weighting=token_mean()))
      chain(sequence_mean(), named_weighting(name='entropy', weighting=token_mean()))
    """
    seen = rollouts if mask is None else rollouts.replace(mask=jnp.asarray(rollouts.extras[mask], jnp.float32))
    found, _ = weighting.update(seen, weighting.init(), jax.random.key(0))
    return rollouts.replace(extras=rollouts.extras | {own_weight(name): found.weight})


@stateless(annotations=("preference",))
def pair_mean(rollouts: Rollouts) -> Rollouts:
    """Each pair counts alike: 1 / (pairs of the step), half on each member, spread evenly over its actions.

    A pair is a group with exactly one valid row of positive and one of negative `extras["preference"]` that have an action.
    Rows of other groups have no share, and their groups do not count.
    """
    actions, preference = _actions(rollouts), rollouts.extras["preference"]
    length = actions.sum(axis=1)
    chosen, rejected = ((length > 0) & (sign * preference > 0) for sign in (1, -1))
    count_chosen, count_rejected = (group_sum(side.astype(jnp.int32), rollouts.group) for side in (chosen, rejected))
    member = (chosen | rejected) & (count_chosen == 1) & (count_rejected == 1)
    return rollouts.replace(weight=safe_divide(actions * member[:, None], length[:, None] * member.sum()))


UNITS = ("tokens", "rows")


@stateless
def whiten(
    rollouts: Rollouts, *, over: str = "tokens", shift_mean: bool = True, degrees_of_freedom: int = 1, epsilon: float = 1e-8,
    placement: str = "inside",
) -> Rollouts:  # fmt: skip
    """Scales the advantages of all actions of valid rows to mean 0 and variance 1.

    A = (A - mean) / sqrt(variance + epsilon); with `shift_mean=False` the mean is added back. Fewer actions than
    degrees of freedom, or equal advantages, give 0 (or the mean).

    Args:
      over: "tokens", so that long rows count more in mean and variance, or "rows": each row counts as one, its actions sharing.
      shift_mean: whether the mean is taken off.
      degrees_of_freedom: taken off the number of tokens or rows in the variance.
      placement: of epsilon, as in `std_scale`.

    Raises ValueError: an unknown unit or placement.
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
    rollouts: Rollouts, state, key, *, decay: float = 0.99, epsilon: float = 1e-6, placement: str = "outside",
    reward_weights: tuple[float, ...] | None = None,
):  # fmt: skip
    """Divides all advantages by the standard deviation of the scores of this step and, less and less, of those before it.

    Steps k ago weigh decay^k for each of their present rows. With `decay=1` it is the deviation of all scores so far.

    Args:
      placement: of epsilon, as in `std_scale`.

    Raises ValueError: a decay out of (0, 1], or an unknown placement.
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
