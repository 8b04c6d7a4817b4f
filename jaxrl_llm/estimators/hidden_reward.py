"""Token hidden reward: how much a step on one token would raise the likelihood of a group's right answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.pools import group_bounds, group_sum
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.types import Rollouts


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
