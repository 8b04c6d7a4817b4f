"""Losses in which log-probabilities are values of tokens."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import masked, without_infinities
from jaxrl_llm.objectives.base import traits
from jaxrl_llm.objectives.groups import (
    find_pairs, pair_statistics, pair_to_tokens, rollout_mean, rollout_sum, two_sides,
)  # fmt: skip
from jaxrl_llm.types import Batch, Scores


@composable(needs=("value", "max_logp"), annotations=("returns",))
def dueling_value_loss(scores: Scores, batch: Batch, *, alpha: float = 0.1, coefficient: float = 1.0):
    """`coefficient` (Q - R)^2 with Q = V + `alpha` (log pi(token) - log pi(likeliest token)).

    Args:
      alpha: size of a nat in values.

    Source: B-Coder, https://arxiv.org/abs/2310.03173
    """
    lead = masked(without_infinities(scores.logp) - jax.lax.stop_gradient(scores.max_logp), batch.mask)
    value, target = masked(scores.value, batch.mask), masked(batch.returns, batch.mask)
    return coefficient * jnp.square(value + alpha * lead - target), {}


def value_of_next_action(value, batch: Batch):
    """Of values [B, T] that of the next action of the same rollout, [B, T]; 0 behind the last."""
    columns = value.shape[1]
    places = jax.lax.cummin(jnp.where(batch.mask > 0, jnp.arange(columns), columns), axis=1, reverse=True)
    following = jnp.pad(places[:, 1:], ((0, 0), (0, 1)), constant_values=columns)

    def taken(row, places):
        return row[jnp.minimum(places, columns - 1)]

    own = (following < columns) & (jax.vmap(taken)(batch.rollout, following) == batch.rollout)
    return jnp.where(own, jax.vmap(taken)(masked(value, batch.mask), following), 0.0)


@composable(needs=("value",), annotations=("preference",))
@traits(coupled=True)
def inverse_preference(scores: Scores, batch: Batch, *, beta: float = 0.1, discount: float = 0.99, regularisation: float = 0.5):
    """-log sigmoid(sum r_chosen - sum r_rejected) + `regularisation` times the mean over both of the mean of r^2.

    r = `beta` log pi(token) + V - `discount` V', with the value V of the state before the token and V' of that before the next
    action, 0 behind the last: the reward under which `beta` log pi + V are the soft values of tokens.

    Args:
      beta: temperature of the values.
      discount: gamma.
      regularisation: of rewards.

    Source: Inverse preference learning, https://arxiv.org/abs/2305.15363, equation 5
    """
    pairs = find_pairs(batch)
    value = masked(scores.value, batch.mask)
    reward = beta * without_infinities(scores.logp) + value - discount * value_of_next_action(value, batch)
    chosen, rejected = two_sides(rollout_sum(reward, batch.mask, pairs.rollout), pairs)
    sizes = two_sides(rollout_mean(jnp.square(masked(reward, batch.mask)), batch.mask, pairs.rollout), pairs)
    loss = jax.nn.softplus(rejected - chosen) + regularisation * 0.5 * sum(sizes)
    return pair_to_tokens(loss, pairs), pair_statistics(chosen, rejected, pairs)
