"""A policy that learns in milliseconds, with logits, hidden states, values and packed rows; and random rollouts of it."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.types import Rollouts

# Programs of tests run once or twice: quick compilation is worth more than quick programs.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
VOCABULARY, WIDTH = 32, 8
CANDIDATES = 5
OUTPUTS = 4


def init(seed: int = 0):
    random = np.random.default_rng(seed)
    shapes = {"embedding": (VOCABULARY, WIDTH), "mix": (WIDTH, WIDTH), "head": (VOCABULARY, WIDTH), "value": (WIDTH,)}
    shapes |= {"value_outputs": (WIDTH, OUTPUTS)}
    return {name: jnp.asarray(0.7 * random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def hidden(params, tokens, positions, segments=None, reach=None):
    """One layer: each token sees the mean of those before it in its own sequence, with weights that depend on distance."""
    embedded = params["embedding"][tokens]
    index = jnp.arange(tokens.shape[1])
    distance = positions[:, :, None] - positions[:, None, :]
    seen = index[:, None] >= index
    if reach is None:
        seen = seen & (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)
    else:
        seen = seen & (index[:, None] < reach[:, None, :])
    share = jnp.where(seen, 1.0 / (1.0 + jnp.abs(distance)), 0.0).astype(embedded.dtype)
    return embedded + jnp.tanh(jnp.einsum("bts,bsd->btd", share, embedded) @ params["mix"])


def apply(params, tokens, positions, segments):
    """Logits [B, T, V], as any user's function might give them."""
    return hidden(params, tokens, positions, segments) @ params["head"].T


policy = types.SimpleNamespace(
    hidden=hidden,
    unembedding=lambda params: params["head"],
    value=lambda params, states: states @ params["value"],
    value_outputs=lambda params, states: states @ params["value_outputs"],
    reads_forests=True,
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
    near = [np.where(mask > 0, logp + 0.3 * random.normal(size=logp.shape), 0).astype(np.float32) for _ in range(4)]
    behavior, reference, proximal, teacher = near
    return Rollouts(
        tokens=tokens,
        length=length,
        mask=mask,
        rewards=random.normal(size=(rows, 2)).astype(np.float32),
        group=np.sort(random.integers(0, groups, rows)).astype(np.int32),
        prompt_id=np.arange(rows, dtype=np.int32) // 4,
        turn=np.cumsum(random.random((rows, width)) < 0.3, axis=1).astype(np.int32),
        source=(random.random(rows) < 0.3).astype(np.int32),
        behavior_logp=behavior,
        extras={
            "reference_logp": reference,
            "proximal_logp": proximal,
            "teacher_logp": teacher,
            "behavior_value": random.normal(size=logp.shape).astype(np.float32),
            "pair": pairs // 2,
            "preference": np.where(pairs % 2 == 0, 1.0, -1.0).astype(np.float32),
            # Six rollouts a group: each answer alone, and behind a prompt that shows the one or the other.
            "six": pairs // 6,
            "revises": np.array([0.0, 1.0, -1.0], np.float32)[pairs % 6 // 2],
            **_about_rows(random, rows, width),
            **_about_distributions(random, tokens),
            **_about_critics(random, tokens.shape),
        },
    )


def _about_rows(random, rows: int, width: int) -> dict:
    """What an environment, a judge or an earlier pass would say of whole rows."""
    return {
        "answer": random.integers(-1, 3, rows).astype(np.int32),
        "embedding": random.normal(size=(rows, 4)).astype(np.float32),
        "greedy_reward": random.normal(size=rows).astype(np.float32),
        "anchor_reward": random.normal(size=rows).astype(np.float32),
        "anchor_rewards": random.normal(size=(rows, 4)).astype(np.float32) + 1,
        "stratum": random.integers(0, 2, rows).astype(np.int32),
        "state": random.integers(0, 3, (rows, width)).astype(np.int32),
        "format": random.integers(0, 2, rows).astype(np.int32),
        "calls": random.integers(0, 4, rows).astype(np.int32),
        "optimal_value": random.normal(size=rows).astype(np.float32),
        "first_call": random.integers(-1, 4, rows).astype(np.int32),
        "flawed": random.integers(0, 2, rows).astype(np.float32),
        "easy": random.integers(0, 2, rows).astype(np.float32),
        "role": random.integers(0, 2, rows).astype(np.int32),
        "drift": random.exponential(0.1, rows).astype(np.float32),
        "mismatched_ratio": (1 + random.normal(size=rows)).astype(np.float32),
        "token_rewards": (random.integers(-2, 3, (rows, width)) / 4).astype(np.float32),
        "feasible": (np.arange(rows) % 5 != 3).astype(np.float32),
        "cut": random.integers(1, width, rows).astype(np.int32),
        "value_before": random.random((rows, width)).astype(np.float32),
        "step_reward": (random.integers(-2, 3, (rows, width)) / 4).astype(np.float32),
        "right": random.integers(0, 2, rows).astype(np.int32),
        "value_behind": random.random((rows, width)).astype(np.float32),
        # The last columns, so that some rows have a reference answer behind their reasoning.
        "answer_mask": np.tile(np.arange(width) >= width - 4, (rows, 1)).astype(np.float32),
    }


def _about_distributions(random, tokens) -> dict:
    """Entropies, and candidates with the token itself among them and what three policies say of those."""
    shape = tokens.shape
    candidates = (tokens[..., None] + random.permuted(np.tile(np.arange(VOCABULARY), (*shape, 1)), axis=-1)) % VOCABULARY
    candidates = np.concatenate([tokens[..., None], candidates[candidates != tokens[..., None]].reshape(*shape, -1)], -1)
    shares = {
        f"{who}_candidate_logp": np.log(0.9 * random.dirichlet(np.ones(CANDIDATES + 1), shape)[..., :CANDIDATES] + 1e-3)
        for who in ("proximal", "reference", "teacher")
    }
    per_token = {
        "proximal_entropy": random.exponential(1.0, shape),
        "proximal_mean_logp": -4.0 - random.exponential(1.0, shape),
        "proximal_hidden": random.normal(size=(*shape, WIDTH)),
        "proximal_log_collision": -random.exponential(1.0, shape),
        **shares,
    }
    return {"candidates": candidates[..., :CANDIDATES].astype(np.int32)} | {
        name: values.astype(np.float32) for name, values in per_token.items()
    }


def _about_critics(random, shape) -> dict:
    """What a critic and its average say of the states."""
    per_token = {
        "target_value": random.normal(size=shape),
        "behavior_value_outputs": random.normal(size=(*shape, OUTPUTS)),
        "target_value_outputs": random.normal(size=(*shape, OUTPUTS)),
        "proximal_max_logp": -random.exponential(0.3, shape),
    }
    return {name: values.astype(np.float32) for name, values in per_token.items()}


def estimated(method, rollouts: Rollouts) -> Rollouts:
    """Advantages and weights of `method`, from the extras that it asks for and no other, as NumPy arrays.

    For methods on pairs, these are the groups.
    """
    groups = "six" if "revises" in method.needs else "pair"
    rollouts = rollouts.replace(group=rollouts.extras[groups]) if "preference" in method.needs else rollouts
    return estimated_in_groups(method, rollouts)


def estimated_in_groups(method, rollouts: Rollouts) -> Rollouts:
    """The same, in the groups that the rollouts have."""
    found, _ = _compiled(method.estimator.update)(given(method, rollouts), method.estimator.init(), jax.random.key(0))
    return jax.tree.map(np.asarray, found)


def given(method, rollouts: Rollouts) -> Rollouts:
    """The rollouts with what the method asks for and nothing else."""
    wanted = method.needs | getattr(method.strategy, "provides", frozenset())
    kept = {name: values for name, values in rollouts.extras.items() if name in wanted}
    return rollouts.replace(extras=kept, token_rewards=kept.pop("token_rewards", rollouts.token_rewards))


_compiled = functools.cache(jit)


def coefficients(method, step: int = 3) -> dict:
    """The scalars that the method's controllers give before anything was measured; where that is 0, a number of its own."""
    found = {name: float(controller.value(controller.init(), step)) for name, controller in method.controllers}
    return {name: np.float32(value or 0.25) for name, value in found.items()}


def some_slow(chosen, names):
    """Parameters of a test: all `names`; those that are not chosen are for `python docs/prove.py`, which proves all methods."""
    marks = (pytest.mark.slow, pytest.mark.exhaustive)
    return [name if name in chosen else pytest.param(name, marks=marks) for name in names]
