"""The reward that a policy implies for a whole rollout: evidence of its tokens, their factors, a reduction, a transform.

Evidence are functions `(scores, batch) -> nats` [B, T]: log-ratios, such as `token_ratio(against="reference")`, the reward of
DPO by tokens, or `likelihood()`, that of losses without a reference. Factors are such functions too. Transforms take the
reduced evidence, an array of any shape.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import MAX_LOG_RATIO, log_ratio, masked, safe_divide
from jaxrl_llm.objectives.base import with_factors
from jaxrl_llm.objectives.groups import find_pairs, rollout_mean, rollout_sum, two_sides
from jaxrl_llm.objectives.ratios import token_ratio
from jaxrl_llm.types import Batch, Scores

REFERENCE_RATIO = token_ratio(against="reference")


def rollout_reward(
    scores: Scores, batch: Batch, rollout, *, evidence: Composable = REFERENCE_RATIO, factors: tuple[Composable, ...] = (),
    average: bool | str = False, transform: Composable | None = None,
):  # fmt: skip
    """Implicit reward [S] of each rollout: `transform` of the sum, or mean, over its actions of evidence times factors.

    Args:
      scores: of the policy.
      batch: packed rows.
      rollout: int [B, T], slot of each token's rollout.
      evidence: what a token tells, [B, T].
      factors: functions `(scores, batch) -> factor` [B, T] of the evidence, without gradient.
      average: the mean over actions instead of the sum; "transformed" divides the transform of the sum by their number.
      transform: function of the result.

    Raises ValueError: another word for `average`, or "transformed" without a transform.
    """
    require(average in (False, True, "transformed"), "average", average, "False, True or 'transformed'")
    if average == "transformed" and transform is None:
        raise ValueError("average='transformed' without a transform is average=True; give a transform, or that")
    per_token = with_factors(evidence(scores, batch), factors, scores, batch)
    reduced = (rollout_mean if average is True else rollout_sum)(per_token, batch.mask, rollout)
    value = reduced if transform is None else transform(reduced)
    return safe_divide(value, rollout_sum(batch.mask > 0, batch.mask, rollout)) if average == "transformed" else value


@composable(annotations=("reference_logp", "proximal_logp"))
def anchored_ratio(scores: Scores, batch: Batch, *, share: float):
    """log pi - `share` log pi_reference - (1 - `share`) log pi_proximal: against a geometric mixture of two policies.

    Source: iterative Nash policy optimization, https://arxiv.org/abs/2407.00617
    """
    to_reference, to_proximal = (token_ratio.function(scores, batch, against=who) for who in ("reference", "proximal"))
    return share * to_reference + (1.0 - share) * to_proximal


@composable
def length_bonus(scores: Scores, batch: Batch, *, evidence: Composable = REFERENCE_RATIO, bonus: float = 0.1):
    """Evidence plus `bonus` nats for each action, so that a long text no longer has to be likely to seem preferred.

    Source: length-regularised DPO, https://arxiv.org/abs/2403.19159, whose alpha is beta times `bonus`
    """
    return evidence(scores, batch) + bonus


@composable(annotations=("preference", "teacher_logp", "reference_logp"))
def token_guidance(scores: Scores, batch: Batch, *, alpha: float = 0.5, beta: float = 0.1):
    """1 + y `alpha` g with g = `beta` (log pi_teacher - log pi_reference) of the token; y = 1 if preferred, -1 if rejected.

    The teacher is a model whose log-ratio to the reference is a token-level reward, such as one trained by DPO before.

    Source: TGDPO, https://arxiv.org/abs/2506.14574
    """
    guide = log_ratio(masked(batch.extras["teacher_logp"], batch.mask), masked(batch.reference_logp, batch.mask))
    return 1.0 + alpha * beta * jnp.sign(masked(batch.extras["preference"], batch.mask)) * guide


@composable(annotations=("preference",), coupled=True)
def beyond_shared_length(scores: Scores, batch: Batch, *, alpha: float = 0.5):
    """1 for as many first actions of each member of a pair as both have, `alpha` for those that the longer has beyond.

    Raises ValueError: `alpha` is outside of [0, 1].
    Source: LD-DPO, https://arxiv.org/abs/2409.06411
    """
    require(0 <= alpha <= 1, "alpha", alpha, "from 0 (cut to the shared length) to 1 (plain DPO)")
    pairs = find_pairs(batch)
    actions = (batch.mask > 0).astype(jnp.float32)
    shared = jnp.minimum(*two_sides(rollout_sum(actions, batch.mask, pairs.rollout), pairs))[pairs.pair][pairs.rollout]
    before = (jnp.cumsum(actions) - actions.ravel()).astype(jnp.float32)
    first = jax.ops.segment_min(before, pairs.rollout.ravel(), before.size)[pairs.rollout]
    return jnp.where(before.reshape(actions.shape) - first < shared, 1.0, alpha)


@composable(needs=("log_collision",))
def collision_ratio(scores: Scores, batch: Batch):
    """log pi(token) - log sum over the vocabulary of pi^2: how usual a token is for the policy, given its other choices.

    Source: WPO, https://arxiv.org/abs/2406.11827, with its "sampled alignment"
    """
    return log_ratio(masked(scores.logp, batch.mask), masked(scores.log_collision, batch.mask))


@composable
def alpha_transform(x, *, alpha: float):
    """(1 - exp(-`alpha` x)) / `alpha`, whose limit at 0 is x; exponents above 20 count as 20.

    Of a log-ratio it is the score of DPO under an alpha-divergence: 0 is the reverse KL, 1 the forward KL. (TRL's alpha is 1
    minus this one.) Of a mean log-probability it is the reward of AlphaPO.

    Source: f-DPO, https://arxiv.org/abs/2309.16240, table 1; AlphaPO, https://arxiv.org/abs/2501.03884
    """
    return -jnp.expm1(jnp.minimum(-alpha * x, MAX_LOG_RATIO)) / alpha if alpha else x


@composable
def jensen_shannon_transform(x):
    """log 2 + log s(x) of a log-ratio x: the score of DPO under the Jensen-Shannon divergence.

    Source: f-DPO, https://arxiv.org/abs/2309.16240, table 1
    """
    return jnp.log(2.0) - jax.nn.softplus(-x)


@composable
def log_odds(x):
    """log(p / (1 - p)) with p = exp(x), for x of 0 or less; p counts as at most 1 - 1e-6.

    Source: ORPO, https://arxiv.org/abs/2403.07691
    """
    bounded = jnp.minimum(x, -1e-6)
    return bounded - jnp.log(-jnp.expm1(bounded))
