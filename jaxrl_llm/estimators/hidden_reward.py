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
    rollouts: Rollouts,
    *,
    candidates: Composable,
    strength: float = 0.1,
    share: float = 1.0,
    threshold: float = 0.5,
) -> Rollouts:
    """Multiplies the advantage of a token by [|s| > tau] (1 + `strength` sign(s)); s is its token hidden reward.

    With the hidden state h before a token and its error vector g = onehot(token) - pi, s = g' M h, M the sum of g h' over the
    actions of the group's right answers; the sign turns for tokens of wrong answers. tau is `share` times the least mean
    of g' M h over a right answer's actions. Groups whose answers are all right or all wrong stay as they are.

    Args:
      rollouts: with advantages, `extras["proximal_hidden"]` [N, T, D] and `extras["proximal_candidate_logp"]` [N, T, V].
      candidates: the rule for the error vectors, the same tokens everywhere: `objectives.vocabulary(of="proximal")`.
      strength: p; above 0 it favours what right answers share (exploitation), below 0 the rest (exploration).
      share: beta of tau.
      threshold: an answer is right where its total reward is above.

    Source: THR, https://arxiv.org/abs/2510.03669
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
    """g' M h [N, T] of each token, with the M of its own group."""
    inside = actions[..., None]
    hidden = masked(rollouts.extras["proximal_hidden"].astype(jnp.float32), inside)
    own = rollouts.extras["candidates"] == rollouts.tokens[..., None]
    error = masked(own - jnp.exp(rollouts.extras["proximal_candidate_logp"]), inside)
    group = jnp.asarray(rollouts.group)

    def of_row(row):
        peers = correct * (group == group[row])
        matrix = jnp.einsum("ntv,ntd,n->vd", error, hidden, peers)
        return jnp.einsum("tv,vd,td->t", error[row], matrix, hidden[row])

    return jax.lax.map(of_row, jnp.arange(actions.shape[0]))
