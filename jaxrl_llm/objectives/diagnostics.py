"""What is measured of a policy beside its loss."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, masked, safe_divide, without_infinities
from jaxrl_llm.objectives.base import logp_name, logp_of
from jaxrl_llm.objectives.batch_statistics import action_mean, counted
from jaxrl_llm.objectives.groups import find_groups, rollout_mean, rollout_sum
from jaxrl_llm.objectives.ratios import token_ratio
from jaxrl_llm.types import Batch, Scores


@composable(annotations=logp_name)
def policy_gap(scores: Scores, batch: Batch, *, against: str = "behavior"):
    """A loss of 0 that measures how far the policy is from another one, over the actions and rollouts that count.

    With rho = pi / mu of a token and R the product of those of a rollout, each log kept within +-20:

    * "gap/perplexity": mean over rollouts of exp(-mean log pi), and "gap/perplexity_ratio" of exp(mean log mu - mean log pi);
    * "gap/chi_squared": mean of rho^2, less 1, and "gap/chi_squared_sequence" of R^2: the variance of importance weights;
    * "gap/effective_sample_size": (mean rho)^2 / mean(rho^2), the share of the actions that so weighted samples are worth.

    Args:
      against: as in `token_ratio`.

    Source: diagnostics of verl, https://verl.readthedocs.io/en/latest/algo/rollout_corr.html
    """
    actions, groups = counted(batch), find_groups(batch)
    moved = jax.lax.stop_gradient(token_ratio.function(scores, batch, against=against))
    ratio = jnp.exp(moved)
    square = action_mean(jnp.square(ratio), actions)
    own, other = (without_infinities(masked(logp, actions)) for logp in (scores.logp, logp_of(against, batch)))
    own, other = (rollout_mean(jax.lax.stop_gradient(logp), actions, groups.rollout) for logp in (own, other))
    product = jnp.clip(rollout_sum(moved, actions, groups.rollout), -MAX_LOG_RATIO, MAX_LOG_RATIO)

    def mean(per_rollout):
        return safe_divide(masked(per_rollout, groups.counted).sum(), groups.counted.sum())

    some = (actions.sum() > 0).astype(jnp.float32)
    metrics = {
        "gap/perplexity": mean(jnp.exp(jnp.minimum(-own, MAX_LOG_RATIO))),
        "gap/perplexity_ratio": mean(jnp.exp(jnp.clip(other - own, -MAX_LOG_RATIO, MAX_LOG_RATIO))),
        "gap/chi_squared": square - some,
        "gap/chi_squared_sequence": mean(jnp.exp(2.0 * product)) - some,
        "gap/effective_sample_size": safe_divide(jnp.square(action_mean(ratio, actions)), square),
    }
    return jnp.zeros_like(scores.logp), metrics
