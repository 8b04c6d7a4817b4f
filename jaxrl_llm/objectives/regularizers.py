"""Terms that keep a policy near a reference or spread out."""

from __future__ import annotations

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import kl_estimate, masked
from jaxrl_llm.objectives.base import coefficient_value, weighted_sum
from jaxrl_llm.types import Batch, Scores


@composable(annotations=("reference_logp",))
def kl(scores: Scores, batch: Batch, *, coefficient: float | str = 0.04, kind: str = "k3"):
    """`coefficient` times the estimate of KL(policy || reference) of each action, differentiated through the policy.

    On policy, the gradient of "k1" is 0 on average (its value is the KL, its gradient is not); that of "k2" is the
    gradient of the KL; that of "k3" is the gradient of the forward KL.

    Args:
      coefficient: a number, or the name of a scalar in `batch.coefficients`.
      kind: "k1", "k2" or "k3", see `numerics.kl_estimate`.

    Source: GRPO, equation 4, https://arxiv.org/abs/2402.03300
    """
    estimate = kl_estimate(masked(scores.logp, batch.mask), masked(batch.reference_logp, batch.mask), kind)
    return coefficient_value(coefficient, batch) * estimate, {"reference_kl": weighted_sum(estimate, batch)}


@composable(needs=("entropy",))
def entropy_bonus(scores: Scores, batch: Batch, *, coefficient: float | str = 0.01):
    """-`coefficient` times the entropy (nats) of the distribution of each action.

    Source: https://arxiv.org/abs/1602.01783
    """
    return -coefficient_value(coefficient, batch) * scores.entropy, {}
