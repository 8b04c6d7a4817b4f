"""Random, ragged and degenerate inputs for comparing the package with the oracles; few shapes, so that programs are shared."""

import dataclasses

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ROWS, WIDTH, COMPONENTS = 6, 8, 2
modest = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
# For oracles whose gradients are finite differences.
brief = settings(modest, max_examples=12)


@dataclasses.dataclass
class RolloutCase:
    """Arrays of `ROWS` rollouts; what stands outside of `mask` is NaN where it may be."""

    tokens: np.ndarray
    length: np.ndarray
    mask: np.ndarray
    rewards: np.ndarray
    group: np.ndarray
    valid: np.ndarray
    token_rewards: np.ndarray | None
    behavior_logp: np.ndarray
    reference_logp: np.ndarray
    behavior_value: np.ndarray
    advantage: np.ndarray


ROLLOUT_TRAITS = (
    "empty_row",
    "no_actions",
    "alone",
    "one_group",
    "uniform",
    "missing",
    "all_missing",
    "invalid",
    "all_invalid",
)


@st.composite
def rollout_cases(draw) -> RolloutCase:
    """Rewards are multiples of 1/4, so that equal scores are equal in any precision."""
    traits = draw(st.sets(st.sampled_from(ROLLOUT_TRAITS), max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (ROWS, WIDTH)
    length = random.integers(1, WIDTH + 1, ROWS).astype(np.int32)
    mask = (random.random(shape) < 0.7) & (np.arange(WIDTH) < length[:, None])
    group = random.integers(0, 3, ROWS).astype(np.int32)
    rewards = random.integers(-3, 4, (ROWS, COMPONENTS)) / 4
    token_rewards = random.integers(-3, 4, shape) / 4 if draw(st.booleans()) else None
    advantage = random.normal(size=shape)
    valid = np.ones(ROWS)
    if "alone" in traits:
        group = random.permutation(ROWS).astype(np.int32)
    if "one_group" in traits:
        group[:] = ROWS - 1
    if "uniform" in traits:
        rewards[group == group[0]], token_rewards, advantage = 0.75, None, np.full(shape, 100.1)
    if "missing" in traits:
        rewards[random.random(rewards.shape) < 0.5] = np.nan
    if "all_missing" in traits:
        rewards[:] = np.nan
    if "invalid" in traits:
        valid[random.random(ROWS) < 0.4] = 0
    if "all_invalid" in traits:
        valid[:] = 0
    if "empty_row" in traits:
        length[0], mask[0] = 0, False
    if "no_actions" in traits:
        mask[:] = False
    per_token = (-random.exponential(2.0, shape), -random.exponential(2.0, shape), random.normal(size=shape), advantage)
    junk = [_junk_outside(mask, values) for values in (*per_token, token_rewards)]
    return RolloutCase(
        tokens=random.integers(0, 32, shape).astype(np.int32),
        length=length,
        mask=mask.astype(np.float32),
        rewards=rewards.astype(np.float32),
        group=group,
        valid=valid.astype(np.float32),
        token_rewards=junk[4],
        behavior_logp=junk[0],
        reference_logp=junk[1],
        behavior_value=junk[2],
        advantage=junk[3],
    )


@dataclasses.dataclass
class BatchCase:
    """Arrays of a packed batch [BATCH, WIDTH] and of scores; what stands outside of `mask` is NaN."""

    tokens: np.ndarray
    mask: np.ndarray
    segment: np.ndarray
    advantage: np.ndarray
    weight: np.ndarray
    behavior_logp: np.ndarray
    reference_logp: np.ndarray
    returns: np.ndarray
    behavior_value: np.ndarray
    logp: np.ndarray
    entropy: np.ndarray
    value: np.ndarray
    rollout: np.ndarray
    group: np.ndarray
    source: np.ndarray
    turn: np.ndarray
    score: np.ndarray
    correct: np.ndarray
    accuracy: np.ndarray
    preference: np.ndarray
    proximal_logp: np.ndarray
    teacher_logp: np.ndarray
    proximal_entropy: np.ndarray
    proximal_mean_logp: np.ndarray
    mean_logp: np.ndarray
    top_entropy: np.ndarray
    log_collision: np.ndarray
    candidates: np.ndarray
    candidate_logp: np.ndarray
    proximal_candidate_logp: np.ndarray
    reference_candidate_logp: np.ndarray
    teacher_candidate_logp: np.ndarray
    value_outputs: np.ndarray
    max_logp: np.ndarray
    return_samples: np.ndarray


CANDIDATES = 3
OUTPUTS = 4
BATCH = 4
BATCH_TRAITS = ("empty_row", "no_actions", "no_weight", "infinite", "far", "on_policy", "no_advantage")


@st.composite
def batch_cases(draw) -> BatchCase:
    traits = draw(st.sets(st.sampled_from(BATCH_TRAITS), max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (BATCH, WIDTH)
    segment = 1 + np.cumsum(random.random(shape) < 0.3, axis=1)
    segment[np.arange(WIDTH) >= random.integers(1, WIDTH + 1, BATCH)[:, None]] = 0
    mask = (random.random(shape) < 0.8) & (segment > 0)
    logp = -random.exponential(1.5, shape)
    behavior = logp + 0.4 * random.normal(size=shape)
    reference = logp + 0.6 * random.normal(size=shape)
    advantage, weight = random.normal(size=shape), random.exponential(0.2, shape) * (random.random(shape) < 0.8)
    if "far" in traits:
        behavior += random.choice([-35.0, 0.0, 35.0], shape)
        reference += random.choice([-35.0, 0.0, 35.0], shape)
    if "infinite" in traits:
        for values in (logp, behavior, reference):
            values[random.random(shape) < 0.3] = -np.inf
    if "on_policy" in traits:
        behavior, reference = logp.copy(), logp.copy()
    if "no_advantage" in traits:
        advantage[:] = 0
    if "no_weight" in traits:
        weight[:] = 0
    if "empty_row" in traits:
        mask[0], segment[0] = False, 0
    if "no_actions" in traits:
        mask[:] = False
    names = ("logp", "behavior_logp", "reference_logp", "advantage", "entropy", "value", "returns", "behavior_value")
    value = random.normal(size=shape)
    old, returns = value + 0.4 * random.normal(size=shape), value + random.normal(size=shape)
    arrays = (logp, behavior, reference, advantage, random.exponential(1.0, shape), value, returns, old)
    more = _scattered(random, shape, segment, logp, traits)
    return BatchCase(
        **{name: _junk_outside(mask, array) for name, array in more.items()},
        tokens=random.integers(0, 32, shape).astype(np.int32),
        mask=mask.astype(np.float32),
        segment=segment.astype(np.int32),
        weight=np.where(mask, weight, 0).astype(np.float32),
        **{name: _junk_outside(mask, array) for name, array in zip(names, arrays, strict=True)},
    )


def _scattered(random, shape, segment, logp, traits):
    """What belongs to rollouts and groups, at every token of them, and what other policies say of the tokens."""
    slots = np.arange(shape[0])[:, None] * (shape[1] + 1) + segment
    numbers = random.permutation(shape[0] * (shape[1] + 1))
    group = np.minimum(random.integers(0, 3, numbers.size), random.integers(0, 3, numbers.size))
    correct = random.random(numbers.size) < 0.5
    accuracy = np.array([correct[group == g].mean() for g in group])
    scores = random.integers(-3, 4, numbers.size) / 4
    near = {name: logp + 0.4 * random.normal(size=shape) for name in ("proximal_logp", "teacher_logp")}
    # Probabilities of the candidates leave at least a tenth of the mass to all other tokens.
    shares = {
        name: np.log(0.9 * random.dirichlet(np.ones(CANDIDATES + 1), shape)[..., :CANDIDATES] + 1e-3)
        for name in ("candidate_logp", "proximal_candidate_logp", "reference_candidate_logp", "teacher_candidate_logp")
    }
    if "on_policy" in traits:
        near["proximal_logp"] = logp.copy()
        shares["proximal_candidate_logp"] = shares["candidate_logp"].copy()
    absent = random.random((*shape, CANDIDATES)) < (0.2 if "infinite" in traits else 0.0)
    candidates = np.where(absent, -1, random.permuted(np.tile(np.arange(32), (*shape, 1)), axis=-1)[..., :CANDIDATES])
    return {
        "rollout": numbers[slots],
        "group": group[numbers[slots]],
        "source": (random.random(numbers.size) < 0.3)[numbers[slots]].astype(np.int32),
        "turn": random.integers(0, 2, shape).cumsum(axis=1),
        "score": scores[numbers[slots]],
        "correct": correct[numbers[slots]],
        "accuracy": accuracy[numbers[slots]],
        "preference": random.choice([-1.0, 0.0, 1.0], numbers.size)[numbers[slots]],
        "proximal_entropy": random.exponential(1.0, shape),
        "proximal_mean_logp": -4.0 - random.exponential(1.0, shape),
        "mean_logp": -4.0 - random.exponential(1.0, shape),
        "top_entropy": random.exponential(1.0, shape),
        "log_collision": -random.exponential(1.0, shape),
        "candidates": candidates,
        "value_outputs": random.normal(size=(*shape, OUTPUTS)),
        "max_logp": -random.exponential(0.3, shape),
        "return_samples": random.normal(size=(*shape, 3)),
        **near,
        **{name: np.where(absent, -np.inf, values) for name, values in shares.items()},
    }


def _junk_outside(mask, values):
    """NaN where no action is; numbers of rollouts and groups stay as they are."""
    if values is None or np.issubdtype(np.asarray(values).dtype, np.integer):
        return None if values is None else np.asarray(values, np.int32)
    inside = mask if np.ndim(values) == np.ndim(mask) else mask[..., None]
    return np.where(inside, values, np.nan).astype(np.float32)
