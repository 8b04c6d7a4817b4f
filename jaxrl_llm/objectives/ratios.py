"""Log importance ratios [B, T] (nats) between the policy and the one that sampled; 0 where no action is."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import MAX_LOG_RATIO, log_ratio, masked, over_segments, safe_divide, without_infinities
from jaxrl_llm.objectives.base import logp_name, logp_of, traits
from jaxrl_llm.types import Batch, Scores


def segment_total(per_token, segment):
    """Sum of `per_token` [B, T] over each token's own sequence within its row, at every token of it, [B, T]."""
    return over_segments(jax.ops.segment_sum, per_token, segment)


def segment_mean(per_token, mask, segment):
    """Mean over the actions of each token's own sequence, [B, T]; 0 where no action is."""
    actions = (mask > 0).astype(per_token.dtype)
    mean = safe_divide(segment_total(masked(per_token, mask), segment), segment_total(actions, segment))
    return masked(mean, mask)


@composable(annotations=logp_name)
def token_ratio(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """log pi(token) - log mu(token) of each action.

    Args:
      against: whose probability mu is: "behavior" (the sampler), "proximal" (the policy before the step's updates),
        "reference" or "teacher".

    Source: PPO, https://arxiv.org/abs/1707.06347; decoupled PPO for "proximal", https://arxiv.org/abs/2110.00641
    """
    return masked(log_ratio(masked(scores.logp, batch.mask), masked(logp_of(against, batch), batch.mask)), batch.mask)


@composable
def own_ratio(scores: Scores, batch: Batch):
    """log pi(token) - sg(log pi(token)): the ratio of the policy to itself, 1, with the gradient of log pi.

    A loss multiplied by it has the score-function part of the gradient of its mean under samples of this very policy.

    Source: the KL term of NeMo-RL, after https://arxiv.org/abs/2506.09477
    """
    logp = without_infinities(masked(scores.logp, batch.mask))
    return logp - jax.lax.stop_gradient(logp)


@composable(annotations=logp_name)
@traits(level="sequence")
def sequence_ratio(scores: Scores, batch: Batch, *, against: str = "behavior", highest: float | None = None):
    """Mean over the actions of a sequence of their log-ratios, at every action of it: the length-normalised ratio.

    Args:
      highest: largest mean (nats), beyond which it has no gradient; None for none.

    Source: GSPO, https://arxiv.org/abs/2507.18071
    """
    mean = segment_mean(token_ratio.function(scores, batch, against=against), batch.mask, batch.segment)
    return mean if highest is None else jnp.minimum(mean, highest)


@composable(annotations=logp_name)
@traits(level="sequence")
def sequence_total_ratio(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """Sum over the actions of a sequence of their log-ratios, at every action of it: the ratio of whole sequences.

    It is kept within +-20 nats and has no gradient beyond.

    Source: importance sampling of a whole answer as one action, as in RLOO, https://arxiv.org/abs/2402.14740
    """
    total = segment_total(token_ratio.function(scores, batch, against=against), batch.segment)
    return masked(jnp.clip(total, -MAX_LOG_RATIO, MAX_LOG_RATIO), batch.mask)


# Smallest weight of an engine whose logarithm counts in full.
_LEAST_WEIGHT = 1e-8


@composable(annotations=("proximal_logp",))
def corrected_total_ratio(scores: Scores, batch: Batch, *, weight: Composable):
    """`sequence_total_ratio(against="proximal")` plus the sum of log `weight` over the actions, without gradient.

    So the weight of a whole sequence holds the truncated or masked weights of the engine that sampled it. Their logarithms are
    from ln 1e-8 to 20, the total within +-20 nats.

    Args:
      weight: function `(scores, batch) -> weight` [B, T], such as `importance_weight(high=3.0)`.

    Source: `loss_type="vespo"` of TRL beside its importance sampling of tokens
    """
    token = token_ratio.function(scores, batch, against="proximal")
    factor = jax.lax.stop_gradient(jnp.clip(masked(weight(scores, batch), batch.mask), _LEAST_WEIGHT, jnp.exp(MAX_LOG_RATIO)))
    total = segment_total(token + masked(jnp.log(factor), batch.mask), batch.segment)
    return masked(jnp.clip(total, -MAX_LOG_RATIO, MAX_LOG_RATIO), batch.mask)


@composable(annotations=logp_name)
@traits(level="sequence")
def arithmetic_sequence_ratio(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """log of the mean over the actions of a sequence of their ratios, at every action of it.

    Source: GRPO-S, https://arxiv.org/abs/2508.04349; the geometric mean is `sequence_ratio`
    """
    token = token_ratio.function(scores, batch, against=against)
    mean = segment_mean(jnp.exp(token), batch.mask, batch.segment)
    return masked(jnp.log(jnp.where(mean > 0, mean, 1.0)), batch.mask)


@composable(annotations=logp_name)
@traits(level="sequence")
def sequence_token_ratio(scores: Scores, batch: Batch, *, against: str = "behavior", highest: float | None = None):
    """Value of the length-normalised ratio of the sequence, gradient of the token's own: s_t = sg(s) pi_t / sg(pi_t).

    A token may then have an advantage of its own; where all tokens of a sequence share one, the gradient of their mean is
    that of `sequence_ratio`.

    Args:
      highest: as in `sequence_ratio`; 10 in verl and Tunix.

    Source: GSPO-token, https://arxiv.org/abs/2507.18071, section 4.3
    """
    token = token_ratio.function(scores, batch, against=against)
    sequence = segment_mean(token, batch.mask, batch.segment)
    value = masked(token + jax.lax.stop_gradient(sequence - token), batch.mask)
    return value if highest is None else jnp.minimum(value, highest)


@composable(annotations=logp_name)
@traits(level="sequence")
def geometric_ratio(scores: Scores, batch: Batch, *, low: float = 0.4, high: float = 0.4, against: str = "behavior"):
    """Mean over the actions of a sequence of their clipped log-ratios: the geometric mean of clipped ratios.

    A log-ratio x counts as min(x, `high`) where A > 0 and as max(x, -`low`) elsewhere: the clip of PPO, token by token and in
    log space. The trust region over it is `unclipped`.

    Args:
      low: largest fall of a token's log-probability (nats) that counts.
      high: largest rise.

    Source: GMPO, https://arxiv.org/abs/2507.20673, equation 4
    """
    token = token_ratio.function(scores, batch, against=against)
    bounded = jnp.where(batch.advantage > 0, jnp.minimum(token, high), jnp.maximum(token, -low))
    return segment_mean(bounded, batch.mask, batch.segment)


@composable(annotations=logp_name)
def prefix_ratio(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """Log-ratio of a token plus the smallest one among the earlier actions of its sequence; of the first, its own alone.

    It stands for the product of all ratios up to the token, which explodes with length.

    Source: MinPRO, https://arxiv.org/abs/2601.22718
    """
    token = token_ratio.function(scores, batch, against=against)
    lowest = _running_minimum(jnp.where(batch.mask > 0, token, jnp.inf), batch.segment)
    before = jnp.pad(lowest[:, :-1], ((0, 0), (1, 0)), constant_values=jnp.inf)
    same = batch.segment == jnp.pad(batch.segment[:, :-1], ((0, 0), (1, 0)))
    earlier = same & (before < jnp.inf)
    return masked(jnp.clip(token + jnp.where(earlier, before, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO), batch.mask)


def _running_minimum(values, segment):
    """Smallest of the values [B, T] of the own sequence up to each token."""

    def join(left, right):
        (before, of), (value, own) = left, right
        return jnp.where(of == own, jnp.minimum(before, value), value), own

    return jax.lax.associative_scan(join, (values, jnp.asarray(segment)), axis=1)[0]


@composable(annotations=logp_name)
def turn_ratio(scores: Scores, batch: Batch, *, against: str = "behavior", total: bool = False):
    """Mean of the log-ratios of the actions of one turn of a sequence, at every action of it; or their sum, within +-20 nats.

    Source: turn-level importance sampling, Turn-PPO and ST-PPO, https://arxiv.org/abs/2511.20718; the sum, of segments, TCE,
      https://arxiv.org/abs/2401.11437
    """
    turn = batch.extras["turn"]
    starts = (batch.segment[:, 1:] != batch.segment[:, :-1]) | (turn[:, 1:] != turn[:, :-1])
    part = jnp.pad(jnp.cumsum(starts, axis=1), ((0, 0), (1, 0)))
    own = token_ratio.function(scores, batch, against=against)
    if total:
        return masked(jnp.clip(segment_total(own, part), -MAX_LOG_RATIO, MAX_LOG_RATIO), batch.mask)
    return segment_mean(own, batch.mask, part)


@composable
def likelihood(scores: Scores, batch: Batch):
    """log pi(token): the log-ratio to an author who counts as certain of each token.

    Source: LUFFY, https://arxiv.org/abs/2504.14945, where the probability of the demonstrations' author is set to 1
    """
    return masked(jnp.maximum(masked(scores.logp, batch.mask), -MAX_LOG_RATIO), batch.mask)


@composable(annotations=lambda options: tuple(f"{who}_logp" for who in (options["against"], options["other"]) if who))
def mixture_ratio(scores: Scores, batch: Batch, *, against: str = "proximal", other: str | None = None, share: float = 0.25):
    """log pi - log((1 - `share`) q + `share` m): the ratio to a mixture of two policies.

    Args:
      against: whose probability q is, as in `token_ratio`.
      other: whose probability m is; None for 1, an author who counts as certain of each token.
      share: of m in the mixture, above 0 and at most 1.

    Raises ValueError: `share` outside of (0, 1].
    Source: RL-PLUS, https://arxiv.org/abs/2508.00222, whose code takes 2 pi / (q + (q + 1) / 2), a share of 1/4; with
      `other`, REX-RAG, https://arxiv.org/abs/2508.08149
    """
    require(0 < share <= 1, "share", share, "above 0 and at most 1: take token_ratio for none")
    first = masked(logp_of(against, batch), batch.mask)
    second = masked(logp_of(other, batch), batch.mask) if other else jnp.zeros_like(first)
    mixture = jnp.log((1.0 - share) * jnp.exp(first) + share * jnp.exp(second))
    return masked(log_ratio(masked(scores.logp, batch.mask), mixture), batch.mask)


TOKEN_RATIO = token_ratio()
