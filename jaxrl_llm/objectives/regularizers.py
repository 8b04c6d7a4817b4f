"""Terms that keep a policy near a reference or spread out, and losses on the routers of mixtures of experts."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import MAX_LOG_RATIO, kl_estimate, masked, safe_divide, without_infinities
from jaxrl_llm.objectives.base import coefficient_value, logp_name, logp_of, traits, weighted_sum, with_factors
from jaxrl_llm.objectives.ratios import segment_total
from jaxrl_llm.types import Batch, Scores


@composable(annotations=logp_name)
def kl(
    scores: Scores, batch: Batch, *, coefficient: float | str = 0.04, kind: str = "k3", against: str = "reference",
    bound: float | None = None, ratio_bound: float | None = MAX_LOG_RATIO, ratio: Composable | None = None,
    factors: tuple[Composable, ...] = (),
):  # fmt: skip
    """`coefficient` times the estimate of KL(policy || reference) of each action, differentiated through the policy.

    On policy, the gradient of "k1" is 0 on average (its value is the KL, its gradient is not); that of "k2" is the gradient of
    the KL; that of "k3" is the gradient of the forward KL. Samples of another policy estimate the KL only with an importance
    weight: with `ratio` the weight is differentiated too, and "k3" then has the gradient of the KL (DeepSeek-V3.2, TRL's
    `use_bias_correction_kl`, slime's `use_unbiased_kl`); as one of the `factors`, `importance_weight(of="policy")`, it is not.

    Args:
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
    loss = with_factors(loss, factors, scores, batch)
    return coefficient_value(coefficient, batch) * loss, {f"{against}_kl": weighted_sum(estimate, batch)}


@composable(needs=("entropy",))
def entropy_bonus(scores: Scores, batch: Batch, *, coefficient: float | str = 0.01):
    """-`coefficient` times the entropy (nats) of the distribution of each action.

    Source: https://arxiv.org/abs/1602.01783
    """
    return -coefficient_value(coefficient, batch) * scores.entropy, {}


# Log-probability (nats) of a sequence above which its penalty is constant.
_CERTAIN = -1e-3


@composable(needs=lambda options: (f"top_entropy:{options['cut']}",))
def top_entropy_bonus(scores: Scores, batch: Batch, *, coefficient: float | str = 2e-4, cut: float = 0.3):
    """-`coefficient` times the entropy (nats) of each action's distribution without its least likely entries.

    Args:
      coefficient: such as one of `controllers.entropy_band`.
      cut: share of the vocabulary that is left out, the least likely entries first.

    Source: AEnt, https://arxiv.org/abs/2509.03493
    """
    entropy = masked(scores.top_entropy, batch.mask)
    return -coefficient_value(coefficient, batch) * entropy, {"top_entropy": weighted_sum(entropy, batch)}


@composable(needs=("entropy",))
def smoothed_entropy(
    scores: Scores, batch: Batch, *, coefficient: float | str = 1e-3, smoothing: float | str = 1.0,
    history: float | str = "entropy_history", low: float = 0.8, high: float = 1.2, penalty: float = 0.1,
):  # fmt: skip
    """-`coefficient` (H - `smoothing` P): an entropy bonus, and a penalty P where H leaves a band around its history.

    P is `penalty` where the entropy H of an action is outside of [low, high] times the mean of earlier steps. As in the
    authors' code it comes from a comparison and so has no gradient: it changes the value of the loss alone.

    Args:
      smoothing: beta_k of the penalty, or a name as for `coefficient`.
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

    Source: the penalty of REINVENT, https://doi.org/10.1186/s13321-017-0235-x, as studied in https://arxiv.org/abs/2310.02902
    """
    actions = (batch.mask > 0).astype(jnp.float32)
    total = segment_total(without_infinities(masked(scores.logp, actions)), batch.segment)
    value = -1.0 / jnp.minimum(total, _CERTAIN)
    return coefficient_value(coefficient, batch) * safe_divide(value, segment_total(actions, batch.segment)), {}


@composable(needs=("router_logits",))
@traits(coupled=True, reads_logp=False)
def load_balancing(
    scores: Scores, batch: Batch, *, experts_per_token: int, coefficient: float | str = 0.001, pooled: bool = True
):
    """`coefficient` * E * sum over experts e of f_e P_e: least, and equal to k, where all experts are used alike.

    f_e is the mean number of choices of e by a token (without gradient), P_e its mean probability. Means are over the
    actions of the batch, by their weights in the loss; `transformers` takes all tokens, prompts included.

    Args:
      experts_per_token: k; the k experts of the highest logits count as chosen.
      pooled: means are over all layers together, as `transformers` has it; otherwise each layer has a loss of its own, and
        their mean is taken, as in the paper.

    Source: Switch Transformers, https://arxiv.org/abs/2101.03961, equation 4, with k experts for one.
    """
    logits = masked(scores.router_logits, jnp.broadcast_to(batch.mask[..., None, None], scores.router_logits.shape))
    count = logits.shape[-1]
    weight = masked(batch.weight, batch.mask)
    share = safe_divide(weight, weight.sum())
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(logits), experts_per_token)
    choices = jax.nn.one_hot(chosen, count).sum(axis=-2)
    used = jnp.einsum("bt,btle->le", share, choices)
    if pooled:
        used = jnp.broadcast_to(used.mean(axis=0), used.shape)
    per_token = count * jnp.einsum("btle,le->bt", jax.nn.softmax(logits), used) / logits.shape[-2]
    metrics = {"expert_load_max": count * used.max() / experts_per_token}
    return coefficient_value(coefficient, batch) * per_token, metrics


@composable(needs=("router_logits",))
@traits(reads_logp=False)
def router_z(scores: Scores, batch: Batch, *, coefficient: float | str = 0.001):
    """`coefficient` * (logsumexp of a router's logits)^2, mean over layers: keeps the logits small.

    Source: ST-MoE, https://arxiv.org/abs/2202.08906, equation 5.
    """
    logits = masked(scores.router_logits, jnp.broadcast_to(batch.mask[..., None, None], scores.router_logits.shape))
    squared = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean(axis=-1)
    return coefficient_value(coefficient, batch) * squared, {}
