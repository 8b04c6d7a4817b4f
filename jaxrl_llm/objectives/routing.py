"""Losses on the routers of mixtures of experts."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import composable
from jaxrl_llm.numerics import masked, safe_divide
from jaxrl_llm.objectives.base import coefficient_value, traits
from jaxrl_llm.types import Batch, Scores


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
      coefficient: a number, or the name of a scalar in `batch.coefficients`.
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
