"""Methods that need no labels: the answers of a group judge each other."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    chain,
    group_advantage,
    majority_reward,
    novelty_reward,
    pseudo_label_advantage,
    sequence_mean,
    token_mean,
)
from jaxrl_llm.methods.advantages import BESSEL, clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import grouped


@method(paper="TTRL: Test-Time Reinforcement Learning (Zuo et al., 2025)", url="https://arxiv.org/abs/2504.16084")
def ttrl(*, samples: int = 32, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO without labels: right is what most answers of the group say.

    Defaults: The paper votes with 64 samples and trains on 32 of them; all of these do both here. The clip is ours.
      Rewards must be there, of whatever size, as rows without any are left out.
    """
    return grouped(samples=samples), chain(majority_reward(), group_advantage(), token_mean()), clipped(clip_low, clip_high)


@method(paper="Evolving Language Models without Labels (Zhou et al., 2025)", url="https://arxiv.org/abs/2509.15194")
def evol_rl(
    *,
    samples: int = 32,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    entropy_coefficient: float = 0.003,
    kl_coefficient: float = 1e-3,
):
    """GRPO without labels: the majority decides the sign of the reward, and novelty of the reasoning its size.

    Defaults: All are those of the authors' program, which votes with 64 samples and trains on 32 of them; all of these do both
      here. `embedding` is that of the reasoning.
    """
    return (
        grouped(samples=samples),
        chain(novelty_reward(), group_advantage(scale=BESSEL), token_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient, entropy_coefficient=entropy_coefficient),
    )


@method(
    paper="RESTRAIN: From Spurious Votes to Signals (Yu et al., 2025)",
    url="https://arxiv.org/abs/2510.02172",
    certainty="sketch",
)
def restrain(
    *,
    samples: int = 16,
    center: float = 1.0,
    width: float = 0.5,
    quorum: int = 4,
    offset: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 1e-3,
):
    """GRPO without labels: each answer is taken for the right one with a weight by its frequency; without agreement all lose.

    Defaults: All are ours.

    Unconfirmed: every number of the paper. Its weight of a prompt by the agreement of the base model, measured
      beforehand, is left out. The loss of the paper is a weighted sum of clipped losses, one for each answer; here the
      advantages are summed, which is the same where nothing is clipped.
    """
    estimator = pseudo_label_advantage(center=center, width=width, quorum=quorum, offset=offset)
    return (
        grouped(samples=samples),
        chain(estimator, sequence_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )
