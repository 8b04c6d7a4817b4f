"""Rewards and advantages from what policies say: the policy itself, its reference, a teacher."""

import math

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators.base import stateless
from jaxrl_llm.estimators.baselines import leave_one_out_baseline
from jaxrl_llm.estimators.scores import row_scores, set_row_advantage, with_component
from jaxrl_llm.numerics import MAX_LOG_RATIO, log_ratio, masked, safe_divide, without_infinities
from jaxrl_llm.types import Rollouts

LEAVE_ONE_OUT = leave_one_out_baseline()


@stateless(annotations=("proximal_mean_logp",))
def self_certainty_reward(rollouts: Rollouts, *, component: int = 0) -> Rollouts:
    """Replaces the reward by how far the policy's distributions are from uniform: the mean over actions of -mean_v log p(v).

    That is KL(uniform || p) in nats plus log V, V the size of the vocabulary: a constant that no comparison of rows sees.
    Distributions with a token of probability 0 are left out; a row without any other has no reward.

    Args:
      rollouts: with `extras["proximal_mean_logp"]` [N, T] (nats), of the policy before this step's updates.

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


SUPPORTS = ("likelihood", "shortfall")


@stateless(annotations=("reference_logp",))
def support_reward(rollouts: Rollouts, *, coefficient: float = 0.05, floor: float = 1e-3, kind: str = "likelihood") -> Rollouts:
    """Adds to the token reward of each action what its probability p under the reference policy says.

    "likelihood" adds `coefficient` max(log p, log `floor`); "shortfall" adds `coefficient` min(log p - log `floor`, 0), at
    least -20 `coefficient`: nothing within the support, and more and more beyond. Unlike a KL penalty they have no term for
    the policy's entropy: it may settle on one token, as long as the reference knows it.

    Args:
      rollouts: with `extras["reference_logp"]` [N, T].
      coefficient: lambda, per nat.
      floor: epsilon, the probability where the support ends, above 0 and up to 1.
      kind: "likelihood" or "shortfall".

    Raises ValueError: an unknown kind, or a floor out of (0, 1].
    Source: SPOT, https://arxiv.org/abs/2202.06239, whose constraint is on the density of whole actions
    """
    require(kind in SUPPORTS, "kind", kind, f"one of {SUPPORTS}")
    require(0 < floor <= 1, "floor", floor, "above 0 and at most 1")
    logp, end = masked(rollouts.extras["reference_logp"], rollouts.mask), math.log(floor)
    likelihood, shortfall = jnp.maximum(logp, end), jnp.clip(logp - end, -MAX_LOG_RATIO, 0.0)
    amount = likelihood if kind == "likelihood" else shortfall
    earlier = 0.0 if rollouts.token_rewards is None else rollouts.token_rewards
    return rollouts.replace(token_rewards=earlier + coefficient * masked(amount, rollouts.mask))


@stateless(annotations=("behavior_logp", "teacher_logp"))
def teacher_advantage(rollouts: Rollouts, *, emphasis: float = 0.0) -> Rollouts:
    """A_t = w_t a_t with a_t = log teacher - log sampler (nats), and w_t = 1 + `emphasis` (1 - sum_{k<t} |a_k| / sum |a|).

    With the trust region `score_function` it is on-policy distillation by sampled tokens: the gradient of the reverse KL, token
    by token. The weight falls from 1 + `emphasis` at the first action to 1 at the end of what is to be learnt.

    Args:
      rollouts: with `behavior_logp` and `extras["teacher_logp"]` [N, T].
      emphasis: gamma, not negative; 0.5 in the paper.

    Raises ValueError: a negative emphasis.
    Source: IW-OPD, https://arxiv.org/abs/2606.22600
    """
    require(emphasis >= 0, "emphasis", emphasis, "at least 0")
    taken = rollouts.mask * rollouts.valid[:, None]
    gap = masked(log_ratio(rollouts.extras["teacher_logp"], rollouts.behavior_logp), taken)
    size = jnp.abs(gap)
    before = safe_divide(jnp.cumsum(size, axis=1) - size, size.sum(axis=1, keepdims=True))
    return rollouts.replace(advantage=masked((1.0 + emphasis * (1.0 - before)) * gap, taken))


@stateless(annotations=("anchor_rewards",), provides=("optimal_value",))
def optimal_value(rollouts: Rollouts, *, beta: float = 0.5, solvable: bool = True) -> Rollouts:
    """beta log mean exp(r / beta) over `extras["anchor_rewards"]` [N, M], into `extras["optimal_value"]` [N].

    It is the value of the best policy under a KL penalty of weight beta from the reference policy whose rewards these are.

    Args:
      beta: above 0.
      solvable: rows of prompts for which no anchor has a positive reward leave the training.

    Raises ValueError: `beta` is not above 0.
    Source: A*-PO, https://arxiv.org/abs/2505.20686, equation 3
    """
    require(beta > 0, "beta", beta, "above 0")
    rewards = rollouts.extras["anchor_rewards"].astype(jnp.float32)
    value = beta * (jax.nn.logsumexp(rewards / beta, axis=1) - jnp.log(rewards.shape[1]))
    valid = rollouts.valid * (rewards > 0).any(axis=1) if solvable else rollouts.valid
    return rollouts.replace(extras=rollouts.extras | {"optimal_value": value}, valid=valid)
