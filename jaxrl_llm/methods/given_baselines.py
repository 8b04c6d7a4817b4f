"""Methods whose baseline comes from outside of the group: a greedy answer, a reference policy, or earlier steps."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    chain,
    given_baseline,
    group_advantage,
    role_advantage,
    sequence_mean,
    sequence_mean_token_sum,
    token_mean,
    tracked_advantage,
    whiten,
)
from jaxrl_llm.methods.advantages import clipped, clipped_or_score
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.choices import AGGREGATIONS, choice
from jaxrl_llm.methods.libraries import VERL_CLIP
from jaxrl_llm.objectives import objective, policy, score_function
from jaxrl_llm.rollouts import grouped, grouped_with_anchors, grouped_with_greedy


@method(
    paper="ReMax: A Simple, Effective, and Efficient RL Method for Aligning LLMs (Li et al., 2023)",
    url="https://arxiv.org/abs/2310.10505",
    conventions={"verl-0.10": {"aggregation": "token_mean"} | VERL_CLIP},
)
def remax(
    *,
    samples: int = 1,
    clip_low: float | None = None,
    clip_high: float | None = None,
    clip_dual: float | None = None,
    aggregation: str = "sequence_mean_token_sum",
):
    """REINFORCE with the reward of the greedy answer to the prompt as baseline.

    Defaults: One sample is the paper's. Its KL penalty in the reward is left out. Two bounds take the clipped surrogate of
      several updates, as verl does, in place of the plain gradient.
    """
    return (
        grouped_with_greedy(samples=samples),
        chain(group_advantage(baseline=given_baseline(), scale=None), choice("aggregation", aggregation, AGGREGATIONS)),
        clipped_or_score(clip_low, clip_high, clip_dual),
    )


@method(
    paper="PVPO: Pre-Estimated Value-Based Policy Optimization for Agentic Reasoning (Feng et al., 2025)",
    url="https://arxiv.org/abs/2508.21104",
)
def pvpo(*, samples: int = 8, anchors: int = 8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO with a fixed baseline: the mean reward of a reference policy's answers to the same prompt; no scale.

    Defaults: samples, anchors and clip are ours; the paper's were not found. It samples the reference once for each prompt,
      here that happens when the prompt is drawn. The choice of prompts by it, and answers of a larger model for prompts that
      the reference never solves, are left to the data.
    """
    return (
        grouped_with_anchors(samples=samples, anchors=anchors),
        chain(group_advantage(baseline=given_baseline(annotation="anchor_reward"), scale=None), sequence_mean()),
        clipped(clip_low, clip_high),
    )


@method(paper="Single-stream Policy Optimization (Xu and Ding, 2025)", url="https://arxiv.org/abs/2509.13232")
def spo(
    *,
    samples: int = 1,
    prompts: int = 100_000,
    drift_half_life: float | None = None,
    forgetting_low: float = 0.875,
    forgetting_high: float | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    clip_dual: float = 10.0,
):
    """One sample a prompt, compared with a running estimate of the prompt's success rate, and standardised over the step.

    Defaults: Samples, clip, dual clip and forgetting are those of the authors' recipe. `drift_half_life=None` is its
      constant forgetting, `forgetting_low`; the paper takes 0.06 nats, with forgetting up to 0.96
      (`forgetting_high=None`), and then somebody must measure `drift`. `prompts`, the size of the table, is ours. The
      table begins at one half a success in one; the paper begins with 8 samples a prompt, and draws prompts by their
      uncertainty, which is left to the data.
    """
    constant = drift_half_life is None
    reject_inert(constant and forgetting_high is not None, "forgetting_high", forgetting_high, "drift_half_life is None")
    highest = forgetting_low if constant else 0.96 if forgetting_high is None else forgetting_high
    tracker = tracked_advantage(prompts=prompts, half_life=drift_half_life, forgetting=(forgetting_low, highest))
    return (
        grouped(samples=samples),
        chain(tracker, whiten(over="rows", placement="outside"), token_mean()),
        clipped(clip_low, clip_high, dual=clip_dual),
    )


@method(
    paper="SPIRAL: Self-Play on Zero-Sum Games Incentivizes Reasoning (Liu et al., 2025)",
    url="https://arxiv.org/abs/2506.24119",
)
def rae(*, samples: int = 1, roles: int = 2, decay: float = 0.95):
    """REINFORCE with a running mean of the scores of each role as baseline, for games that the policy plays with itself.

    Defaults: Roles and decay are the paper's; one sample a prompt is ours. `role` is the number of the row's player. As in the
      authors' code the mean is read before it is updated. They update it after each game and keep one for each kind of game;
      here that happens once a step, with the mean score of the role's rows.
    """
    return (
        grouped(samples=samples),
        chain(role_advantage(roles=roles, decay=decay), sequence_mean_token_sum()),
        objective(policy(ratio=None, trust=score_function())),
    )
