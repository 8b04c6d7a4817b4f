"""Methods that differ in the choice: which answers, tokens and prompts count, and how much."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    chain,
    down_sample,
    drop_surplus_negatives,
    exponential_weight,
    gae,
    group_advantage,
    kl_in_reward,
    policy_filtration,
    token_mean,
    whiten,
)
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.critics import Critic
from jaxrl_llm.objectives import objective, policy, score_function, value_loss
from jaxrl_llm.rollouts import grouped


@method(
    paper="Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework (Wang et al., 2025)",
    url="https://arxiv.org/abs/2509.22115",
    certainty="sketch",
)
def d3s(
    *,
    samples: int = 8,
    rows: float = 0.5,
    tokens: float = 0.5,
    steps_total: int = 1000,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """GRPO on the answers of the step whose advantages vary most, and on their tokens with the largest |A| * entropy.

    Defaults: All are ours. `rows` and `tokens` are the shares at the start; both grow to 1 along a line within
      `steps_total` steps.

    Unconfirmed: the paper's shares at the start and at the end.
    """
    kept = down_sample(rows=(rows, 1.0), tokens=(tokens, 1.0), steps_total=steps_total)
    return grouped(samples=samples), chain(group_advantage(), kept, token_mean()), clipped(clip_low, clip_high)


@method(
    paper="Policy Filtration for RLHF to Mitigate Noise in Reward Models (Zhang et al., 2024)",
    url="https://arxiv.org/abs/2409.06957",
)
def pf_ppo(
    *,
    samples: int = 5,
    keep: str = "best_and_random",
    trace_decay: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_coefficient: float = 0.5,
    value_clip: float | None = 0.2,
    kl_coefficient: float = 0.01,
):
    """PPO on two of the answers to each prompt, the best and another, where a reward model is most reliable.

    Defaults: Samples, rows kept and KL coefficient are those of the authors' program; the others are ours, as in `ppo`.
    """
    return (
        grouped(samples=samples),
        chain(
            policy_filtration(keep=keep),
            kl_in_reward(coefficient=kl_coefficient),
            gae(trace_decay=trace_decay),
            whiten(),
            token_mean(),
        ),
        clipped(clip_low, clip_high),
        Critic(loss=value_loss(coefficient=value_coefficient, clip=value_clip)),
    )


GROUP_REINFORCE = {
    "paper": "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm (Yao et al., 2025)",
    "url": "https://arxiv.org/abs/2509.24203",
}


@method(**GROUP_REINFORCE, certainty="sketch")
def red_drop(*, samples: int = 8):
    """REINFORCE with group advantages, on no more bad answers than good ones of each group.

    Defaults: `samples` is ours.

    Unconfirmed: how many bad answers the paper leaves (as many as there are good ones, here), and which (drawn by chance).
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=None), drop_surplus_negatives(), token_mean()),
        objective(policy(ratio=None, trust=score_function())),
    )


@method(**GROUP_REINFORCE)
def red_weight(*, samples: int = 8, temperature: float = 1.0):
    """REINFORCE with group advantages multiplied by their exponential, so that good answers count more than bad ones.

    Defaults: The temperature is the paper's; `samples` is ours.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=None), exponential_weight(temperature=temperature), token_mean()),
        objective(policy(ratio=None, trust=score_function())),
    )
