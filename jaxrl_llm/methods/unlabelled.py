"""Methods without labels: the answers of a group, or the policy itself, say what is right."""

from jaxrl_llm import estimators
from jaxrl_llm.estimators import chain, group_advantage, majority_reward, novelty_reward, sequence_mean, token_mean
from jaxrl_llm.methods.advantages import BESSEL, clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import objective, policy, score_function
from jaxrl_llm.rollouts import grouped


@method("TTRL: Test-Time Reinforcement Learning (Zuo et al., 2025)", "arXiv:2504.16084")
def ttrl(samples: int = 32, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO without labels: right is what most answers of the group say.

    Defaults: The paper votes with 64 samples and trains on 32 of them; all of these do both here. The clip is ours.
      Rewards must be there, of whatever size, as rows without any are left out.
    """
    return grouped(samples=samples), chain(majority_reward(), group_advantage(), token_mean()), clipped(clip_low, clip_high)


@method("Evolving Language Models without Labels (Zhou et al., 2025)", "arXiv:2509.15194")
def evol_rl(
    samples: int = 32, clip_low: float = 0.2, clip_high: float = 0.28, entropy_coefficient: float = 0.003,
    kl_coefficient: float = 1e-3,
):  # fmt: skip
    """GRPO without labels: the majority decides the sign of the reward, and novelty of the reasoning its size.

    Defaults: All are those of the authors' program, which votes with 64 samples and trains on 32 of them; all of these do both
      here. `embedding` is that of the reasoning.
    """
    loss = clipped(clip_low, clip_high, kl_coefficient=kl_coefficient, entropy_coefficient=entropy_coefficient)
    return grouped(samples=samples), chain(novelty_reward(), group_advantage(scale=BESSEL), token_mean()), loss


@method("RESTRAIN: From Spurious Votes to Signals (Yu et al., 2025)", "arXiv:2510.02172")
def restrain(
    samples: int = 16, center: float = 1.0, width: float = 0.5, quorum: int = 4, offset: float = 1.0, clip_low: float = 0.2,
    clip_high: float = 0.2, kl_coefficient: float = 1e-3,
):  # fmt: skip
    """GRPO without labels: each answer is taken for the right one with a weight by its frequency; without agreement all lose.

    Defaults: All are ours.
    Unconfirmed: every number of the paper. Its weight of a prompt by the agreement of the base model, measured
      beforehand, is left out. The loss of the paper is a weighted sum of clipped losses, one for each answer; here the
      advantages are summed, which is the same where nothing is clipped.
    """
    estimator = estimators.pseudo_label_advantage(center=center, width=width, quorum=quorum, offset=offset)
    loss = clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)
    return grouped(samples=samples), chain(estimator, sequence_mean()), loss


@method("Learning to Reason without External Rewards (Zhao et al., 2025)", "arXiv:2505.19590")
def intuitor(samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.005):
    """GRPO without labels: the reward is how sure the policy is of its next tokens, by their distance from uniform.

    Defaults: Those of the authors' script, and where it says nothing of verl. The constant log V of self-certainty drops out of
      group statistics. Rewards must be there, of whatever size, as rows without any are left out.
    """
    estimator = chain(estimators.self_certainty_reward(), group_advantage(scale=BESSEL), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)


@method("Reinforcing General Reasoning without Verifiers (Zhou et al., 2025)", "arXiv:2505.21493")
def verifree(samples: int = 8):
    """REINFORCE without a verifier: the reward of a reasoning is the probability of the reference answer behind it.

    Defaults: That of the authors' script. The reference answer is written behind each reasoning beforehand, in place of the
      sampled one, by whoever makes the rollouts; `answer_mask` tells where. Rewards must be there, of whatever size.
    """
    estimator = chain(estimators.answer_likelihood_advantage(), estimators.sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))
