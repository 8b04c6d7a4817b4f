"""Factors on the advantages of whole rows or groups."""

import math

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators.base import no_steps, stateful, stateless
from jaxrl_llm.estimators.pools import classes, group_bounds, group_mean, group_sum
from jaxrl_llm.estimators.scores import component_of, row_logp, row_mean, row_scores
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


def _times(rollouts: Rollouts, factor) -> Rollouts:
    return rollouts.replace(advantage=masked(rollouts.advantage * factor[:, None], rollouts.mask))


def group_shares(values, present, group):
    """Softmax of `values` [N] over the present rows of each group, [N]."""
    high = group_bounds(values, present, group)[1]
    mass = present * jnp.exp(jnp.where(present > 0, values - jnp.where(jnp.isfinite(high), high, 0.0), 0.0))
    return safe_divide(mass, group_sum(mass, group))


@stateless
def max_entropy_weight(rollouts: Rollouts, *, sharpness: float = 1.0, threshold: float = 0.5, component: int = 0) -> Rollouts:
    """Multiplies advantages by exp(-sharpness * KL(p || 1/2)), p the share of right rows of the group: half right counts most.

    KL(p || 1/2) = p log(2 p) + (1 - p) log(2 (1 - p)), in nats.

    Source: MGPO in VibeThinker, https://arxiv.org/abs/2511.06221
    """
    value, present = component_of(rollouts, component)
    share = group_mean(present * (value > threshold), present, rollouts.group)
    distance = sum(p * jnp.log(jnp.where(p > 0, 2.0 * p, 1.0)) for p in (share, 1.0 - share))
    return _times(rollouts, jnp.exp(-sharpness * distance))


@stateless(annotations=("proximal_entropy",))
def entropy_guided_weight(rollouts: Rollouts, *, entropy_weight: float = 1.0, temperature: float = 1.0) -> Rollouts:
    """Multiplies advantages by n times the softmax of (A + entropy_weight * H) / temperature over the n rows of the group.

    A is the mean advantage of the row and H its mean entropy in nats. Equal rows keep what they have.

    Raises ValueError: a temperature that is not positive.
    Source: EGSW, https://arxiv.org/abs/2503.22456
    """
    require(temperature > 0, "temperature", temperature, "positive")
    present = (rollouts.valid > 0).astype(jnp.float32)
    advantage, entropy = (row_mean(x, rollouts.mask) for x in (rollouts.advantage, rollouts.extras["proximal_entropy"]))
    merit = (advantage + entropy_weight * entropy) / temperature
    share = group_shares(merit, present, rollouts.group)
    return _times(rollouts, share * group_sum(present, rollouts.group))


@stateless(annotations=("answer", "behavior_logp"))
def semantic_entropy_weight(rollouts: Rollouts, *, strength: float = 0.0417) -> Rollouts:
    """Multiplies advantages by 1 / (1 + strength * H / log n): prompts whose n answers disagree change the policy less.

    H = -sum_c p_c log p_c over classes of equal answers; p_c is the sum over its rows of the softmax, over the group, of
    their mean `behavior_logp`. Rows without an answer are classes by themselves. One class gives 1.

    Args:
      rollouts: with `extras["answer"]` int [N], -1 where there is none.

    Source: SEED-GRPO, https://arxiv.org/abs/2505.12346
    """
    group, answer = rollouts.group, rollouts.extras["answer"]
    present = (rollouts.valid > 0).astype(jnp.float32)
    share = group_shares(safe_divide(row_logp(rollouts), rollouts.mask.sum(axis=1)), present, group)
    meaning = classes(group, jnp.where(answer < 0, -1 - jnp.arange(answer.shape[0]), answer))
    mass = group_sum(share, meaning)
    entropy = -group_sum(share * jnp.log(jnp.where(mass > 0, mass, 1.0)), group)
    most = jnp.log(jnp.maximum(group_sum(present, group), 1.0))
    return _times(rollouts, 1.0 / (1.0 + strength * safe_divide(entropy, most)))


@stateless
def exponential_weight(rollouts: Rollouts, *, temperature: float = 1.0) -> Rollouts:
    """Multiplies advantages by exp(A / temperature): what was better than expected counts more.

    Raises ValueError: a temperature that is not positive.
    Source: RED-Weight, https://arxiv.org/abs/2509.24203
    """
    require(temperature > 0, "temperature", temperature, "positive")
    advantage = masked(rollouts.advantage, rollouts.mask)
    return rollouts.replace(advantage=advantage * jnp.exp(jnp.minimum(advantage / temperature, 20.0)))


@stateless
def advantage_weight(rollouts: Rollouts, *, temperature: float = 1.0, largest: float = 20.0) -> Rollouts:
    """exp(A / temperature), at most `largest`, in place of each advantage: imitation, of better actions the more.

    Raises ValueError: one of them is not above 0.
    Source: AWR, https://arxiv.org/abs/1910.00177, which has the bound 20
    """
    if temperature <= 0 or largest <= 0:
        raise ValueError(f"temperature={temperature}, largest={largest}: both must be above 0")
    taken = rollouts.mask * rollouts.valid[:, None]
    power = jnp.minimum(masked(rollouts.advantage, taken) / temperature, math.log(largest))
    return rollouts.replace(advantage=masked(jnp.exp(power), taken))


@stateless(annotations=("easy",))
def group_gap_weight(rollouts: Rollouts, *, strength: float = 1.0, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Multiplies advantages so that the step also closes the gap between the scores of an easy and a hard part of the data.

    With J_g = sum_i p_ig R_i / sum_i p_ig for the two parts, what grows is mean(R) - strength * ((J_1 - J_0) / 2)^2,
    whose derivative with respect to R_i, times the number of rows n, is the factor: 1 - strength * n (J_1 - J_0) / 2
    (p_i1 / sum p_1 - p_i0 / sum p_0).

    Args:
      rollouts: with `extras["easy"]` [N], the probability p_i1 that the row is of the easy part; that of the other is 1 - p_i1.

    Source: group invariant learning, https://arxiv.org/abs/2310.11971
    """
    score, present = row_scores(rollouts, reward_weights)
    parts = [masked(chance, present) for chance in (1.0 - rollouts.extras["easy"], rollouts.extras["easy"])]
    shares = [safe_divide(part, part.sum()) for part in parts]
    hard, easy = ((share * masked(score, present)).sum() for share in shares)
    gap = 0.5 * jnp.where(parts[0].any() & parts[1].any(), easy - hard, 0.0)
    return _times(rollouts, 1.0 - strength * present.sum() * gap * (shares[1] - shares[0]))


@stateless(annotations=("correct",))
def long_wrong_penalty(rollouts: Rollouts, *, base: float = 1.00001) -> Rollouts:
    """Multiplies the advantages of wrong answers by 2 - `base`^-(l - m), m the mean length of the right ones of the group.

    That is for lengths l (in actions) above m, and in groups with a right answer; all other advantages stay.

    Args:
      rollouts: with `extras["correct"]` [N].
      base: above 1; the larger, the sooner the factor nears 2.

    Raises ValueError: `base` is 1 or less.
    Source: suboptimal trajectory complexity regularisation, https://arxiv.org/abs/2506.21655
    """
    require(base > 1, "base", base, "above 1")
    length, present = rollouts.mask.sum(axis=1), (rollouts.valid > 0).astype(jnp.float32)
    right = present * (rollouts.extras["correct"] > 0)
    longer = length - group_mean(length, right, rollouts.group)
    counts = (rollouts.extras["correct"] <= 0) & (longer > 0) & (group_sum(right, rollouts.group) > 0)
    factor = jnp.where(counts, 1.0 - jnp.expm1(-math.log(base) * jnp.maximum(longer, 0.0)), 1.0)
    return rollouts.replace(advantage=masked(rollouts.advantage, rollouts.mask) * factor[:, None])


@stateless(annotations=("proximal_hidden", "candidates", "proximal_candidate_logp"))
def hidden_reward_weighting(
    rollouts: Rollouts, *, candidates: Composable, strength: float = 0.1, share: float = 1.0, threshold: float = 0.5
) -> Rollouts:
    """Multiplies the advantage of a token by [|s| > tau] (1 + `strength` sign(s)); s is its token hidden reward.

    With the hidden state h before a token and its error vector g = onehot(token) - pi, s = g' M h, M the sum of g h' over the
    actions of the group's right answers; the sign turns for tokens of wrong answers. tau is `share` times the least mean
    of g' M h over a right answer's actions. Groups whose answers are all right or all wrong stay as they are.

    Args:
      rollouts: with advantages, `extras["proximal_hidden"]` [N, T, D], `extras["candidates"]` and
        `extras["proximal_candidate_logp"]` [N, T, K].
      candidates: the rule for the entries of the error vectors, the same for all tokens of a group:
        `objectives.tokens_of_group()`, whose probabilities are not renormalised, or `objectives.vocabulary(of="proximal")`.
      strength: p; above 0 it favours what right answers share (exploitation), below 0 the rest (exploration).
      share: beta of tau.
      threshold: an answer is right where its total reward is above.

    Source: THR, https://arxiv.org/abs/2510.03669; the ids of the group, NTHR, https://arxiv.org/abs/2505.18830
    """
    del candidates  # the loop reads it, to fill the extras
    score, present = row_scores(rollouts)
    actions = rollouts.mask * present[:, None]
    correct = present * (score > threshold)
    influence = masked(_influence(rollouts, actions, correct), actions)
    anchor = safe_divide(influence.sum(axis=1), actions.sum(axis=1))
    least, _ = group_bounds(anchor, correct * (actions.sum(axis=1) > 0), rollouts.group)
    signed = jnp.where(correct[:, None] > 0, influence, -influence)
    factor = (jnp.abs(signed) > share * least[:, None]) * (1.0 + strength * jnp.sign(signed))
    right, all_rows = group_sum(correct, rollouts.group), group_sum(present, rollouts.group)
    mixed = (right > 0) & (right < all_rows)
    return rollouts.replace(advantage=jnp.where(mixed[:, None], factor, 1.0) * rollouts.advantage)


def _influence(rollouts: Rollouts, actions, correct):
    """g' M h [N, T] of each token, with the M of its own group; no array is larger than the candidates of the step."""
    names = ("candidates", "proximal_candidate_logp", "proximal_hidden")
    candidates, logp, states, tokens = map(jnp.asarray, (*(rollouts.extras[name] for name in names), rollouts.tokens))
    order = jnp.argsort(rollouts.group, stable=True)
    starts = jnp.searchsorted(jnp.asarray(rollouts.group)[order], jnp.arange(order.size + 1))

    def parts(row):
        """Error vectors [T, K] and hidden states [T, D] of the actions of a row."""
        inside = actions[row][:, None]
        error = (candidates[row] == tokens[row][:, None]) - jnp.exp(logp[row])
        return masked(error, inside), masked(states[row].astype(jnp.float32), inside)

    def of_group(influence, number):
        def add(place, matrix):
            error, hidden = parts(order[place])
            return matrix + correct[order[place]] * jnp.einsum("tv,td->vd", error, hidden)

        def read(place, influence):
            error, hidden = parts(order[place])
            return influence.at[order[place]].set(jnp.einsum("tv,vd,td->t", error, matrix, hidden))

        bounds = starts[number], starts[number + 1]
        matrix = jax.lax.fori_loop(*bounds, add, jnp.zeros((candidates.shape[-1], states.shape[-1])))
        return jax.lax.fori_loop(*bounds, read, influence), None

    return jax.lax.scan(of_group, jnp.zeros(actions.shape), jnp.arange(order.size))[0]


@stateful(no_steps)
def fading(rollouts: Rollouts, state, key, *, start: float = 0.5, rate: float = 0.01, rest: bool = False):
    """Multiplies advantages by a = start * exp(-rate * n) in step n, counted from 0, or by the `rest`, 1 - a.

    Source: RL Tango, https://arxiv.org/abs/2505.15034, whose share of step rewards fades so
    """
    share = start * jnp.exp(-rate * state.astype(jnp.float32))
    return _times(rollouts, jnp.full(rollouts.valid.shape, 1.0 - share if rest else share)), state + 1


@stateful(lambda **options: {"factor": jnp.zeros(2), "known": jnp.zeros(2, bool)}, annotations=("right",))
def balanced_classes(rollouts: Rollouts, state, key, *, momentum: float = 0.9):
    """Multiplies the advantages of judgements of right answers, and of those of wrong ones, by factors that even them out.

    The factor of a class is the exponential average over steps of 1 / sqrt(n), n the number of its rows in a step; steps
    without any leave it as it is.

    Args:
      rollouts: with `extras["right"]` [N], 1 where the answer that a row judges is right.

    Source: RL Tango, https://arxiv.org/abs/2505.15034
    """
    right = (rollouts.extras["right"] > 0).astype(jnp.int32)
    counts = jax.ops.segment_sum((rollouts.valid > 0).astype(jnp.float32), right, 2)
    present = counts > 0
    now = jnp.where(present, 1.0 / jnp.sqrt(jnp.maximum(counts, 1.0)), 0.0)
    moved = jnp.where(state["known"], momentum * state["factor"] + (1.0 - momentum) * now, now)
    factor = jnp.where(present, moved, state["factor"])
    return _times(rollouts, factor[right]), {"factor": factor, "known": state["known"] | present}
