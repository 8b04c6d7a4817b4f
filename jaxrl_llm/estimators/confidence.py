"""Rewards from what the policy itself thinks: how sure it is, or how likely it finds a known answer."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.baselines import leave_one_out_baseline
from jaxrl_llm.estimators.components import with_component
from jaxrl_llm.estimators.scores import row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, safe_divide, without_infinities
from jaxrl_llm.types import Rollouts

LEAVE_ONE_OUT = leave_one_out_baseline()


@stateless(annotations=("proximal_mean_logp",))
def self_certainty_reward(rollouts: Rollouts, *, component: int = 0) -> Rollouts:
    """Replaces the reward by how far the policy's distributions are from uniform: the mean over actions of -mean_v log p(v).

    That is KL(uniform || p) in nats plus log V, V the size of the vocabulary: a constant that no comparison of rows sees.
    Distributions with a token of probability 0 are left out; a row without any other has no reward.

    Args:
      rollouts: with `extras["proximal_mean_logp"]` [N, T] (nats), of the policy before this step's updates.
      component: the reward component that is replaced.

    Source: Intuitor, https://arxiv.org/abs/2505.19590; self-certainty, https://arxiv.org/abs/2502.18581
    """
    surprise = -masked(rollouts.extras["proximal_mean_logp"], rollouts.mask)
    count = (rollouts.mask * jnp.isfinite(surprise)).sum(axis=1)
    mean = safe_divide(without_infinities(surprise).sum(axis=1), count)
    return with_component(rollouts, component, jnp.where(count > 0, mean, jnp.nan))


@stateless(annotations=("proximal_logp", "answer_mask"))
def answer_likelihood_advantage(rollouts: Rollouts, *, baseline: Composable = LEAVE_ONE_OUT) -> Rollouts:
    """The reward R of a reasoning is the probability of the reference answer behind it; no other reward has a part.

    A row is prompt, sampled reasoning and the reference answer, written behind it by somebody else; both are actions. R =
    exp(sum of log p over the answer). Actions of the reasoning have the advantage R - baseline, those of the answer R, so that
    -A log pi is an estimate of the whole gradient of E[R]: of where the reasoning leads, and of what is answered behind it.
    A row without a reference answer, such as a reasoning that never came to an end, has R = 0. Rows without any reward leave
    statistics and training, as everywhere.

    Args:
      rollouts: with `extras["answer_mask"]` [N, T], 1 at the actions of the reference answer, and `extras["proximal_logp"]`.
      baseline: of the reasoning, see `baselines`.

    Source: VeriFree, https://arxiv.org/abs/2505.21493
    """
    answer = rollouts.mask * (rollouts.extras["answer_mask"] > 0)
    likelihood = jnp.exp(masked(rollouts.extras["proximal_logp"], answer).sum(axis=1))
    reward = masked(likelihood, answer.sum(axis=1))
    _, present = row_scores(rollouts)
    found = set_row_advantage(rollouts, reward - baseline(reward, present, rollouts), present)
    of_answer = masked(masked(reward, present)[:, None], answer)
    return found.replace(advantage=jnp.where(answer > 0, of_answer, found.advantage))
