"""Methods that differ in the baseline: what a sampled answer is compared with, and what the difference is divided by."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    blend,
    chain,
    component_advantage,
    group_advantage,
    length_weighted_baseline,
    mean_baseline,
    sequence_mean,
    std_scale,
    token_mean,
    whiten,
)
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import Objective, clip, entropy_bonus, kl, objective, policy, score_function
from jaxrl_llm.rollouts import grouped

BESSEL = std_scale(degrees_of_freedom=1)


def clipped(
    low: float = 0.2,
    high: float = 0.2,
    *,
    dual: float | None = None,
    kl_coefficient: float = 0.0,
    kl_kind: str = "k3",
    entropy_coefficient: float = 0.0,
) -> Objective:
    """The clipped surrogate on token ratios, with a KL term and an entropy bonus where their coefficients are not 0."""
    terms = (kl(coefficient=kl_coefficient, kind=kl_kind),) if kl_coefficient else ()
    terms += (entropy_bonus(coefficient=entropy_coefficient),) if entropy_coefficient else ()
    return objective(policy(trust=clip(low=low, high=high, dual=dual)), *terms)


@method(paper="On-Policy RL with Optimal Reward Baseline (Hao et al., 2025)", url="https://arxiv.org/abs/2505.23585")
def opo(*, samples: int = 8):
    """REINFORCE with the length-weighted mean of the group as baseline, which has the least variance; one update a step.

    Defaults: `samples` is ours. The mean over tokens is that of the authors' program; the derivation sums over them.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(baseline=length_weighted_baseline(), scale=None), token_mean()),
        objective(policy(ratio=None, trust=score_function())),
    )


@method(
    paper="NGRPO: Negative-enhanced Group Relative Policy Optimization (Nan et al., 2025)",
    url="https://arxiv.org/abs/2509.18851",
)
def ngrpo(*, samples: int = 8, virtual_reward: float | None = 1.0, clip_low: float = 0.16, clip_high: float = 0.24):
    """GRPO with one more sample of the highest reward, which nobody drew, in mean and deviation: all wrong is bad, too.

    Defaults: All are the authors' script's. `virtual_reward=None` leaves the sample out. It also leaves out groups of right
      answers before the mean over tokens; here they count in it, with advantages of 0.
    """
    virtual = () if virtual_reward is None else (virtual_reward,)
    baseline, scale = mean_baseline(virtual=virtual), std_scale(degrees_of_freedom=1, virtual=virtual)
    return (
        grouped(samples=samples),
        chain(group_advantage(baseline=baseline, scale=scale), token_mean()),
        clipped(clip_low, clip_high),
    )


@method(paper="Part I: Tricks or Traps? (Liu et al., 2025)", url="https://arxiv.org/abs/2508.08221")
def lite_ppo(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO with the deviation of all rewards of the step in the place of the group's, and a mean over tokens; no KL.

    Defaults: All are the paper's.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=std_scale(over="batch", degrees_of_freedom=1)), token_mean()),
        clipped(clip_low, clip_high),
    )


@method(
    paper="Stratified GRPO: Handling Structural Heterogeneity in RL of LLM Search Agents (Zhu et al., 2025)",
    url="https://arxiv.org/abs/2510.06214",
)
def stratified_grpo(*, samples: int = 8, stratum_share: float = 0.8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO within strata of the group, such as answers with as many searches, blended with GRPO over the whole group.

    Defaults: All are ours, epsilon and the kind of the deviation (Bessel's) too; the form is that of public code. `stratum` is
      the number of the row's stratum.
    """
    within = group_advantage(baseline=mean_baseline(over="stratum"), scale=std_scale(over="stratum", degrees_of_freedom=1))
    overall = group_advantage(scale=BESSEL)
    return (
        grouped(samples=samples),
        chain(blend((stratum_share, within), (round(1 - stratum_share, 9), overall)), sequence_mean()),
        clipped(clip_low, clip_high),
    )


@method(paper="REINFORCE++ (Hu et al., 2025)", url="https://arxiv.org/abs/2501.03262")
def reinforce_plus_plus_baseline(
    *, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 1e-3
):
    """The group's mean as baseline, and the deviation of the advantages of the whole step as scale; a k2 penalty in the loss.

    Defaults: The kind of the penalty is the paper's; all numbers are ours.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=None), whiten(), token_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient, kl_kind="k2"),
    )


@method(
    paper="GDPO: Group reward-Decoupled Normalization Policy Optimization (Liu et al., 2026)",
    url="https://arxiv.org/abs/2601.05242",
)
def gdpo(
    *,
    samples: int = 8,
    reward_weights: tuple[float, ...] | None = None,
    epsilon: float = 1e-4,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """GRPO for several rewards: each is standardised within the group by itself, and their sum over the step.

    Defaults: `epsilon` is TRL's; the other numbers are ours. `reward_weights=None` is 1 for each component.
    """
    scale = std_scale(degrees_of_freedom=1, epsilon=epsilon)
    return (
        grouped(samples=samples),
        chain(
            component_advantage(scale=scale, reward_weights=reward_weights),
            whiten(over="rows", epsilon=epsilon, placement="outside"),
            sequence_mean(),
        ),
        clipped(clip_low, clip_high),
    )
