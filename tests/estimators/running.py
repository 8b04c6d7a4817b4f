"""Rollouts out of test cases, estimators run on them as compiled programs, and comparisons."""

import functools

import jax
import numpy as np
from hypothesis import strategies as st
from oracles.cases import ROWS, WIDTH, rollout_cases

from jaxrl_llm.types import Rollouts

PROMPTS = 4  # the size of per-prompt tables; the cases' prompts are numbered a little beyond it


def build(case, **changes) -> Rollouts:
    fields = {
        name: getattr(case, name)
        for name in ("tokens", "length", "mask", "rewards", "group", "valid", "token_rewards", "behavior_logp", "advantage")
    }
    extras = {"reference_logp": case.reference_logp, "behavior_value": case.behavior_value} | getattr(case, "extras", {})
    return Rollouts(**(fields | getattr(case, "fields", {}) | {"extras": extras} | changes))


# Programs of tests run a few times: quick compilation is worth more than quick programs.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
compiled = functools.cache(jit)


def step(estimator, case, state=None, seed: int = 0):
    """Rollouts and state after one step, as NumPy arrays."""
    state = estimator.init() if state is None else state
    return jax.tree.map(np.asarray, compiled(estimator.update)(build(case), state, jax.random.key(seed)))


def run(estimator, case) -> Rollouts:
    return step(estimator, case)[0]


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


def assert_close_at_actions(actual, expected, case, **tolerances):
    assert_close(np.where(case.mask > 0, actual, 0), np.where(case.mask > 0, expected, 0), **tolerances)


def check_outside(rollouts, case):
    """Tokens that are not actions carry nothing, and nothing that a loss reads is NaN."""
    assert not rollouts.advantage[case.mask == 0].any()
    assert np.isfinite(rollouts.advantage).all()


@st.composite
def rich_cases(draw):
    """A case with everything that somebody may annotate: `case.fields` of the rollouts, and `case.extras`."""
    case = draw(rollout_cases())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape, alone = (ROWS, WIDTH), draw(st.booleans())
    numbers = random.permutation(6).astype(np.int32)  # of prompts: some lie outside of tables of PROMPTS
    case.fields = {
        "tokens": random.integers(0, 2, shape).astype(np.int32),
        "prompt_id": numbers[case.group],
        "turn": random.integers(0, 2, shape).cumsum(axis=1).astype(np.int32),
    }
    entropy = np.where(case.mask > 0, random.exponential(1.0, shape), np.nan)
    case.extras = {
        "proximal_entropy": entropy.astype(np.float32),
        "proximal_log_collision": np.where(case.mask > 0, -random.exponential(1.0, shape), np.nan).astype(np.float32),
        "greedy_reward": (random.integers(-3, 4, ROWS) / 4).astype(np.float32),
        "anchor_reward": np.where(random.random(ROWS) < 0.2, np.nan, random.random(ROWS)).astype(np.float32),
        "stratum": random.integers(0, 2, ROWS).astype(np.int32),
        "format": random.integers(-1, 3, ROWS).astype(np.int32),
        "answer": random.integers(-1, 3, ROWS).astype(np.int32),
        "calls": random.integers(0, 4, ROWS).astype(np.int32),
        "first_call": random.integers(-1, WIDTH, ROWS).astype(np.int32),
        "flawed": random.integers(0, 2, ROWS).astype(np.int32),
        "state": (random.integers(0, 9, shape) if alone else random.integers(0, 2, shape)).astype(np.int32),
        "right": random.integers(0, 2, ROWS).astype(np.int32),
        "step_reward": (random.integers(-2, 3, shape) / 4).astype(np.float32),
        "embedding": random.normal(size=(ROWS, 3)).astype(np.float32),
    }
    return case
