"""Methods that differ in credit: what the entropy of a token, and its place in other answers, say of it."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    chain,
    conflict_mean,
    conflict_weighting,
    entropy_penalty,
    entropy_shaped_advantage,
    group_advantage,
    sequence_entropy_reward,
    sequence_mean,
    std_scale,
    token_mean,
)
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import choice
from jaxrl_llm.objectives import arithmetic_sequence_ratio, clip, objective, policy
from jaxrl_llm.rollouts import grouped

GTPO_AGGREGATIONS = {"sequence_mean": sequence_mean(), "conflict_mean": conflict_mean()}


@method(
    paper="GTPO: Trajectory-Based Policy Optimization in Large Language Models (Simoni et al., 2025)",
    url="https://arxiv.org/abs/2508.03772",
    conventions={"authors-code": {"aggregation": "conflict_mean"}},
)
def gtpo(
    *, samples: int = 8, entropy_coefficient: float = 0.1, entropy_ceiling: float = 0.7, aggregation: str = "sequence_mean"
):
    """Spares tokens that bad answers share with good ones, counts those twice for the good, and drops uncertain answers.

    Defaults: Entropies and samples are those of the authors' program, which always applies the ceiling; the paper does so only
      where the model began below it. The paper has the mean over each sequence. The program divides that by the number of
      the sequence's conflict tokens too, and sums over sequences where we have the mean: convention "authors-code".
    """
    return (
        grouped(samples=samples),
        chain(
            group_advantage(scale=None),
            conflict_weighting(),
            entropy_penalty(coefficient=entropy_coefficient, ceiling=entropy_ceiling),
            choice("aggregation", aggregation, GTPO_AGGREGATIONS),
        ),
        clipped(),
    )


ENTROPY_SHAPING = {
    "paper": "GTPO and GRPO-S: Token and Sequence-Level Reward Shaping with Policy Entropy (Tan et al., 2025)",
    "url": "https://arxiv.org/abs/2508.04349",
    "certainty": "sketch",
}


@method(**ENTROPY_SHAPING)
def gtpo_entropy(*, samples: int = 8, base: float = 1.0, bonus: float = 0.1, clip_low: float = 0.2, clip_high: float = 0.28):
    """Token rewards by outcome and entropy, standardised over the tokens of right and of wrong answers by themselves.

    Defaults: Base, bonus and clip are the paper's as quoted by others; `samples` is ours.

    Unconfirmed: the paper was read through a reproduction. That standardising each side by itself takes the mean off, so that
      half of the tokens of right answers lose, is what it says.
    """
    return (
        grouped(samples=samples),
        chain(entropy_shaped_advantage(base=base, bonus=bonus), token_mean()),
        clipped(clip_low, clip_high),
    )


@method(**ENTROPY_SHAPING)
def grpo_s(*, samples: int = 8, base: float = 1.0, bonus: float = 0.1, clip_low: float = 0.2, clip_high: float = 0.28):
    """GRPO on sequences whose rewards are shaped by their mean entropy, right ones up, certain wrong ones down.

    Defaults: Base, bonus and clip are the paper's as quoted by others; `samples` is ours.

    Unconfirmed: whether advantages are those of the whole group, as here, or of the right and wrong rows by themselves; that
      the ratio of a sequence is the arithmetic mean of those of its tokens is second-hand.
    """
    return (
        grouped(samples=samples),
        chain(sequence_entropy_reward(base=base, bonus=bonus), group_advantage(scale=std_scale()), sequence_mean()),
        objective(policy(ratio=arithmetic_sequence_ratio(), trust=clip(low=clip_low, high=clip_high))),
    )
