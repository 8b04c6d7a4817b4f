"""REINFORCE on samples of another policy, with weights and centres that keep it steady."""

from jaxrl_llm.estimators import chain, constant_baseline, group_advantage, sequence_mean_token_sum, token_mean
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import (
    importance_weight,
    objective,
    policy,
    score_function,
    sequence_total_ratio,
    tapered,
    token_ratio,
    top,
)
from jaxrl_llm.objectives import score_centering as centering
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


@method(paper="Score centering (2026)", url="https://arxiv.org/abs/2609.20807", certainty="sketch")
def score_centering(*, samples: int = 8, count: int = 64, weight_low: float | None = None, weight_high: float | None = None):
    """REINFORCE off policy, less the mean that each token's score has under the sampler, taken over its likeliest tokens.

    Defaults: All are ours; by default there is no importance weight. With `weight_low` or `weight_high` each token has that of
      the policy over the sampler, within these bounds. The sampler is the policy before the step's updates, as the learner
      computes it: what its engine and an older version would say of the other tokens is not recorded.

    Unconfirmed: title and authors of the paper, its number of tokens, its bounds and its advantages.
    """
    weighted = (weight_low, weight_high) != (None, None)
    bounds = {"low": weight_low, "high": weight_high}
    weight = importance_weight(of="policy", ratio=token_ratio(against="proximal"), **bounds)
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=None), token_mean()),
        objective(
            policy(ratio=None, trust=score_function(), factors=(weight,) if weighted else ()),
            centering(candidates=top(count=count, of="proximal"), **bounds),
        ),
    )
