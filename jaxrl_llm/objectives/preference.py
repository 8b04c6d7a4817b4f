"""Losses on pairs of which one member is preferred, between distributions of rewards, and on single rollouts.

Single rollouts are desirable or not by the sign of `extras["preference"]`; those of 0 have no part.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked, safe_divide, without_infinities
from jaxrl_llm.objectives.base import coefficient_value, traits
from jaxrl_llm.objectives.batch_statistics import masked_mean
from jaxrl_llm.objectives.groups import (
    Groups, at_end, find_groups, find_pairs, pair_statistics, pair_to_tokens, rollout_mean, rollout_sum, rollout_to_tokens,
    two_sides,
)  # fmt: skip
from jaxrl_llm.objectives.implicit_rewards import REFERENCE_RATIO, rollout_reward
from jaxrl_llm.objectives.preference_links import sigmoid_link
from jaxrl_llm.types import Batch, Scores

SIGMOID = sigmoid_link()


@composable(needs=("value",), annotations=("preference",))
@traits(coupled=True, reads_logp=False)
def bradley_terry(scores: Scores, batch: Batch, *, center: float | str = 0.0):
    """-log sigmoid(r_chosen - r_rejected - margin) + `center` (r_chosen + r_rejected)^2 of each pair.

    The reward r of a rollout is `scores.value` at its last place. As a value belongs to the state before its place, a
    rollout has to end with one place more than its text, as those of `data.preference_rollouts` do: then r is what the
    value head says of the last token of the text. The margin is `batch.extras["margin"]`, where that is given.

    Each pair counts by the weights of its actions (`estimators.pair_mean`: the mean over pairs). A group that does not
    have exactly one preferred and one rejected rollout with an action contributes 0.

    Args:
      center: factor of the square that keeps rewards around 0, or the name of a scalar in `batch.coefficients`.

    Source: Bradley-Terry reward models, https://arxiv.org/abs/2203.02155, equation 1; margin, Llama 2,
      https://arxiv.org/abs/2307.09288, equation 2; centring, https://arxiv.org/abs/2312.09244.
    """
    pairs, last = find_pairs(batch), at_end(batch)

    def sides(per_token):
        return two_sides(rollout_sum(per_token, last, pairs.rollout), pairs)

    chosen, rejected = sides(scores.value)
    margin, _ = sides(batch.extras.get("margin", jnp.zeros_like(batch.weight)))
    loss = jax.nn.softplus(margin - (chosen - rejected))
    loss += coefficient_value(center, batch) * jnp.square(chosen + rejected)
    return pair_to_tokens(loss, pairs), pair_statistics(chosen, rejected, pairs)


@composable(annotations=("preference",), coupled=True)
def preference(
    scores: Scores, batch: Batch, *, link: Composable = SIGMOID, evidence: Composable = REFERENCE_RATIO,
    factors: tuple[Composable, ...] = (), average: bool | str = False, transform: Composable | None = None,
    importance: Composable | None = None,
):  # fmt: skip
    """`link(c, r)` of each pair, from the implicit rewards c and r of the preferred and of the other rollout.

    A reward is `transform` of the sum over the actions of a rollout of `evidence` times `factors` (or of their mean, with
    `average`). With the defaults this is DPO. Each pair counts by the weights of its actions (`estimators.pair_mean`: the
    mean over pairs); incomplete pairs contribute 0.

    Args:
      link: loss from two rewards, see `objectives.preference_links`.
      evidence: what a token tells (nats); the log-ratio to the reference, or `likelihood()` for losses without one.
      factors: of tokens in their rollout's reward, without gradient.
      average: rewards are means over actions; "transformed": the transform is of the sum, and what it gives is divided by their
        number.
      transform: of each reward, for other divergences than the reverse KL.
      importance: function `(scores, batch) -> nats` [B, T]; a pair's loss is multiplied by the exp of the means over the
        actions of both rollouts, without gradient.
    """
    pairs = find_pairs(batch)
    reward = rollout_reward(
        scores, batch, pairs.rollout, evidence=evidence, factors=factors, average=average, transform=transform
    )
    chosen, rejected = two_sides(reward, pairs)
    loss = link(chosen, rejected)
    if importance is not None:
        usual = two_sides(rollout_mean(importance(scores, batch), batch.mask, pairs.rollout), pairs)
        loss *= jax.lax.stop_gradient(jnp.exp(sum(usual)))
    return pair_to_tokens(loss, pairs), pair_statistics(chosen, rejected, pairs)


@composable(annotations=("preference",), coupled=True)
def chosen_likelihood(scores: Scores, batch: Batch, *, coefficient: float = 1.0, average: bool = True):
    """-`coefficient` log pi of the preferred rollout of each pair, the mean over its actions or, without `average`, the sum.

    Pairs count as in `preference`. Source: RPO, https://arxiv.org/abs/2405.16436; ORPO, https://arxiv.org/abs/2403.07691
    """
    pairs = find_pairs(batch)
    reduce = rollout_mean if average else rollout_sum
    chosen, _ = two_sides(reduce(without_infinities(scores.logp), batch.mask, pairs.rollout), pairs)
    return pair_to_tokens(-coefficient * chosen, pairs), {}


@composable(annotations=("preference",), coupled=True)
def chosen_token_likelihood(scores: Scores, batch: Batch, *, coefficient: float = 1.0):
    """-`coefficient` log pi of the preferred rollouts, the mean over all of their actions: long answers count more.

    The mean is over the actions of all complete pairs of the batch that count, whatever their weights, times the sum of these.

    Source: the imitation of CPO, https://arxiv.org/abs/2401.08417, and ORPO, https://arxiv.org/abs/2403.07691, in their
      authors' code and in TRL
    """
    pairs = find_pairs(batch)
    counted = pairs.chosen * (pairs.weight > 0)[pairs.pair]
    logp = masked(rollout_sum(without_infinities(scores.logp), batch.mask, pairs.rollout), counted)
    actions = masked(rollout_sum(batch.mask > 0, batch.mask, pairs.rollout), counted)
    mean = safe_divide(logp.sum(), actions.sum())
    return pair_to_tokens(jnp.broadcast_to(-coefficient * mean, pairs.weight.shape), pairs), {}


@composable(annotations=("preference", "reference_logp"), coupled=True)
def quantile_preference(scores: Scores, batch: Batch, *, link: Composable = SIGMOID, paired: bool = True):
    """Mean over k of `link(x_k, y_k)`, where x_k and y_k are the k-th smallest of two quantities of the pairs of a batch.

    With `paired`, x is the difference of the log-probabilities of the two sides under the policy and y that under the
    reference; otherwise x is the log-ratio of the preferred and y that of the other rollouts. Distributions are compared,
    not the members of each pair: the one of x shall lie above that of y everywhere.

    Every complete pair counts alike in the mean, which counts by the sum of their weights. Log-probabilities below -20 nats
    count as -20.

    Args:
      link: as in `preference`; its smoothing is the paper's for wrong labels.
      paired: "AOT" for pairs; False is the paper's variant for data without pairs, here for equal numbers of both.

    Source: alignment via optimal transport, https://arxiv.org/abs/2406.05882
    """
    pairs = find_pairs(batch)

    def sides(logp):
        bounded = jnp.maximum(masked(logp, batch.mask), -MAX_LOG_RATIO)
        return two_sides(rollout_sum(bounded, batch.mask, pairs.rollout), pairs)

    (chosen, rejected), (reference_chosen, reference_rejected) = sides(scores.logp), sides(batch.reference_logp)
    to_reference = (chosen - reference_chosen, rejected - reference_rejected)
    compared = (chosen - rejected, reference_chosen - reference_rejected) if paired else to_reference
    complete = two_sides(jnp.ones_like(pairs.chosen), pairs)[0]
    there = jnp.arange(complete.size) < complete.sum()
    ordered = (masked(jnp.sort(jnp.where(complete > 0, value, jnp.inf)), there) for value in compared)
    loss = safe_divide(masked(link(*ordered), there).sum(), complete.sum())
    return pair_to_tokens(jnp.full_like(complete, loss), pairs), pair_statistics(*to_reference, pairs)


@composable
def saturating_link(z):
    """1 - s(z): KTO's value of a gain or loss, flat at both ends.

    Source: https://arxiv.org/abs/2402.01306
    """
    return jax.nn.sigmoid(-z)


@composable
def logistic_link(z):
    """-log s(z), the loss of a binary classifier. Source: BCO, https://arxiv.org/abs/2404.04656"""
    return jax.nn.softplus(-z)


@composable(coupled=True)
def mean_reference_point(reward, labelled, batch: Batch, groups: Groups):
    """max(0, mean reward of the labelled rollouts): an estimate of the KL divergence from the reference.

    Source: in place of KTO's, whose mean is over mismatched pairs of prompt and answer, see `given_reference_point`
    """
    return jnp.maximum(masked_mean(reward, labelled), 0.0)


@composable(annotations=lambda options: (options["annotation"],), coupled=True)
def given_reference_point(reward, labelled, batch: Batch, groups: Groups, *, annotation: str = "mismatched_ratio"):
    """max(0, mean over the labelled rollouts of `extras[annotation]`), which is equal along a rollout.

    "mismatched_ratio" is the log-ratio of an answer to another prompt, scored behind the rollout's own prompt.

    Source: KTO, https://arxiv.org/abs/2402.01306, section 4.1
    """
    given = rollout_mean(batch.extras[annotation], batch.mask, groups.rollout)
    return jnp.maximum(masked_mean(given, labelled), 0.0)


@composable
def controlled_reference_point(reward, labelled, batch: Batch, groups: Groups, *, coefficient: str = "reward_shift"):
    """The scalar of that name in `batch.coefficients`, as a controller keeps it: delta / beta of BCO."""
    return coefficient_value(coefficient, batch)


@composable(coupled=True)
def running_reference_point(reward, labelled, batch: Batch, groups: Groups, *, total: str, count: str):
    """Mean reward of all labelled rollouts so far, those of this batch included.

    Args:
      total: scalar in `batch.coefficients`, the sum over the batches before, as a controller keeps it.
      count: scalar in `batch.coefficients`, the number of rollouts in it.

    Source: the running mean of BCO in TRL's former trainer
    """
    sums = masked(reward, labelled).sum(), labelled.sum()
    before = (coefficient_value(name, batch) for name in (total, count))
    return safe_divide(*(earlier + now for earlier, now in zip(before, sums, strict=True)))


@composable(annotations=("preference",))
@traits(level="rollout")
def unpaired(
    scores: Scores, batch: Batch, *, link: Composable, beta: float = 0.1, evidence: Composable = REFERENCE_RATIO,
    reference_point: Composable | None = None, desirable: float = 1.0, undesirable: float = 1.0,
):  # fmt: skip
    """w `link(y beta (r - z))` of each rollout: y is 1 and w `desirable` where it is preferred, else -1 and `undesirable`.

    r is the sum over the actions of `evidence`, and z, without gradient, what r is compared with. A rollout counts by the
    sum of its weights (`estimators.sequence_mean`: the mean over rollouts). The metric "reward_center" is the mean of the
    mean rewards of both classes; those of pairs are of the groups that happen to be pairs.

    Args:
      link: loss from what is gained, `saturating_link()` or `logistic_link()`.
      reference_point: function `(reward [S], labelled [S], batch, groups) -> scalar`; 0 by default.
      desirable: factor of preferred rollouts.
      undesirable: factor of the others.
    """
    # Answers that are marked one by one need no groups: without, each answers a prompt of its own.
    batch = batch.replace(group=batch.rollout) if batch.group is None else batch
    groups = find_groups(batch)
    reward = rollout_reward(scores, batch, groups.rollout, evidence=evidence)
    side = jnp.sign(rollout_mean(batch.extras["preference"], batch.mask, groups.rollout)) * groups.counted
    labelled = jnp.abs(side)
    point = 0.0 if reference_point is None else jax.lax.stop_gradient(reference_point(reward, labelled, batch, groups))
    factor = jnp.where(side > 0, desirable, undesirable) * labelled
    loss = factor * link(side * beta * (reward - point))
    pairs = find_pairs(batch)
    return rollout_to_tokens(loss, groups), _statistics(reward, side, point) | pair_statistics(*two_sides(reward, pairs), pairs)


def _statistics(reward, side, point) -> dict[str, jax.Array]:
    """Mean rewards (nats) of desirable and undesirable rollouts, their mean, and what rewards are compared with."""
    means = [masked_mean(reward, members) for members in (side > 0, side < 0)]
    right = 0.5 * (jnp.sign(side * (reward - point)) + 1.0)
    accuracy = safe_divide(masked(right, jnp.abs(side)).sum(), jnp.abs(side).sum())
    found = {"reward_desirable": means[0], "reward_undesirable": means[1], "reward_center": sum(means) / 2}
    counts = {"labelled/reward": masked(reward, jnp.abs(side)).sum(), "labelled/count": jnp.abs(side).sum()}
    return found | counts | {"reward_reference_point": jnp.float32(point), "label_accuracy": accuracy}
