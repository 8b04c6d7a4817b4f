"""Losses that regress log-ratios onto rewards or classify answers, rather than bound a surrogate: slots like trust regions."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import log_ratio as difference
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Batch, Scores

NFT_WEIGHTS = ("std", "none", "failure")


@composable
def dro(log_ratio, scores: Scores, batch: Batch, *, beta: float):
    """-(A log pi - `beta` / 2 x^2) with the log-ratio x: REINFORCE held near the other policy by a square.

    Raises:
      ValueError: `beta` is 0 or less.

    Source: DRO, https://arxiv.org/abs/2405.19107, with the advantage for the reward less the value, as in verl; OPMD,
      https://arxiv.org/abs/2509.24203, is this with `beta` = 2 tau
    """
    if beta <= 0:
        raise ValueError(f"beta is {beta}; it must be above 0: take score_function for none")
    return -(batch.advantage * scores.logp - 0.5 * beta * jnp.square(log_ratio))


@composable(annotations=("correct", "accuracy"))
def nft(
    log_ratio,
    scores: Scores,
    batch: Batch,
    *,
    negative: float = 1.0,
    weighting: str = "std",
    floor: float = 1.0,
    accuracy_bounds: tuple[float, float] = (0.02, 0.98),
):
    """Likelihood of right answers, and of wrong ones under the implicit negative policy that the accuracy q leaves.

    With R = min(r, e^10): -log R for right answers, -`negative` log max((1 - q R) / (1 - q), `floor`) for wrong ones, whose
    maximum bounds the value but lets the gradient of its first argument pass. Times a weight of the prompt.

    Args:
      negative: factor of the loss of wrong answers; 0 is rejection-sampling fine-tuning.
      weighting: of the prompt: "std" sqrt((1 - q) / q), whose on-policy gradient is that of GRPO for rewards 0 and 1;
        "failure" 1 - q (that of Dr. GRPO); "none" 1.
      floor: smallest value of the implicit ratio.
      accuracy_bounds: q is kept within them.

    Raises:
      ValueError: an unknown weighting.

    Source: NFT, https://arxiv.org/abs/2505.18116; bounds and floor are those of the authors' code
    """
    del scores
    if weighting not in NFT_WEIGHTS:
        raise ValueError(f"weighting is {weighting!r}; it must be one of {NFT_WEIGHTS}")
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

    Raises:
      ValueError: `rho` is 0 or less.

    Source: ROVER, https://arxiv.org/abs/2509.24981
    """
    if rho <= 0:
        raise ValueError(f"rho is {rho}; it must be above 0")
    mean, old = masked(scores.mean_logp, batch.mask), masked(batch.extras["proximal_mean_logp"], batch.mask)
    next_place = (batch.segment[:, 1:] == batch.segment[:, :-1]) & (batch.positions[:, 1:] == batch.positions[:, :-1] + 1)
    follows = next_place & (batch.mask[:, 1:] > 0)
    following = jnp.where(follows, difference(mean, old)[:, 1:], 0.0)
    target = batch.advantage + rho * jnp.pad(following, ((0, 0), (0, 1)))
    return jnp.square(rho * log_ratio - jax.lax.stop_gradient(target))
