"""REINFORCE on samples of another policy, with weights and centres that keep it steady."""

from __future__ import annotations

from jaxrl_llm.estimators import chain, constant_baseline, group_advantage, sequence_mean_token_sum
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import objective, policy, sequence_total_ratio, tapered
from jaxrl_llm.rollouts import grouped


@method(paper="Tapered Off-Policy REINFORCE (Le Roux et al., 2025)", url="https://arxiv.org/abs/2503.14286")
def topr(
    *,
    samples: int = 16,
    baseline: float = 0.5,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
):
    """REINFORCE off policy: right answers without importance weight, wrong ones with that of the whole answer, at most 1.

    Defaults: The bounds of the weights, `positive` of advantages of 0 or more and `negative` of others, are the paper's. Its
      rewards are 1 and -1 with a baseline of 0; rewards 1 and 0 with a baseline of 1/2 are half of that. `samples` is ours.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(baseline=constant_baseline(value=baseline), scale=None), sequence_mean_token_sum()),
        objective(policy(ratio=sequence_total_ratio(), trust=tapered(positive=positive, negative=negative))),
    )
