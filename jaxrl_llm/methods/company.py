"""Methods of a policy that learns in company: with a verifier that learns to judge it, with a reward model that learns from it.

Who keeps it company is a module of the configuration, see docs/modules.md.
"""

from jaxrl_llm.estimators import balanced_classes, blend, chain, fading, group_advantage, step_returns, token_mean
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import grouped, spoiled, verified


@method("RL Tango: Reinforcing Generator and Verifier Together for Language Reasoning (Zha et al., 2025)", "arXiv:2505.15034")
def rl_tango(
    samples: int = 8, by: str = "verifier", step_share: float = 0.5, step_rate: float = 0.01, format_reward: float = 0.1,
    clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.001,
):  # fmt: skip
    """GRPO on outcomes and, added to it with a share that fades, on what a verifier says of the steps, which learns too.

    Defaults: Clip, KL and the samples are ours.
    Unconfirmed: where the share of the steps begins and how fast it fades, and the reward of the verifier's format.
    """
    outcomes = chain(group_advantage(), fading(start=step_share, rate=step_rate, rest=True))
    steps = chain(step_returns(), fading(start=step_share, rate=step_rate))
    strategy = verified(samples=samples, by=by, format_reward=format_reward)
    loss = clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)
    return strategy, chain(blend((1.0, outcomes), (1.0, steps)), token_mean()), loss


@method("RL Tango: Reinforcing Generator and Verifier Together for Language Reasoning (Zha et al., 2025)", "arXiv:2505.15034")
def tango_verifier(
    samples: int = 8, momentum: float = 0.9, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.001
):
    """What RL Tango's verifier learns by: GRPO on true verdicts, with those of right and of wrong answers evened out.

    Defaults: All are ours.
    Unconfirmed: the momentum of the average over steps, and whether groups are those of the answers to one prompt.
    """
    estimator = chain(group_advantage(), balanced_classes(momentum=momentum), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)


@method(
    "Cooper: Co-Optimizing Policy and Reward Models in RL for Large Language Models (Hong et al., 2025)", "arXiv:2508.05613"
)
def cooper(
    samples: int = 16, by: str = "reference", clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.001
):
    """GRPO on the scores of a reward model that learns in the same step: right answers against copies that somebody spoiled.

    Defaults: Samples and the KL are the paper's; the clip is ours. The paper's assistant is another language model.
    """
    strategy = spoiled(samples=samples, by=by)
    return strategy, chain(group_advantage(), token_mean()), clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)
