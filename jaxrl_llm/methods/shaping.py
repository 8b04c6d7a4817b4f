"""Methods that differ in the reward: of tools, formats, flaws, likelihood and length, in front of GRPO."""

from jaxrl_llm import estimators
from jaxrl_llm.estimators import chain, early_call_bonus, flaw_penalty, group_advantage, sequence_mean, std_scale, token_mean
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method("OTC: Optimal Tool Calls via Reinforcement Learning (Wang et al., 2025)", "arXiv:2504.14870")
def otc(samples: int = 8, smoothing: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose reward is multiplied by how near an answer is to the least number of tool calls that a right one took.

    Defaults: `smoothing` is that of a reproduction; the rest is ours. `calls` is the number of tool calls of the row.
    Unconfirmed: the paper's smoothing. It keeps the least number of calls of a prompt over the training; here it is the
      group's.
    """
    estimator = chain(estimators.tool_call_reward(smoothing=smoothing), group_advantage(), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method("Understanding Tool-Integrated Reasoning (Lin and Xu, 2025)", "arXiv:2508.19201")
def aspo_tools(
    samples: int = 8, max_rounds: int = 8, strength: float = -2.0, bound: float = 0.7, clip_low: float = 0.2,
    clip_high: float = 0.28,
):  # fmt: skip
    """DAPO whose advantages, not rewards, favour right answers that call a tool early.

    Defaults: Samples, strength and bound are the paper's conservative setting, the clip is DAPO's; `max_rounds` is ours.
      `first_call` is the number of actions before the first call, -1 without. DAPO's overlong penalty is left out.
    """
    bonus = early_call_bonus(strength=strength, bound=bound)
    estimator = chain(estimators.drop_uniform_groups(), group_advantage(), bonus, token_mean())
    return dynamic_sampling(samples=samples, max_rounds=max_rounds), estimator, clipped(clip_low, clip_high)


@method("FAPO: Flawed-Aware Policy Optimization for Efficient and Reliable Reasoning (Ding et al., 2025)", "arXiv:2510.22543")
def fapo(
    samples: int = 8, flaw_size: float = 1.0, max_length: int = 20480, overlong_buffer: int | None = None,
    clip_low: float = 0.2, clip_high: float = 0.28, clip_dual: float = 10.0,
):  # fmt: skip
    """DAPO with less reward for right answers whose reasoning is flawed: better than wrong ones, and worse than sound ones.

    Defaults: Samples, clip and `flaw_size` are the paper's, for rewards of 1 and -1. The overlong penalty is DAPO's, with
      its lengths, see `dapo`; in a run of the program, `max_length` is `rl.max_new_tokens` unless it is set. `flawed` is
      what a judge says.
    """
    buffer = max(max_length // 5, 1) if overlong_buffer is None else overlong_buffer
    overlong = estimators.overlong_penalty(max_length=max_length, buffer=buffer)
    estimator = chain(flaw_penalty(penalty=flaw_size), overlong, group_advantage(), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, dual=clip_dual)


@method("Rewarding the Unlikely: Lifting GRPO Beyond Distribution Sharpening (He et al., 2025)", "arXiv:2506.02355")
def unlikeliness(
    samples: int = 8, strength: float = 0.25, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.1
):
    """GRPO that gives right answers the more the less likely they were, so that it does not only sharpen the policy.

    Defaults: Strength and KL coefficient are the paper's, which makes two updates of each batch; samples and clip are ours.
    """
    estimator = chain(estimators.unlikeliness_reward(strength=strength), group_advantage(), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)


@method("ARM: Adaptive Reasoning Model (Wu et al., 2025)", "arXiv:2505.20258")
def ada_grpo(samples: int = 8, steps_total: int = 1000, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO that multiplies the reward by how rare the format of the answer is in its group, less and less in the training.

    Defaults: All are ours. `steps_total` is the length of the training, and `format` the number of the row's format.
    """
    estimator = chain(estimators.format_diversity_reward(steps_total=steps_total), group_advantage(), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method(
    "Reinforcement Learning for Reasoning in Small LLMs: What Works and What Doesn't (Dang and Ngo, 2025)", "arXiv:2503.16219"
)
def open_rs(
    samples: int = 6, max_length: int = 3584, reward_weights: tuple[float, ...] | None = None, clip_low: float = 0.2,
    clip_high: float = 0.2, kl_coefficient: float = 0.04,
):  # fmt: skip
    """GRPO with a reward that falls along a cosine with the length, for right and for wrong answers.

    Defaults: All are those of the authors' program, but for the length, which it counts in characters, up to 1000 or
      3584; here it is in tokens and, in a run of the program, `rl.max_new_tokens` unless it is set. They add a reward for
      the format, weighed 1 to 2: give two components and `reward_weights=(2.0, 1.0)`. Wrong answers are punished for
      their length, as their script does.
    """
    advantage = group_advantage(scale=std_scale(degrees_of_freedom=1, epsilon=1e-4), reward_weights=reward_weights)
    estimator = chain(estimators.cosine_length_reward(max_length=max_length), advantage, token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)


@method("Stable Reinforcement Learning for Efficient Reasoning (Dai et al., 2025)", "arXiv:2505.18086")
def grpo_lambda(samples: int = 8, share: float = 0.2, strength: float = 0.6, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO that rewards short right answers only for the prompts of the step that are solved most often.

    Defaults: The share is the paper's example, the strength that of a reproduction; the rest is ours.
    Unconfirmed: the paper's strength, and what it does with groups that tie for the last place among the best (all are taken).
    """
    estimator = chain(estimators.efficient_length_reward(share=share, strength=strength), group_advantage(), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method("ShorterBetter: Guiding Reasoning Models to Find Optimal Inference Length (Yi et al., 2025)", "arXiv:2504.21370")
def shorter_better(
    samples: int = 8, length_coefficient: float = 5e-4, clip_low: float = 0.2, clip_high: float = 0.2,
    kl_coefficient: float = 1e-3,
):  # fmt: skip
    """GRPO with a penalty on the distance of the length from that of the shortest right answer of the group.

    Defaults: Coefficient and KL (k3) are those of the authors' program, which takes 0.001 a token from a reward of 2 for right
      answers: for a reward of 1 that is 0.0005. The clip is PPO's.
    """
    estimator = chain(estimators.shortest_correct_penalty(coefficient=length_coefficient), group_advantage(), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)


@method(
    "HAPO: Training Language Models to Reason Concisely via History-Aware Policy Optimization (Huang et al., 2025)",
    "arXiv:2505.11225",
)
def hapo_history(
    samples: int = 8, prompts: int = 100_000, length_weight: float = 1.0, lowest: float = -0.7, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """GRPO with a reward for being shorter than the shortest right answer that the prompt has ever had.

    Defaults: The weight and the lowest reward are those of the authors' program; the rest is ours. `prompts` is the size of the
      table.
    """
    length = estimators.history_length_reward(prompts=prompts, weight=length_weight, lowest=lowest)
    return grouped(samples=samples), chain(length, group_advantage(), sequence_mean()), clipped(clip_low, clip_high)
