"""Methods whose change is on the optimizer's side: its steps, its direction, several gradients, or none."""

from jaxrl_llm.controllers import until_drift
from jaxrl_llm.estimators import (
    chain, fair_rewards, group_advantage, leave_one_out_baseline, objective_advantages, sequence_mean_token_sum, token_mean,
)  # fmt: skip
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.updates import Evolution, Wrap
from jaxrl_llm.objectives import objective, policy, score_function, unclipped
from jaxrl_llm.optimizers.evolution import best_comparisons
from jaxrl_llm.rollouts import grouped


def _mean_reward(samples: int) -> tuple:
    """The plain gradient of the mean reward, with the mean of the other samples as baseline."""
    estimator = chain(group_advantage(baseline=leave_one_out_baseline(), scale=None), sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))


@method("Slow-Fast Policy Optimization: Reposition-Before-Update for LLM Reasoning (Wang et al., 2025)", "arXiv:2510.04072")
def sfpo(samples: int = 8, fast_steps: int = 3, reposition: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose step on a batch is several fast ones, a part of the way back, and one more from there.

    Defaults: All are ours. The part of the way that is kept, `reposition`, is 0 once the entropy has left its recent past.
    Unconfirmed: the number of fast steps, the part, window and threshold.
    """
    wrap = Wrap({"slow_fast": {"fast_steps": fast_steps, "reposition": "reposition"}})
    estimator, loss = chain(group_advantage(), token_mean()), clipped(clip_low, clip_high)
    return grouped(samples=samples), estimator, loss, {"reposition": until_drift(value=reposition)}, wrap


@method("Enhancing Policy Gradient with the Polyak Step-Size Adaption (Li et al., 2024)", "arXiv:2404.07525")
def polyak_pg(samples: int = 8, best: float = 1.0):
    """Policy gradient whose step is the distance of the mean reward from the best one, over the square of the gradient.

    Defaults: All are ours; `best` is the reward of a right answer. The learning rate of the configuration bounds the step: it
      is one of plain gradients and should be large.
    Unconfirmed: the paper estimates the best reward by a second policy; here it is known.
    """
    return *_mean_reward(samples), Wrap({"polyak_step": {"best": best}})


@method(
    paper="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies "
    "(Fatkhullin et al., 2023)",
    url="https://arxiv.org/abs/2302.01734",
)
def n_pg_igt(samples: int = 8, share: float = 0.1):
    """Policy gradient at a look-ahead, as normalised momentum that needs no correction for older parameters.

    Defaults: Samples and the share of the new gradient are ours; in the paper the latter and the learning rate, here that of
      the configuration, fall with the step.
    """
    return *_mean_reward(samples), Wrap({"implicit_transport": {"share": share}})


@method(
    "Variance Reduced Policy Gradient Method for Multi-Objective Reinforcement Learning (Guidobene et al., 2025)",
    "arXiv:2508.10608",
)
def mo_tsivr_pg(samples: int = 8, components: int = 2, floor: float = 0.1, decay: float = 0.9, share: float = 0.5):
    """Rewards weighed by the slope of a fair sum of their means, under a gradient that corrects those of earlier steps.

    Defaults: All are ours. `components` is the number of rewards, and `share` that of the new gradient alone.
    Unconfirmed: the scalarisation, sum_k log(`floor` + J_k), which the paper leaves open, and that one share takes the place of
      its large batches; it bounds the step, here `clip_norm`.
    """
    rewards = fair_rewards(objectives=components, floor=floor, decay=decay)
    estimator = chain(rewards, group_advantage(scale=None), sequence_mean_token_sum())
    momentum = Wrap({"recursive_momentum": {"share": share}})
    return grouped(samples=samples), estimator, objective(policy(trust=unclipped())), momentum


@method("Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting (Lu et al., 2025)", "arXiv:2509.11452")
def dynamic_weights(samples: int = 8, components: int = 2, rate: float = 0.1, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO on each reward by itself; those whose gradients agree with all of them gain weight.

    Defaults: The rate is that of the authors' program, 1e-6 / 1e-5; the others are ours. `components` is the number of rewards.
    """
    estimator = chain(objective_advantages(inner=group_advantage(), objectives=components), token_mean())
    weights = Wrap({"objective_weights": {"objectives": components, "rate": rate}})
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high), weights


@method(
    "Solving Deep Reinforcement Learning Tasks with Evolution Strategies and Linear Policy Networks (Wong et al., 2024)",
    "arXiv:2402.06912",
)
def evolution_strategies(samples: int = 1, pairs: int = 16, scale: float = 0.01):
    """Perturbed parameters answer the same prompts, and the policy moves along the noise of those with higher ranks.

    Defaults: All are ours. No gradient is taken; the optimizer of the configuration makes the step.
    """
    return grouped(samples=samples), chain(), objective(), Evolution(pairs=pairs, scale=scale)


@method(
    "Zeroth-Order Optimization Meets Human Feedback: Provable Learning via Ranking Oracles (Tang et al., 2023)",
    "arXiv:2303.03751",
)
def zo_rank_sgd(samples: int = 1, pairs: int = 8, scale: float = 0.01, best: int = 4):
    """Evolution from comparisons alone: the order of the best perturbations, which are better than all others.

    Defaults: All are ours.
    Unconfirmed: noise has both signs here, and there is no search along the line, which the optimizer's step stands for.
    """
    return grouped(samples=samples), chain(), objective(), Evolution(pairs, scale, best_comparisons(best=best))
