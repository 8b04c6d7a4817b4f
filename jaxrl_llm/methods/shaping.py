"""Methods that differ in the reward: what it says of tools, formats, flaws and likelihood, in front of GRPO."""

from jaxrl_llm.estimators import (
    chain,
    drop_uniform_groups,
    early_call_bonus,
    flaw_penalty,
    format_diversity_reward,
    group_advantage,
    overlong_penalty,
    sequence_mean,
    token_mean,
    tool_call_reward,
    unlikeliness_reward,
)
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method(
    paper="OTC: Optimal Tool Calls via Reinforcement Learning (Wang et al., 2025)",
    url="https://arxiv.org/abs/2504.14870",
    certainty="sketch",
)
def otc(*, samples: int = 8, smoothing: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose reward is multiplied by how near an answer is to the least number of tool calls that a right one took.

    Defaults: `smoothing` is that of a reproduction; the rest is ours. `calls` is the number of tool calls of the row.

    Unconfirmed: the paper's smoothing. It keeps the least number of calls of a prompt over the training; here it is the
      group's.
    """
    return (
        grouped(samples=samples),
        chain(tool_call_reward(smoothing=smoothing), group_advantage(), sequence_mean()),
        clipped(clip_low, clip_high),
    )


@method(paper="Understanding Tool-Integrated Reasoning (Lin and Xu, 2025)", url="https://arxiv.org/abs/2508.19201")
def aspo_tools(
    *,
    samples: int = 8,
    max_rounds: int = 8,
    strength: float = -2.0,
    bound: float = 0.7,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
):
    """DAPO whose advantages, not rewards, favour right answers that call a tool early.

    Defaults: Samples, strength and bound are the paper's conservative setting, the clip is DAPO's; `max_rounds` is ours.
      `first_call` is the number of actions before the first call, -1 without. DAPO's overlong penalty is left out.
    """
    return (
        dynamic_sampling(samples=samples, max_rounds=max_rounds),
        chain(drop_uniform_groups(), group_advantage(), early_call_bonus(strength=strength, bound=bound), token_mean()),
        clipped(clip_low, clip_high),
    )


@method(
    paper="FAPO: Flawed-Aware Policy Optimization for Efficient and Reliable Reasoning (Ding et al., 2025)",
    url="https://arxiv.org/abs/2510.22543",
)
def fapo(
    *,
    samples: int = 8,
    flaw_size: float = 1.0,
    max_length: int = 20480,
    overlong_buffer: int | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    clip_dual: float = 10.0,
):
    """DAPO with less reward for right answers whose reasoning is flawed: better than wrong ones, and worse than sound ones.

    Defaults: Samples, clip and `flaw_size` are the paper's, for rewards of 1 and -1. The overlong penalty is DAPO's, with
      its lengths, see `dapo`; in a run of the program, `max_length` is `rl.max_new_tokens` unless it is set. `flawed` is
      what a judge says.
    """
    buffer = max(max_length // 5, 1) if overlong_buffer is None else overlong_buffer
    return (
        grouped(samples=samples),
        chain(
            flaw_penalty(penalty=flaw_size),
            overlong_penalty(max_length=max_length, buffer=buffer),
            group_advantage(),
            token_mean(),
        ),
        clipped(clip_low, clip_high, dual=clip_dual),
    )


@method(
    paper="Rewarding the Unlikely: Lifting GRPO Beyond Distribution Sharpening (He et al., 2025)",
    url="https://arxiv.org/abs/2506.02355",
)
def unlikeliness(
    *, samples: int = 8, strength: float = 0.25, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.1
):
    """GRPO that gives right answers the more the less likely they were, so that it does not only sharpen the policy.

    Defaults: Strength and KL coefficient are the paper's, which makes two updates of each batch; samples and clip are ours.
    """
    return (
        grouped(samples=samples),
        chain(unlikeliness_reward(strength=strength), group_advantage(), sequence_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )


@method(paper="ARM: Adaptive Reasoning Model (Wu et al., 2025)", url="https://arxiv.org/abs/2505.20258")
def ada_grpo(*, samples: int = 8, steps_total: int = 1000, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO that multiplies the reward by how rare the format of the answer is in its group, less and less in the training.

    Defaults: All are ours. `steps_total` is the length of the training, and `format` the number of the row's format.
    """
    return (
        grouped(samples=samples),
        chain(format_diversity_reward(steps_total=steps_total), group_advantage(), sequence_mean()),
        clipped(clip_low, clip_high),
    )
