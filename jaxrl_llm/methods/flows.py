"""Methods that match a distribution of rewards in place of raising their mean."""

from jaxrl_llm.estimators import chain, group_advantage, sequence_mean
from jaxrl_llm.methods.advantages import BESSEL
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import importance_weight, objective, sequence_ratio, trajectory_balance
from jaxrl_llm.rollouts import grouped


@method(
    paper="FlowRL: Matching Reward Distributions for LLM Reasoning (Zhu et al., 2025)",
    url="https://arxiv.org/abs/2509.15207",
    certainty="sketch",
)
def flowrl(*, samples: int = 8, beta: float = 15.0, clip_low: float = 0.2, clip_high: float = 0.28):
    """Squared gap between the policy and the reference tilted by the reward, with a learned partition function of the prompt.

    Defaults: `beta` is the paper's, the bounds of the weight are those of the authors' script; `samples` is ours. log Z is a
      value head on the state before the first action; the authors' module has three layers.

    Unconfirmed: what their module reads of the prompt, and whether the policy has a gradient through it, as here.
    """
    weight = importance_weight(of="policy", ratio=sequence_ratio(), low=1.0 - clip_low, high=1.0 + clip_high)
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=BESSEL), sequence_mean()),
        objective(trajectory_balance(beta=beta, factors=(weight,))),
    )
