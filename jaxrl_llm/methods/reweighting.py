"""Methods that differ in the weight of answers and prompts."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    chain,
    constant,
    entropy_guided_weight,
    group_advantage,
    group_gap_weight,
    max_entropy_weight,
    semantic_entropy_weight,
    sequence_mean,
)
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import grouped


@method(paper="Tiny Model, Big Logic: VibeThinker-1.5B (Xu et al., 2025)", url="https://arxiv.org/abs/2511.06221")
def mgpo(*, samples: int = 8, sharpness: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose prompts count most where half of the answers are right.

    Defaults: All are ours: the report gives no number.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(), max_entropy_weight(sharpness=sharpness), sequence_mean()),
        clipped(clip_low, clip_high),
    )


@method(
    paper="Entropy-guided sequence weighting for efficient exploration in RL-based LLM fine-tuning (Vanlioglu, 2025)",
    url="https://arxiv.org/abs/2503.22456",
    certainty="sketch",
)
def egsw(
    *,
    samples: int = 8,
    entropy_weight: float = 1.0,
    temperature: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.04,
):
    """GRPO whose answers count by a softmax, over the group, of their advantage and entropy.

    Defaults: All are ours.

    Unconfirmed: the paper's numbers, and whether the weights have a gradient (they have none here).
    """
    weight = entropy_guided_weight(entropy_weight=entropy_weight, temperature=temperature)
    return (
        grouped(samples=samples),
        chain(group_advantage(), weight, sequence_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )


@method(
    paper="SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization (Chen et al., 2025)",
    url="https://arxiv.org/abs/2505.12346",
)
def seed_grpo(
    *, samples: int = 8, strength: float = 0.0417, max_length: int = 3000, clip_low: float = 0.2, clip_high: float = 0.2
):
    """Dr. GRPO that learns less from prompts whose answers disagree.

    Defaults: `strength` and the form of the weight, 1 / (1 + strength * H / log G), are those of the authors' program, where it
      changes little; the paper's form is a function of a Monte-Carlo entropy. `max_length` is that of `dr_grpo`; the rest
      is ours.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=None), semantic_entropy_weight(strength=strength), constant(length=max_length)),
        clipped(clip_low, clip_high),
    )


@method(
    paper="Improving Generalization of Alignment with Human Preferences through Group Invariant Learning (Zheng et al., 2023)",
    url="https://arxiv.org/abs/2310.11971",
    certainty="sketch",
)
def group_invariant(*, samples: int = 8, strength: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO with weights that close the gap between the rewards of an easy and a hard part of the data.

    Defaults: All are ours: the paper gives no number.

    Unconfirmed: the paper was read through a review. It learns what is easy with a classifier beside the critic; here `easy` is
      given, the probability of each row. Its policy is PPO's, and its KL penalty is scaled by `easy`, which is left out.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(), group_gap_weight(strength=strength), sequence_mean()),
        clipped(clip_low, clip_high),
    )
