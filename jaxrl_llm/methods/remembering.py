"""Methods that remember rows or prompts of earlier steps: replay, drafts, partial rollouts, curricula."""

from jaxrl_llm.estimators import chain, group_advantage, sequence_mean, token_mean
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import by_source, clip, objective, policy, scaled
from jaxrl_llm.rollouts import begun, chosen, replayed, resumed, speculative
from jaxrl_llm.rollouts.choosing import (
    LARGEST, by_acceptance, by_difficulty, domain_bandit, knapsack, uncertainty, variance_mix, worst_domain,
)  # fmt: skip


@method("RePO: Replay-Enhanced Policy Optimization (Li et al., 2025)", "arXiv:2506.09340")
def repo(
    row_width: int = 768, samples: int = 8, taken: int = 8, capacity: int = 4096, components: int = 1, rule: str = "best",
    least: int = 16, apart: bool = True, coefficient: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """GRPO beside a second loss on earlier answers to the same prompt, clipped against the policy that sampled them.

    Defaults: 8 replayed rows, once 16 are stored, by reward, are those of the authors' script, whose buffer has 16 a prompt;
      that of `capacity` rows for all prompts is ours. `apart=False` standardises both groups together.
    """
    own = policy(trust=clip(low=clip_low, high=clip_high))
    store = {"capacity": capacity, "row_width": row_width, "components": components}
    strategy = replayed(samples=samples, taken=taken, rule=rule, least=least, apart=apart, **store)
    terms = by_source(terms=((0, own), (2, scaled(term=own, coefficient=coefficient))), others="replay")
    return strategy, chain(group_advantage(), sequence_mean()), objective(terms)


@method("Replay across Experiments (Tirumala et al., 2023)", "arXiv:2311.15951")
def mixed_replay(
    row_width: int = 768, samples: int = 8, taken: int = 8, capacity: int = 4096, components: int = 1, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """Half of each step is replayed, whatever prompt it answers: uniform over all that was sampled before.

    Defaults: A half is the paper's, which replays earlier experiments; symmetric sampling of RLPD (arXiv:2302.02948) is the
      same. The loss, clipped against the policies that sampled, is ours.
    """
    store = {"capacity": capacity, "row_width": row_width, "components": components}
    strategy = replayed(samples=samples, taken=taken, rule="random", of="any", **store)
    own = policy(trust=clip(low=clip_low, high=clip_high))
    terms = by_source(terms=((0, own), (2, own)), others="replay")
    return strategy, chain(group_advantage(), sequence_mean()), objective(terms)


@method("SPEC-RL: Accelerating On-Policy RL with Speculative Rollouts (Liu et al., 2025)", "arXiv:2509.23232")
def spec_rl(
    row_width: int = 768, samples: int = 8, capacity: int = 4096, components: int = 1, lenience: float = 0.5,
    clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """GRPO whose answers begin with what the policy would still write of those of the last visit.

    Defaults: The lenience e^0.5 is the paper's recommendation.
    """
    strategy = speculative(samples=samples, capacity=capacity, row_width=row_width, components=components, lenience=lenience)
    return strategy, chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Kimi k1.5: Scaling Reinforcement Learning with LLMs (Kimi Team, 2025)", "arXiv:2501.12599")
def partial_rollouts(
    row_width: int = 768, samples: int = 8, window: int = 128, capacity: int = 1024, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """GRPO whose long answers go on in the next step; each token has the ratio to the policy that wrote it.

    Defaults: All are ours; the paper has another loss on such rows (`opmd`).
    """
    strategy = resumed(samples=samples, window=window, capacity=capacity, row_width=row_width)
    return strategy, chain(group_advantage(), token_mean()), clipped(clip_low, clip_high)


def _curriculum(samples: int, examples: int, clip_low: float, clip_high: float, **rules):
    strategy = chosen(samples=samples, examples=examples, **rules)
    return strategy, chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation (Li et al., 2025)", "arXiv:2509.25849")
def knapsack_grpo(
    examples: int = LARGEST, samples: int = 8, least: int = 2, most: int = 128, clip_low: float = 0.2, clip_high: float = 0.2
):
    """GRPO that shares out the samples of a step where the last visit says that one more teaches most.

    Defaults: The value of a sample is the paper's, whose prompts get up to 93; `least` is ours.
    """
    return _curriculum(samples, examples, clip_low, clip_high, shares=knapsack(least=least, most=most))


@method("Optimizing Chain-of-Thought Reasoners via Gradient Variance Minimization (Yao et al., 2025)", "arXiv:2505.02391")
def gvm_grpo(
    examples: int = LARGEST, samples: int = 8, alpha: float = 1e-3, beta: float = 2.0, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """GRPO that samples prompts more often where fewer samples are right, to even out the variance of their gradients.

    Defaults: alpha and beta are those of the authors' program. The norm of a prompt's gradient, by which it weighs too, is
      left out, and the share of right samples is that of the last visit in place of a pilot.
    """
    return _curriculum(samples, examples, clip_low, clip_high, shares=by_acceptance(alpha=alpha, beta=beta))


@method("MMR1: Enhancing Multimodal Reasoning with Variance-Aware Sampling (Leng et al., 2025)", "arXiv:2509.21268")
def variance_aware(
    examples: int = LARGEST, samples: int = 8, share: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2
):
    """GRPO that draws half of its prompts in proportion to the variance of their rewards.

    Defaults: The half is the paper's. Shares of right rows are those of training in place of a probe of 8 samples every 4
    steps.
    """
    return _curriculum(samples, examples, clip_low, clip_high, draws=variance_mix(share=share))


@method("DUMP: Automated Distribution-Level Curriculum Learning (Wang et al., 2025)", "arXiv:2504.09710")
def dump(
    examples: int = LARGEST, samples: int = 8, column: str = "domain", temperature: float = 0.1, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """GRPO over a mixture of domains that follows a bandit: where rewards differ most, and where little was seen.

    Defaults: The temperature is the paper's. The mean |r - mean r| over all visits stands for the mean |advantage| of the
    last 300 rows.
    """
    return _curriculum(samples, examples, clip_low, clip_high, draws=domain_bandit(column=column, temperature=temperature))


@method("Solving robust MDPs as a sequence of static RL problems (Zouitine et al., 2024)", "arXiv:2410.06212")
def worst_case(
    examples: int = LARGEST, samples: int = 8, column: str = "domain", clip_low: float = 0.2, clip_high: float = 0.2
):
    """GRPO on the domain in which the policy is worst.

    Defaults: All are ours; the paper finds the worst model of an environment and keeps a policy for each.
    """
    return _curriculum(samples, examples, clip_low, clip_high, draws=worst_domain(column=column))


@method("CRAFT-GUI: Curriculum-Reinforced Agent For GUI Tasks (Nong et al., 2025)", "arXiv:2508.11360")
def staged_difficulty(
    examples: int = LARGEST, samples: int = 8, stages: tuple[tuple[int, float], ...] = ((0, 1.0), (100, 2.0), (200, 3.0)),
    column: str = "difficulty", clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """GRPO on easy prompts first: each stage lets in prompts up to a number in a column.

    Defaults: All are ours.
    Unconfirmed: the paper's buckets and stages.
    """
    return _curriculum(samples, examples, clip_low, clip_high, draws=by_difficulty(stages=stages, column=column))


@method("Single-stream Policy Optimization (Xu et al., 2025), its prompts", "arXiv:2509.13232")
def uncertain_prompts(
    examples: int = LARGEST, samples: int = 8, epsilon: float = 0.05, clip_low: float = 0.2, clip_high: float = 0.2
):
    """GRPO that draws prompts by the deviation of their last visit's rewards.

    Defaults: The rule is that of SPO, whose baseline is `spo`; groups and loss are GRPO's.
    """
    return _curriculum(samples, examples, clip_low, clip_high, draws=uncertainty(epsilon=epsilon))


@method("Jump-Start Reinforcement Learning (Uchendu et al., 2022)", "arXiv:2204.02372")
def jump_start(samples: int = 8, tokens: int = 64, shrinks_over: int = 100, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO on the rest of answers that the data's own completion begins, with less and less of it.

    Defaults: All are ours; the paper shortens the guide's part when the learner's return holds.
    """
    strategy = begun(samples=samples, tokens=tokens, shrinks_over=shrinks_over)
    return strategy, chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Dataset Reset Policy Optimization for RLHF (Chang et al., 2024)", "arXiv:2404.08495")
def dr_po(samples: int = 8, share: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO on answers that go on from a random beginning of the data's own completion.

    Defaults: All prompts begin so in the authors' program. The paper's learner is PPO with a KL in the reward; groups stand
      for its critic.
    """
    return begun(samples=samples, share=share), chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)
