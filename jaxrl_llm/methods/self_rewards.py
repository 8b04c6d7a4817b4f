"""Methods whose reward the policy itself gives: how sure it is, or how likely it finds a known answer."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    answer_likelihood_advantage,
    chain,
    group_advantage,
    self_certainty_reward,
    sequence_mean_token_sum,
    token_mean,
)
from jaxrl_llm.methods.advantages import BESSEL, clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import objective, policy, score_function
from jaxrl_llm.rollouts import grouped


@method(paper="Learning to Reason without External Rewards (Zhao et al., 2025)", url="https://arxiv.org/abs/2505.19590")
def intuitor(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.005):
    """GRPO without labels: the reward is how sure the policy is of its next tokens, by their distance from uniform.

    Defaults: Those of the authors' script, and where it says nothing of verl. The constant log V of self-certainty drops out of
      group statistics. Rewards must be there, of whatever size, as rows without any are left out.
    """
    return (
        grouped(samples=samples),
        chain(self_certainty_reward(), group_advantage(scale=BESSEL), token_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )


@method(paper="Reinforcing General Reasoning without Verifiers (Zhou et al., 2025)", url="https://arxiv.org/abs/2505.21493")
def verifree(*, samples: int = 8):
    """REINFORCE without a verifier: the reward of a reasoning is the probability of the reference answer behind it.

    Defaults: That of the authors' script. The reference answer is written behind each reasoning beforehand, in place of the
      sampled one, by whoever makes the rollouts; `answer_mask` tells where. Rewards must be there, of whatever size.
    """
    return (
        grouped(samples=samples),
        chain(answer_likelihood_advantage(), sequence_mean_token_sum()),
        objective(policy(ratio=None, trust=score_function())),
    )
