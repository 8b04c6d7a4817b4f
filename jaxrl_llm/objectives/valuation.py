"""Losses that regress log-ratios onto rewards or advantages, or classify answers, rather than bound a surrogate."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import log_ratio as difference
from jaxrl_llm.numerics import masked, over_segments
from jaxrl_llm.objectives.base import weighted_sum, with_factors
from jaxrl_llm.objectives.groups import find_groups, group_mean, rollout_mean, rollout_sum, rollout_to_tokens
from jaxrl_llm.objectives.ratios import TOKEN_RATIO, segment_total, sequence_ratio
from jaxrl_llm.types import Batch, Scores

NFT_WEIGHTS = ("std", "none", "failure")


@composable
def dro(log_ratio, scores: Scores, batch: Batch, *, beta: float):
    """-(A log pi - `beta` / 2 x^2) with the log-ratio x: REINFORCE held near the other policy by a square.

    Raises ValueError: `beta` is 0 or less.
    Source: DRO, https://arxiv.org/abs/2405.19107, with the advantage for the reward less the value, as in verl; OPMD,
      https://arxiv.org/abs/2509.24203, is this with `beta` = 2 tau
    """
    require(beta > 0, "beta", beta, "above 0: take score_function for none")
    return -(batch.advantage * scores.logp - 0.5 * beta * jnp.square(log_ratio))


@composable(annotations=("correct", "accuracy"))
def nft(
    log_ratio, scores: Scores, batch: Batch, *, negative: float = 1.0, weighting: str = "std", floor: float = 1.0,
    accuracy_bounds: tuple[float, float] = (0.02, 0.98),
):  # fmt: skip
    """Likelihood of right answers, and of wrong ones under the implicit negative policy that the accuracy q leaves.

    With R = min(r, e^10): -log R for right answers, -`negative` log max((1 - q R) / (1 - q), `floor`) for wrong ones, whose
    maximum bounds the value but lets the gradient of its first argument pass. Times a weight of the prompt.

    Args:
      negative: factor of the loss of wrong answers; 0 is rejection-sampling fine-tuning.
      weighting: of the prompt: "std" sqrt((1 - q) / q), whose on-policy gradient is that of GRPO for rewards 0 and 1;
        "failure" 1 - q (that of Dr. GRPO); "none" 1.
      floor: smallest value of the implicit ratio.
      accuracy_bounds: q is kept within them.

    Raises ValueError: an unknown weighting.
    Source: NFT, https://arxiv.org/abs/2505.18116; bounds and floor are those of the authors' code
    """
    require(weighting in NFT_WEIGHTS, "weighting", weighting, f"one of {NFT_WEIGHTS}")
    capped = jnp.minimum(log_ratio, 10.0)
    accuracy = jnp.clip(masked(batch.extras["accuracy"], batch.mask), *accuracy_bounds)
    implicit = (1.0 - accuracy * jnp.exp(capped)) / (1.0 - accuracy)
    bounded = jax.lax.stop_gradient(jnp.maximum(implicit, floor))
    # Value of log(bounded), gradient of implicit / bounded, without their large difference.
    wrong = jnp.log(bounded) + (implicit - jax.lax.stop_gradient(implicit)) / bounded
    odds = (1.0 - accuracy) / accuracy
    weight = {"std": jnp.sqrt(odds), "failure": 1.0 - accuracy, "none": jnp.ones_like(odds)}[weighting]
    return -weight * jnp.where(batch.extras["correct"] > 0, capped, negative * wrong)


@composable(needs=("mean_logp",), annotations=("proximal_mean_logp",))
def rover(log_ratio, scores: Scores, batch: Batch, *, rho: float = 1.0):
    """(Q - target)^2 with Q = `rho` x, the log-ratio as a value of the uniformly random policy.

    target = A + `rho` (m - m_old) of the next action of the sequence, 0 for the bracket where none follows at once, with m the
    mean over the vocabulary of the log-probabilities; the target has no gradient.

    Args:
      rho: temperature of the values, above 0.

    Raises ValueError: `rho` is 0 or less.
    Source: ROVER, https://arxiv.org/abs/2509.24981
    """
    require(rho > 0, "rho", rho, "above 0")
    mean, old = masked(scores.mean_logp, batch.mask), masked(batch.extras["proximal_mean_logp"], batch.mask)
    next_place = (batch.segment[:, 1:] == batch.segment[:, :-1]) & (batch.positions[:, 1:] == batch.positions[:, :-1] + 1)
    follows = next_place & (batch.mask[:, 1:] > 0)
    following = jnp.where(follows, difference(mean, old)[:, 1:], 0.0)
    target = batch.advantage + rho * jnp.pad(following, ((0, 0), (0, 1)))
    return jnp.square(rho * log_ratio - jax.lax.stop_gradient(target))


@composable(coupled=True)
def advantage_regression(scores: Scores, batch: Batch, *, epsilon: float = 1e-4, ratio: Composable = TOKEN_RATIO):
    """(A - (l - mean l) / (std l + `epsilon`))^2 of each rollout, l being the sum over its actions of `ratio`.

    Mean and standard deviation are over the rollouts of the group, A is the mean of the rollout's advantages. The scaled
    log-ratios are the advantages under which the policy would be optimal. While the policy has not left the sampler, l is 0
    for all, and the gradient is 2 / `epsilon` times that of REINFORCE with centred advantages: clip its norm.

    Args:
      epsilon: keeps the division finite, above 0.

    Raises ValueError: `epsilon` is 0 or less.
    Source: Reg-GRPO, https://arxiv.org/abs/2506.07464, equations 7 and 8, without `epsilon`
    """
    require(epsilon > 0, "epsilon", epsilon, "above 0, as log-ratios may all be equal")
    groups = find_groups(batch)
    everyone = groups.counted
    total = rollout_sum(ratio(scores, batch), batch.mask, groups.rollout)
    centred = total - group_mean(total, everyone, groups)
    variance = group_mean(jnp.square(centred), everyone, groups)
    spread = variance > 0
    deviation = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0)
    advantage = rollout_mean(batch.advantage, batch.mask, groups.rollout)
    return rollout_to_tokens(jnp.square(advantage - centred / (deviation + epsilon)), groups), {}


@composable(needs=("value",), annotations=("reference_logp",))
def trajectory_balance(scores: Scores, batch: Batch, *, beta: float = 15.0, factors: tuple[Composable, ...] = ()):
    """(log Z(x) + 1/|y| log pi(y) - beta A - 1/|y| log pi_ref(y))^2 at each action of an answer y, 0 where pi is the target.

    The target is pi_ref exp(beta |y| A) / Z^|y|. log Z(x), which is learned with the policy, is the value of the state before
    the first action of y. The mean log-ratio is that of `sequence_ratio(against="reference")`, tokens within +-20 nats. Weights
    `sequence_mean` make it a mean over answers.

    Args:
      beta: of the reward A, which is that of the whole answer.
      factors: `(scores, batch) -> factor` [B, T], without gradient, such as an `importance_weight` of whole answers.

    Raises ValueError: `beta` is not above 0.
    Source: FlowRL, https://arxiv.org/abs/2509.15207, equation 6; trajectory balance, https://arxiv.org/abs/2201.13259
    """
    require(beta > 0, "beta", beta, "above 0")
    first = _first_actions(batch)
    log_z = segment_total(masked(scores.value, first), batch.segment)
    residual = log_z + sequence_ratio.function(scores, batch, against="reference") - beta * masked(batch.advantage, batch.mask)
    loss = with_factors(jnp.square(masked(residual, batch.mask)), factors, scores, batch)
    return loss, {"log_partition": weighted_sum(log_z, batch)}


def _first_actions(batch: Batch):
    """1 at the first action of each sequence [B, T]."""
    width = batch.mask.shape[1]
    places = jnp.where(batch.mask > 0, jnp.arange(width), width)
    first = over_segments(jax.ops.segment_min, places, batch.segment)
    return ((batch.mask > 0) & (places == first)).astype(jnp.float32)
