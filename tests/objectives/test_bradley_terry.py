"""The reward-model loss against its oracle, by hand, in degenerate batches and through the update under any split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from oracles import preference as oracle
from oracles import tiny_policy
from oracles.cases import modest
from oracles.tiny_policy import jit

from jaxrl_llm import methods
from jaxrl_llm.data.packing import pack
from jaxrl_llm.estimators import pair_mean
from jaxrl_llm.objectives import bradley_terry, entropy_bonus, objective
from jaxrl_llm.objectives.groups import find_pairs, pair_to_tokens, rollout_sum, two_sides
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import TrainState, make_gradient, make_update
from jaxrl_llm.types import Batch, Rollouts, Scores

ROWS, WIDTH = 4, 8
ESTIMATE, FIND_PAIRS = jit(pair_mean().update), jit(find_pairs)
TRAITS = ("lost", "masked", "padding", "equal", "far", "no_weight", "no_actions", "crowd")


@st.composite
def pair_cases(draw):
    """Arrays of a packed batch: ragged rollouts under arbitrary numbers, pairs that are whole, broken or crowded."""
    traits = draw(st.sets(st.sampled_from(TRAITS), max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (ROWS, WIDTH)
    segment = 1 + np.cumsum(random.random(shape) < 0.35, axis=1)
    segment[np.arange(WIDTH) >= random.integers(1, WIDTH + 1, ROWS)[:, None]] = 0
    if "padding" in traits:
        segment[0] = 0
    places = [(b, s) for b in range(ROWS) for s in np.unique(segment[b]) if s > 0]
    order = random.permutation(len(places))
    # Numbers beyond the number of tokens, as when most rollouts of a step were left out.
    numbers = random.choice(1000, len(places), replace=False)
    arrays = {name: np.zeros(shape, np.int32) for name in ("rollout", "group")} | {"preference": np.zeros(shape, np.float32)}
    for place, number in zip(order, numbers, strict=True):
        here = (np.arange(ROWS)[:, None] == places[place][0]) & (segment == places[place][1])
        rank = int(np.flatnonzero(numbers == number)[0])
        arrays["rollout"][here] = number
        arrays["group"][here] = 777 - rank // (3 if "crowd" in traits else 2)
        arrays["preference"][here] = 1.0 if rank % 2 == 0 else -1.0
    mask = (random.random(shape) < 0.8) & (segment > 0)
    if "lost" in traits:
        arrays["preference"][arrays["rollout"] == numbers[0]] = 0
    if "masked" in traits:
        mask[arrays["rollout"] == numbers[-1]] = False
    if "no_actions" in traits:
        mask[:] = False
    value = random.normal(size=shape) * (200.0 if "far" in traits else 1.0)
    if "equal" in traits:
        value[:] = 0.75
    weight = np.where(mask, random.exponential(0.2, shape), 0.0) * (0.0 if "no_weight" in traits else 1.0)
    junk = lambda inside, values: np.where(inside, values, np.nan).astype(np.float32)  # noqa: E731
    arrays |= {"segment": segment.astype(np.int32), "mask": mask.astype(np.float32), "weight": weight.astype(np.float32)}
    arrays |= {"value": junk(segment > 0, value), "margin": junk(segment > 0, 0.5 * arrays["group"] % 2)}
    arrays["preference"] = junk(segment > 0, arrays["preference"])
    return arrays


def build(case, with_margin=True) -> tuple[Scores, Batch]:
    extras = {name: case[name] for name in ("preference", *(("margin",) if with_margin else ()))}
    fields = {name: case[name] for name in ("mask", "segment", "rollout", "group", "weight")}
    batch = Batch(tokens=np.zeros((ROWS, WIDTH), np.int32), extras=extras, coefficients={"center": np.float32(0.3)}, **fields)
    return Scores(logp=np.full((ROWS, WIDTH), np.nan, np.float32), value=case["value"]), batch


@functools.cache
def program(loss):
    return jax.jit(lambda scores, batch: jax.value_and_grad(lambda s: loss(s, batch), has_aux=True)(scores))


@pytest.mark.parametrize("with_margin", [True, False])
@pytest.mark.parametrize("center", [0.0, 0.1, "center"])
@modest
@given(case=pair_cases())
def test_value_gradient_and_metrics(center, with_margin, case):
    arguments = [case[name] for name in ("value", "rollout", "group", "preference", "segment", "mask", "weight")]
    margin = case["margin"] if with_margin else None
    expected, slope, means = oracle.bradley_terry(*arguments, margin=margin, center=0.3 if center == "center" else center)
    (loss, metrics), gradient = program(objective(bradley_terry(center=center)))(*build(case, with_margin))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient.value, slope, rtol=1e-4, atol=1e-6 * (1 + np.abs(slope).max()))
    assert not np.any(gradient.logp)
    found = [metrics[f"pair_{name}"] for name in ("accuracy", "margin", "chosen", "rejected")]
    np.testing.assert_allclose(found, means, rtol=1e-4, atol=1e-5)


@modest
@given(case=pair_cases())
def test_weights_of_pairs(case):
    """`pair_to_tokens` gives back what the weights of the pairs say, and pairs are those of the oracle."""
    _, batch = build(case)
    pairs = FIND_PAIRS(batch)
    expected = oracle.pairs_of(*(case[name] for name in ("rollout", "group", "preference", "segment", "mask")))
    assert int(pairs.chosen.sum()) == int(pairs.rejected.sum()) == len(expected)
    shares = [sum(oracle.share(side, case["rollout"], case["weight"], case["mask"]) for side in pair) for pair in expected]
    np.testing.assert_allclose(pairs.weight.sum(), sum(shares), rtol=1e-5, atol=1e-7)
    token_loss = pair_to_tokens(jnp.arange(1.0, 1 + pairs.weight.size), pairs)
    total = jnp.sum(jnp.where(batch.mask > 0, batch.weight * token_loss, 0.0))
    np.testing.assert_allclose(total, jnp.sum(pairs.weight * jnp.arange(1.0, 1 + pairs.weight.size)), rtol=1e-4, atol=1e-6)


@modest
@given(case=pair_cases())
def test_the_estimator_gives_each_pair_the_same_share(case):
    random = np.random.default_rng(int(case["segment"].sum()))
    rows = 6
    mask = (random.random((rows, 4)) < 0.6).astype(np.float32) * (0.0 if not case["mask"].any() else 1.0)
    group, valid = random.integers(0, 3, rows).astype(np.int32), (random.random(rows) < 0.8).astype(np.float32)
    preference = random.choice([-1.0, 0.0, 1.0], rows).astype(np.float32)
    rollouts = Rollouts(
        tokens=np.zeros((rows, 4), np.int32), length=np.full(rows, 4, np.int32), mask=mask, rewards=np.zeros((rows, 1)),
        group=group, valid=valid, extras={"preference": preference},
    )  # fmt: skip
    found = ESTIMATE(rollouts, (), jax.random.key(0))[0].weight
    np.testing.assert_allclose(found, oracle.pair_mean(mask, valid, group, preference), rtol=1e-6)


def test_by_hand():
    """Two pairs: rewards 2 against 1, and 0 against 1; -log sigmoid(1) = 0.3133, -log sigmoid(-1) = 1.3133."""
    fields = {"mask": np.ones((4, 2)), "group": np.repeat([[0], [0], [1], [1]], 2, 1), "weight": np.full((4, 2), 1 / 8)}
    batch = Batch(tokens=np.zeros((4, 2), np.int32), extras={"preference": np.array([[1.0] * 2, [-1.0] * 2] * 2)}, **fields)
    scores = Scores(logp=np.zeros((4, 2)), value=np.array([[9.0, 2.0], [9.0, 1.0], [9.0, 0.0], [9.0, 1.0]]))
    (loss, metrics), _ = program(objective(bradley_terry()))(scores, batch)
    np.testing.assert_allclose(loss, (0.3132617 + 1.3132617) / 2, rtol=1e-5)
    assert metrics["pair_accuracy"] == 0.5 and metrics["pair_chosen"] == 1.0 and metrics["pair_margin"] == 0.0
    (centred, _), _ = program(objective(bradley_terry(center=0.1)))(scores, batch)
    np.testing.assert_allclose(centred - loss, 0.1 * (9 + 1) / 2, rtol=1e-5)


def test_what_it_declares():
    plain = objective(bradley_terry())
    assert plain.coupled and not plain.reads_logp and plain.needs == {"value"} and plain.annotations == {"preference"}
    both = objective(bradley_terry(), entropy_bonus())
    assert both.coupled and both.reads_logp
    assert not objective(entropy_bonus()).coupled and repr(plain) == "objective(bradley_terry())"
    with pytest.raises(ValueError, match=r"needs batch.extras\['preference'\], which is missing"):
        plain(Scores(logp=np.zeros((1, 2)), value=np.zeros((1, 2))), Batch(tokens=np.zeros((1, 2), int), mask=np.ones((1, 2))))


# ---- through the update


def random_pairs(pairs=5, width=10, seed=1) -> Rollouts:
    random = np.random.default_rng(seed)
    rows = 2 * pairs
    length = random.integers(3, width + 1, rows).astype(np.int32)
    place = np.arange(width)
    order = random.permutation(rows)  # members of a pair do not stand together
    return Rollouts(
        tokens=np.where(place < length[:, None], random.integers(0, 32, (rows, width)), 0).astype(np.int32),
        length=length,
        mask=((place >= 1) & (place < length[:, None] - 1)).astype(np.float32),
        rewards=np.zeros((rows, 1), np.float32),
        group=(order // 2).astype(np.int32),
        extras={
            "preference": np.where(order % 2 == 0, 1.0, -1.0).astype(np.float32),
            "margin": (0.1 * (order // 2)).astype(np.float32),
        },
    )


@pytest.fixture(scope="module")
def weighted():
    method = methods.get("reward_model", center=0.01)
    rollouts, _ = ESTIMATE(random_pairs(), (), jax.random.key(0))
    return method, jax.tree.map(np.asarray, rollouts)


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@functools.cache
def split_program(loss, micro_batches):
    scorer = make_scorer(tiny_policy.policy, loss.needs)

    def run(params, batch):
        scores, gradient = make_gradient(scorer, loss, micro_batches)(params, batch)
        return *loss(scores, batch), gradient

    return jit(run)


def assert_same(found, expected):
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected[2]))
    assert largest > 1e-3
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-5)
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-6 * largest), found[2], expected[2])


def test_splits_do_not_matter(weighted, params):
    """1, 2 and 5 micro-batches, two packings, another order of rows, padding, and a mesh of 2 x 4 devices."""
    method, rollouts = weighted
    batch = pack(rollouts, 10, rows=10)
    expected = split_program(method.objective, 1)(params, batch)
    # What the network says of the last token of each text: values stand one place behind.
    places = np.tile(np.arange(10), (10, 1))
    hidden = tiny_policy.hidden(params, rollouts.tokens, places, (places < rollouts.length[:, None]).astype(np.int32))
    rewards = np.asarray(tiny_policy.policy.value(params, hidden))[np.arange(10), rollouts.length - 2]
    chosen = rewards[np.argsort(rollouts.group * 2 + (rollouts.extras["preference"] < 0))][::2]
    np.testing.assert_allclose(expected[1]["pair_chosen"], chosen.mean(), rtol=1e-5)
    for micro_batches in (2, 5):
        assert_same(split_program(method.objective, micro_batches)(params, batch), expected)
    packed = pack(rollouts, 23, rows=6)
    assert packed.segment.max() > 1 and not packed.segment[-1].any()
    for micro_batches in (1, 2):
        assert_same(split_program(method.objective, micro_batches)(params, packed), expected)
    order = np.random.default_rng(3).permutation(10)
    moved = jax.tree.map(lambda leaf: leaf[order], rollouts)
    assert_same(split_program(method.objective, 1)(params, pack(moved, 23, rows=6)), expected)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    spread = jax.tree.map(lambda leaf: jax.device_put(leaf, rows) if np.ndim(leaf) else leaf, pack(rollouts, 23, rows=6))
    assert_same(split_program(method.objective, 2)(params, spread), expected)


def test_a_pair_that_lost_a_member_contributes_nothing(weighted, params):
    method, rollouts = weighted
    alone = rollouts.replace(valid=np.where(rollouts.group == 2, rollouts.extras["preference"] > 0, 1.0).astype(np.float32))
    found = ESTIMATE(alone, (), jax.random.key(0))[0]
    assert not np.asarray(found.weight)[rollouts.group == 2].any()
    keep = np.asarray(found.weight).sum(axis=1) > 0
    with_rest = split_program(method.objective, 1)(params, pack(jax.tree.map(np.asarray, found), 10, rows=10))
    without = split_program(method.objective, 1)(params, pack(jax.tree.map(np.asarray, found), 10, rows=10, keep=keep))
    assert_same(without, with_rest)
    nothing = rollouts.replace(extras=rollouts.extras | {"preference": np.ones(10, np.float32)})
    loss, _, gradient = split_program(method.objective, 1)(params, pack(nothing, 10, rows=10))
    assert float(loss) == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_update_learns_its_pairs(weighted, params):
    method, rollouts = weighted
    batch, optimizer = pack(rollouts, 23, rows=6), optax.adam(1e-2)
    update = jit(make_update(tiny_policy.policy, method.objective, optimizer, micro_batches=2))
    state = TrainState.create(params, optimizer)
    losses = []
    for _ in range(30):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0] and float(metrics["pair_accuracy"]) == 1.0 and int(state.skipped) == 0


def test_dpo_is_a_few_lines_of_the_same_reductions():
    """-log sigmoid(beta (x_chosen - x_rejected)), with x the sum over a rollout of log-ratios to the reference."""
    random = np.random.default_rng(4)
    logp, reference = (-random.exponential(size=(4, 3)).astype(np.float32) for _ in range(2))
    group = np.repeat([[1], [0], [0], [1]], 3, 1)
    extras = {"preference": np.repeat([[1.0], [1.0], [-1.0], [-1.0]], 3, 1)}
    batch = Batch(tokens=np.zeros((4, 3), int), mask=np.ones((4, 3)), group=group, extras=extras, reference_logp=reference)

    def dpo(scores, batch, beta=0.5):
        pairs = find_pairs(batch)
        chosen, rejected = two_sides(rollout_sum(scores.logp - batch.reference_logp, batch.mask, pairs.rollout), pairs)
        return jnp.sum(batch.weight * pair_to_tokens(jax.nn.softplus(-beta * (chosen - rejected)), pairs))

    x = (logp - reference).sum(axis=1)
    expected = np.mean([np.log1p(np.exp(-0.5 * (x[0] - x[3]))), np.log1p(np.exp(-0.5 * (x[1] - x[2])))])
    np.testing.assert_allclose(jit(dpo)(Scores(logp=logp), batch), expected, rtol=1e-5)
