"""Terms that keep a policy near a reference or spread out."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, kl_estimate, masked
from jaxrl_llm.objectives.base import coefficient_value, logp_name, logp_of, weighted_sum
from jaxrl_llm.objectives.policy import factor_value
from jaxrl_llm.types import Batch, Scores


@composable(annotations=logp_name)
def kl(
    scores: Scores,
    batch: Batch,
    *,
    coefficient: float | str = 0.04,
    kind: str = "k3",
    against: str = "reference",
    bound: float | None = None,
    ratio_bound: float | None = MAX_LOG_RATIO,
    ratio: Composable | None = None,
    factors: tuple[Composable, ...] = (),
):
    """`coefficient` times the estimate of KL(policy || reference) of each action, differentiated through the policy.

    On policy, the gradient of "k1" is 0 on average (its value is the KL, its gradient is not); that of "k2" is the
    gradient of the KL; that of "k3" is the gradient of the forward KL. Samples of another policy estimate the KL only with an
    importance weight: with `ratio` the weight is differentiated too, and "k3" then has the gradient of the KL (DeepSeek-V3.2,
    TRL's `use_bias_correction_kl`, slime's `use_unbiased_kl`); as one of the `factors`, `importance_weight(of="policy")`, it is
    not.

    Args:
      coefficient: a number, or the name of a scalar in `batch.coefficients`.
      kind: see `numerics.kl_estimate`.
      against: who stands for the reference: "reference", "proximal", "behavior" or "teacher".
      bound: largest size of an estimate (nats), beyond which it has no gradient; verl bounds "k3", OpenRLHF every kind, at 10.
      ratio_bound: largest size of the log-ratio in the estimate (nats), beyond which it has no gradient; None for none, as in
        TRL, and 10 in PipelineRL.
      ratio: log importance ratio; the estimate is multiplied by its exponential.
      factors: as in `policy`.

    Source: GRPO, equation 4, https://arxiv.org/abs/2402.03300; DeepSeek-V3.2, https://arxiv.org/abs/2512.02556
    """
    own, other = (masked(logp, batch.mask) for logp in (scores.logp, logp_of(against, batch)))
    estimate = kl_estimate(own, other, kind, ratio_bound)
    if bound is not None:
        estimate = jnp.clip(estimate, -bound, bound)
    loss = estimate if ratio is None else estimate * jnp.exp(ratio(scores, batch))
    for factor in factors:
        loss *= factor_value(factor, scores, batch)
    return coefficient_value(coefficient, batch) * loss, {f"{against}_kl": weighted_sum(estimate, batch)}


@composable(needs=("entropy",))
def entropy_bonus(scores: Scores, batch: Batch, *, coefficient: float | str = 0.01):
    """-`coefficient` times the entropy (nats) of the distribution of each action.

    Source: https://arxiv.org/abs/1602.01783
    """
    return -coefficient_value(coefficient, batch) * scores.entropy, {}
