"""Trajectory balance: the policy as a flow whose share of each answer is its exponentiated reward."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import masked, over_segments
from jaxrl_llm.objectives.base import weighted_sum
from jaxrl_llm.objectives.policy import factor_value
from jaxrl_llm.objectives.ratios import segment_total, sequence_ratio
from jaxrl_llm.types import Batch, Scores


@composable(needs=("value",), annotations=("reference_logp",))
def trajectory_balance(scores: Scores, batch: Batch, *, beta: float = 15.0, factors: tuple[Composable, ...] = ()):
    """(log Z(x) + 1/|y| log pi(y) - beta A - 1/|y| log pi_ref(y))^2 at each action of an answer y, 0 where pi is the target.

    The target is pi_ref exp(beta |y| A) / Z^|y|. log Z(x), which is learned with the policy, is the value of the state before
    the first action of y. The mean log-ratio is that of `sequence_ratio(against="reference")`, tokens within +-20 nats. Weights
    `sequence_mean` make it a mean over answers.

    Args:
      beta: of the reward A, which is that of the whole answer.
      factors: `(scores, batch) -> factor` [B, T], without gradient, such as an `importance_weight` of whole answers.

    Raises:
      ValueError: `beta` is not above 0.

    Source: FlowRL, https://arxiv.org/abs/2509.15207, equation 6; trajectory balance, https://arxiv.org/abs/2201.13259
    """
    require(beta > 0, "beta", beta, "above 0")
    first = _first_actions(batch)
    log_z = segment_total(masked(scores.value, first), batch.segment)
    residual = log_z + sequence_ratio.function(scores, batch, against="reference") - beta * masked(batch.advantage, batch.mask)
    loss = jnp.square(masked(residual, batch.mask))
    for factor in factors:
        loss *= factor_value(factor, scores, batch)
    return loss, {"log_partition": weighted_sum(log_z, batch)}


def _first_actions(batch: Batch):
    """1 at the first action of each sequence [B, T]."""
    width = batch.mask.shape[1]
    places = jnp.where(batch.mask > 0, jnp.arange(width), width)
    first = over_segments(jax.ops.segment_min, places, batch.segment)
    return ((batch.mask > 0) & (places == first)).astype(jnp.float32)
