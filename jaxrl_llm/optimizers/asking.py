"""Transforms in front of the others that ask for further gradients of the batch: at other parameters, or of other advantages.

`make_update` gives them `batch` and `gradient(params, batch) -> gradient` beside the gradient of the step.
"""

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.compose import require


def recursive_momentum(*, share: float = 0.1) -> optax.GradientTransformationExtraArgs:
    """v <- g(theta) + (1 - share) (v - g(theta before)), both gradients of the batch of this step.

    Losses with a ratio to the sampler weigh the second gradient by the importance of the samples, as they are those of theta.
    It costs a second gradient and two copies of the parameters.

    Args:
      share: of the new gradient alone, in [0, 1]; 1 is the plain gradient.

    Raises ValueError: an impossible share; in `update`, nobody gives further gradients.
    Source: STORM, https://arxiv.org/abs/1905.10018; with importance weights, https://arxiv.org/abs/2102.08607 and MO-TSIVR-PG,
      https://arxiv.org/abs/2508.10608, which bounds the step: clip the norm behind it
    """
    require(0 <= share <= 1, "share", share, "from 0 to 1")

    def init(params):
        zeros, copy = (jax.tree.map(make, params) for make in (jnp.zeros_like, jnp.array))
        return {"estimate": zeros, "earlier": copy, "count": jnp.zeros((), jnp.int32)}

    def update(updates, state, params=None, *, batch=None, gradient=None, **extra):
        del extra
        _check(gradient, params, "recursive_momentum")
        before = gradient(state["earlier"], batch)
        kept = jnp.where(state["count"] == 0, 0.0, 1.0 - share)
        found = jax.tree.map(
            lambda new, old, at: (new + kept * (old - at)).astype(new.dtype), updates, state["estimate"], before
        )
        return found, {"estimate": found, "earlier": params, "count": state["count"] + 1}

    return optax.GradientTransformationExtraArgs(init, update)


# Where an estimator puts the advantages of each objective by itself, [N, T, K].
BY_OBJECTIVE = "objective_advantage"


def objective_weights(*, objectives: int, rate: float = 0.1) -> optax.GradientTransformationExtraArgs:
    """The gradient is sum_k w_k g_k, of advantages of one objective each; objectives that agree with all gain weight.

    w <- softmax(log w + rate s), s_k = sum_j <g_k, g_j>, before the step that it weighs. It costs K gradients and keeps all of
    them at a time. Where the loss is linear in the advantages, as surrogates are on policy, it is that of weighted advantages.

    Args:
      objectives: K.
      rate: of the weights, in units of 1 / |g|^2.

    Raises ValueError: fewer than 2 objectives; in `update`, advantages of another number of them or of none.
    Source: https://arxiv.org/abs/2509.11452, gradient-based weights, where the rate is 1e-6 / 1e-5
    """
    require(objectives >= 2, "objectives", objectives, "2 or more")

    def init(params):
        return {"log_weight": jnp.full((objectives,), -jnp.log(float(objectives)))}

    def update(updates, state, params=None, *, batch=None, gradient=None, **extra):
        del extra
        _check(gradient, params, "objective_weights")
        advantages = batch.extras.get(BY_OBJECTIVE)
        if advantages is None or advantages.shape[-1] != objectives:
            found = 0 if advantages is None else advantages.shape[-1]
            raise ValueError(
                f"objective_weights needs batch.extras[{BY_OBJECTIVE!r}] of {objectives} objectives; it has {found}"
            )
        each = [gradient(params, batch.replace(advantage=advantages[..., k])) for k in range(objectives)]
        wide = [optax.tree.cast(one, jnp.float32) for one in each]
        total = jax.tree.map(lambda *leaves: sum(leaves), *wide)
        agreement = jnp.stack([optax.tree.vdot(one, total) for one in wide])
        log_weight = jax.nn.log_softmax(state["log_weight"] + rate * agreement)
        log_weight = jnp.where(jnp.isfinite(log_weight).all(), log_weight, state["log_weight"])
        weights = jnp.exp(log_weight)

        def weighted(leaf, *leaves):
            return sum(weight * one for weight, one in zip(weights, leaves, strict=True)).astype(leaf.dtype)

        return jax.tree.map(weighted, updates, *wide), {"log_weight": log_weight}

    return optax.GradientTransformationExtraArgs(init, update)


def _check(gradient, params, name: str) -> None:
    if gradient is None or params is None:
        raise ValueError(f"{name} asks for gradients: call update(updates, state, params, batch=..., gradient=...)")
