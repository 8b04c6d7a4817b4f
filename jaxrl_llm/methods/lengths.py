"""Methods that differ in the reward for the length of an answer, in front of GRPO."""

from jaxrl_llm.estimators import (
    budget_length_reward,
    chain,
    cosine_length_reward,
    efficient_length_reward,
    group_advantage,
    history_length_reward,
    sequence_mean,
    shortest_correct_penalty,
    std_scale,
    token_mean,
)
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import grouped


@method(
    paper="Reinforcement Learning for Reasoning in Small LLMs: What Works and What Doesn't (Dang and Ngo, 2025)",
    url="https://arxiv.org/abs/2503.16219",
)
def open_rs(
    *,
    samples: int = 6,
    max_length: int = 3584,
    reward_weights: tuple[float, ...] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.04,
):
    """GRPO with a reward that falls along a cosine with the length, for right and for wrong answers.

    Defaults: All are those of the authors' program, but for the length, which it counts in characters, up to 1000 or
      3584; here it is in tokens and, in a run of the program, `rl.max_new_tokens` unless it is set. They add a reward for
      the format, weighed 1 to 2: give two components and `reward_weights=(2.0, 1.0)`. Wrong answers are punished for
      their length, as their script does.
    """
    scale = std_scale(degrees_of_freedom=1, epsilon=1e-4)
    return (
        grouped(samples=samples),
        chain(
            cosine_length_reward(max_length=max_length),
            group_advantage(scale=scale, reward_weights=reward_weights),
            token_mean(),
        ),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )


@method(
    paper="Train Long, Think Short: Curriculum Learning for Efficient Reasoning (Hammoud et al., 2025)",
    url="https://arxiv.org/abs/2508.08940",
)
def train_long_think_short(
    *,
    samples: int = 8,
    budget: float = 256.0,
    decay: float = 0.7,
    interval: int = 200,
    length_weight: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """GRPO with a reward for answers as long as a budget that shrinks in the course of the training.

    Defaults: Samples, budget, decay and, from its budgets, the interval are the paper's. The weight is that of its
      accuracy-heavy mix, 0.3 for the length to 0.6 for the answer; the clip is ours. The prompt has to state the budget.
    """
    length = budget_length_reward(budget=budget, decay=decay, interval=interval, weight=length_weight)
    return grouped(samples=samples), chain(length, group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method(
    paper="Stable Reinforcement Learning for Efficient Reasoning (Dai et al., 2025)",
    url="https://arxiv.org/abs/2505.18086",
    certainty="sketch",
)
def grpo_lambda(*, samples: int = 8, share: float = 0.2, strength: float = 0.6, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO that rewards short right answers only for the prompts of the step that are solved most often.

    Defaults: The share is the paper's example, the strength that of a reproduction; the rest is ours.

    Unconfirmed: the paper's strength, and what it does with groups that tie for the last place among the best (all are taken).
    """
    return (
        grouped(samples=samples),
        chain(efficient_length_reward(share=share, strength=strength), group_advantage(), sequence_mean()),
        clipped(clip_low, clip_high),
    )


@method(
    paper="ShorterBetter: Guiding Reasoning Models to Find Optimal Inference Length (Yi et al., 2025)",
    url="https://arxiv.org/abs/2504.21370",
)
def shorter_better(
    *,
    samples: int = 8,
    length_coefficient: float = 5e-4,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 1e-3,
):
    """GRPO with a penalty on the distance of the length from that of the shortest right answer of the group.

    Defaults: Coefficient and KL (k3) are those of the authors' program, which takes 0.001 a token from a reward of 2 for right
      answers: for a reward of 1 that is 0.0005. The clip is PPO's.
    """
    return (
        grouped(samples=samples),
        chain(shortest_correct_penalty(coefficient=length_coefficient), group_advantage(), sequence_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )


@method(
    paper="HAPO: Training Language Models to Reason Concisely via History-Aware Policy Optimization (Huang et al., 2025)",
    url="https://arxiv.org/abs/2505.11225",
)
def hapo_history(
    *,
    samples: int = 8,
    prompts: int = 100_000,
    length_weight: float = 1.0,
    lowest: float = -0.7,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """GRPO with a reward for being shorter than the shortest right answer that the prompt has ever had.

    Defaults: The weight and the lowest reward are those of the authors' program; the rest is ours. `prompts` is the size of the
      table.
    """
    length = history_length_reward(prompts=prompts, weight=length_weight, lowest=lowest)
    return grouped(samples=samples), chain(length, group_advantage(), sequence_mean()), clipped(clip_low, clip_high)
