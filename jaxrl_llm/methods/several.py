"""Methods that look at several answers as one: the best of k, or an exam of several prompts."""

from jaxrl_llm.estimators import best_lead_advantage, chain, pass_at_k_advantage, risk_advantage, token_mean
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import grouped


@method(
    paper="Optimizing Language Models for Inference Time Objectives using Reinforcement Learning (Tang et al., 2025)",
    url="https://arxiv.org/abs/2503.19595",
    conventions={"verl-0.10": {}},
)
def grpo_passk(*, samples: int = 8, clip_high: float = 0.2):
    """GRPO for the best of the group: only the best answer learns, by its lead over the second, divided by the deviation.

    Defaults: All are ours; the division is that of verl, from which the name is. There is no lower clip, which would bind for
      negative advantages alone.
    """
    return grouped(samples=samples), chain(best_lead_advantage(), token_mean()), clipped(high=clip_high)


@method(
    paper="Pass@k Training for Adaptively Balancing Exploration and Exploitation (Chen et al., 2025)",
    url="https://arxiv.org/abs/2508.10751",
)
def pass_at_k(*, samples: int = 8, k: int = 2, threshold: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.28):
    """GRPO for right answers among k: the mean advantage over all sets of k samples that an answer belongs to.

    Defaults: All are ours.
    """
    return (
        grouped(samples=samples),
        chain(pass_at_k_advantage(k=k, threshold=threshold), token_mean()),
        clipped(clip_low, clip_high),
    )


@method(
    paper="RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training (Ren et al., 2025)",
    url="https://arxiv.org/abs/2510.00911",
)
def riskpo(
    *,
    samples: int = 10,
    bundle: int = 5,
    level_low: float = 0.2,
    level_high: float = 0.8,
    tail_weight: float = 1.5,
    rate: float = 0.1,
    credit: str = "share",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """Mixed value at risk of bundles of prompts, marked as one exam: bad exams count most, and rows share what they earn.

    Defaults: All are those of the authors' script for DAPO-Math. Their program takes the quantiles of the bundle itself, as
      its tracked ones never reach the estimator; these are tracked, as in the paper.
    """
    estimator = risk_advantage(bundle=bundle, levels=(level_low, level_high), tail_weight=tail_weight, rate=rate, credit=credit)
    return grouped(samples=samples), chain(estimator, token_mean()), clipped(clip_low, clip_high)
