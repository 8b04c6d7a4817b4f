"""A policy that learns in milliseconds, with logits, hidden states, values and packed rows; and random rollouts of it."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Rollouts

# Programs of tests run once or twice: quick compilation is worth more than quick programs.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
VOCABULARY, WIDTH = 32, 8
EXTRAS = ("reference_logp", "behavior_value", "preference")


def init(seed: int = 0):
    random = np.random.default_rng(seed)
    shapes = {"embedding": (VOCABULARY, WIDTH), "mix": (WIDTH, WIDTH), "head": (VOCABULARY, WIDTH), "value": (WIDTH,)}
    return {name: jnp.asarray(0.7 * random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def hidden(params, tokens, positions, segments):
    """One layer: each token sees the mean of those before it in its own sequence, with weights that depend on distance."""
    embedded = params["embedding"][tokens]
    width = tokens.shape[1]
    distance = positions[:, :, None] - positions[:, None, :]
    order = jnp.arange(width)[:, None] >= jnp.arange(width)
    seen = order & (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)
    share = jnp.where(seen, 1.0 / (1.0 + jnp.abs(distance)), 0.0).astype(embedded.dtype)
    return embedded + jnp.tanh(jnp.einsum("bts,bsd->btd", share, embedded) @ params["mix"])


def apply(params, tokens, positions, segments):
    """Logits [B, T, V], as any user's function might give them."""
    return hidden(params, tokens, positions, segments) @ params["head"].T


policy = types.SimpleNamespace(
    hidden=hidden, unembedding=lambda params: params["head"], value=lambda params, states: states @ params["value"]
)


def random_rollouts(params, *, rows: int = 10, width: int = 10, groups: int = 3, seed: int = 1) -> Rollouts:
    """Ragged groups and lengths, off-policy log-probabilities, and every array that a method may need."""
    random = np.random.default_rng(seed)
    length = random.integers(3, width + 1, rows).astype(np.int32)
    inside = np.arange(width) < length[:, None]
    prompt = random.integers(1, 3, rows)
    tokens = np.where(inside, random.integers(0, VOCABULARY, (rows, width)), 0).astype(np.int32)
    mask = (inside & (np.arange(width) >= prompt[:, None])).astype(np.float32)
    logits = apply(params, tokens, np.tile(np.arange(width), (rows, 1)), inside.astype(np.int32))
    logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.roll(tokens, -1, 1)[..., None], 2)[..., 0]
    logp = np.roll(logp, 1, axis=1)
    pairs = random.permutation(rows).astype(np.int32)  # of rows that need not stand together
    near = [np.where(mask > 0, logp + 0.3 * random.normal(size=logp.shape), 0).astype(np.float32) for _ in range(2)]
    return Rollouts(
        tokens=tokens,
        length=length,
        mask=mask,
        rewards=random.normal(size=(rows, 2)).astype(np.float32),
        group=np.sort(random.integers(0, groups, rows)).astype(np.int32),
        behavior_logp=near[0],
        extras={
            "reference_logp": near[1],
            "behavior_value": random.normal(size=logp.shape).astype(np.float32),
            "pair": pairs // 2,
            "preference": np.where(pairs % 2 == 0, 1.0, -1.0).astype(np.float32),
        },
    )


def estimated(method, rollouts: Rollouts) -> Rollouts:
    """Advantages and weights of `method`, from the extras that it asks for and no other, as NumPy arrays.

    For methods on pairs, these are the groups.
    """
    rollouts = rollouts.replace(group=rollouts.extras["pair"]) if "preference" in method.needs else rollouts
    kept = {name: rollouts.extras[name] for name in EXTRAS if name in method.needs}
    found, _ = _compiled(method.estimator.update)(rollouts.replace(extras=kept), method.estimator.init(), jax.random.key(0))
    return jax.tree.map(np.asarray, found)


_compiled = functools.cache(jit)
