"""Terms that keep a policy spread out, beyond the plain bonus."""

import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import masked, safe_divide, without_infinities
from jaxrl_llm.objectives.base import coefficient_value, weighted_sum
from jaxrl_llm.objectives.ratios import segment_total
from jaxrl_llm.types import Batch, Scores

# Log-probability (nats) of a sequence above which its penalty is constant.
_CERTAIN = -1e-3


@composable(needs=lambda options: (f"top_entropy:{options['cut']}",))
def top_entropy_bonus(scores: Scores, batch: Batch, *, coefficient: float | str = 2e-4, cut: float = 0.3):
    """-`coefficient` times the entropy (nats) of each action's distribution without its least likely entries.

    Args:
      coefficient: a number, or the name of a scalar in `batch.coefficients`, such as one of `controllers.entropy_band`.
      cut: share of the vocabulary that is left out, the least likely entries first.

    Source: AEnt, https://arxiv.org/abs/2509.03493
    """
    del cut
    entropy = masked(scores.top_entropy, batch.mask)
    return -coefficient_value(coefficient, batch) * entropy, {"top_entropy": weighted_sum(entropy, batch)}


@composable(needs=("entropy",))
def smoothed_entropy(
    scores: Scores,
    batch: Batch,
    *,
    coefficient: float | str = 1e-3,
    smoothing: float | str = 1.0,
    history: float | str = "entropy_history",
    low: float = 0.8,
    high: float = 1.2,
    penalty: float = 0.1,
):
    """-`coefficient` (H - `smoothing` P): an entropy bonus, and a penalty P where H leaves a band around its history.

    P is `penalty` where the entropy H of an action is outside of [low, high] times the mean of earlier steps. As in the
    authors' code it comes from a comparison and so has no gradient: it changes the value of the loss alone.

    Args:
      coefficient: factor of the whole term, or the name of a scalar in `batch.coefficients`.
      smoothing: beta_k of the penalty, or such a name.
      history: mean entropy (nats) of earlier steps, or such a name (`controllers.running_mean`); 0 for none yet.
      low: lower end of the band.
      high: its upper end.
      penalty: alpha.

    Source: EPO, https://arxiv.org/abs/2509.22576
    """
    entropy = masked(scores.entropy, batch.mask)
    mean = coefficient_value(history, batch)
    outside = (mean > 0) & ((entropy < low * mean) | (entropy > high * mean))
    smooth = coefficient_value(smoothing, batch) * penalty * outside
    return -coefficient_value(coefficient, batch) * (entropy - smooth), {"policy_entropy": weighted_sum(entropy, batch)}


@composable
def overconfidence(scores: Scores, batch: Batch, *, coefficient: float | str = 1.0):
    """-`coefficient` / log pi(y) of each sequence y, shared by its actions: large where the policy is sure of a whole answer.

    Above -0.001 nats the penalty is constant. With weights `sequence_mean_token_sum` it is the mean over sequences.

    Args:
      coefficient: a number, or the name of a scalar in `batch.coefficients`.

    Source: the penalty of REINVENT, https://doi.org/10.1186/s13321-017-0235-x, as studied in
      https://arxiv.org/abs/2310.02902
    """
    actions = (batch.mask > 0).astype(jnp.float32)
    total = segment_total(without_infinities(masked(scores.logp, actions)), batch.segment)
    value = -1.0 / jnp.minimum(total, _CERTAIN)
    return coefficient_value(coefficient, batch) * safe_divide(value, segment_total(actions, batch.segment)), {}
