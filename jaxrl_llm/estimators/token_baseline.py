"""A baseline for each place of the answers to one prompt."""

import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_bounds, group_sum
from jaxrl_llm.estimators.scores import by_action, by_place
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts

TAILS = ("own", "none")


ALIGNMENTS = ("action", "place")


def _read(options) -> tuple[str, ...]:
    weights = (options["weights"],) if options["weights"] else ()
    return ("proximal_logp", "proximal_log_collision", *weights)


@stateless(annotations=_read)
def optimal_token_baseline(
    rollouts: Rollouts, *, tail: str = "own", weights: str | None = None, by: str = "action"
) -> Rollouts:
    """Takes the baseline of least variance off advantages that are returns, for each number of action by itself.

    B_t = sum(G W) / sum(W) over the rows of the group that have a t-th action, where G is its return and W the sum, over the
    actions up to it, of the squared gradient of the log-probability with respect to the logits, 1 - 2 p + sum(p'^2).

    Args:
      rollouts: with returns as advantages, as `reward_to_go` gives them; `extras["proximal_logp"]` [N, T], the log-probability
        of the token, and `extras["proximal_log_collision"]` [N, T], log of the sum of squared probabilities there.
      tail: what happens where one row alone goes on: "own", the baseline is its own return and nothing is learnt, or "none", no
        baseline (verl).
      weights: name of `extras` [N, T], importance weights rho of the samples, such as truncated ones of the engine: the squared
        gradient of each action is multiplied by rho^2 (verl); None for none.
      by: "action" compares the t-th actions of the rows, "place" what stands at the same distance from the first action, tool
        output included (verl's "optimal_token_baseline", where "tir_..." compares actions).

    Raises:
      ValueError: an unknown tail or alignment.

    Source: https://github.com/verl-project/verl, compute_multi_turn_optimal_token_baseline_advantage
    """
    require(tail in TAILS, "tail", tail, f"one of {TAILS}")
    require(by in ALIGNMENTS, "by", by, f"one of {ALIGNMENTS}")
    taken = rollouts.mask * rollouts.valid[:, None]
    chance, collision = (jnp.exp(jnp.minimum(rollouts.extras[f"proximal_{name}"], 0.0)) for name in ("logp", "log_collision"))
    square = 1.0 if weights is None else jnp.square(rollouts.extras[weights])
    energy = jnp.cumsum(masked((1.0 - 2.0 * chance + collision) * square, rollouts.mask), axis=1)
    align = by_action if by == "action" else by_place
    (there, returns, weight), back = align(rollouts.mask, taken, masked(rollouts.advantage, taken), masked(energy, taken))
    baseline = safe_divide(group_sum(returns * weight, rollouts.group), group_sum(weight, rollouts.group))
    low, high = group_bounds(returns, there, rollouts.group)
    baseline = jnp.where(high > low, baseline, returns)
    if tail == "none":
        baseline = jnp.where(group_sum(1.0 * (there > 0), rollouts.group) > 1, baseline, 0.0)
    return rollouts.replace(advantage=masked(back(returns - baseline), taken))
