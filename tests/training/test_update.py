"""Splits do not matter: loss and gradient of every method for any micro-batches, packing, padding, order and mesh."""

import dataclasses
import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from oracles import tiny_policy
from oracles.tiny_policy import jit

from jaxrl_llm import methods
from jaxrl_llm.data import pack, pack_forest
from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.objectives import negative_log_likelihood, objective
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import TrainState, make_gradient, make_update
from jaxrl_llm.training.metrics import defined
from jaxrl_llm.types import Batch, Scores

ROWS, ROW_WIDTH = 8, 12


@dataclasses.dataclass(frozen=True)
class SquaredTotal:
    """A coupled loss: the square of the batch's weighted log-likelihood, and a penalty on tokens below its lower quartile."""

    needs: frozenset = frozenset({"entropy"})
    coupled: bool = True

    def __call__(self, scores: Scores, batch: Batch):
        total = jnp.sum(batch.weight * batch.mask * scores.logp)
        quartile = jnp.nanquantile(jnp.where(batch.mask > 0, scores.logp, jnp.nan), 0.25)
        low = (batch.mask > 0) & (scores.logp < jax.lax.stop_gradient(quartile))
        penalty = jnp.sum(jnp.where(low, jnp.square(scores.logp - quartile) * scores.entropy, 0.0))
        return jnp.square(total) + 0.1 * penalty, {"total": total}


def loss_and_gradient(scorer, objective, micro_batches, params, batch):
    scores, gradient = make_gradient(scorer, objective, micro_batches)(params, batch)
    loss, metrics = objective(scores, batch)
    return loss, gradient, scores, metrics


@functools.cache
def compiled(objective, micro_batches):
    scorer = make_scorer(tiny_policy.policy, objective.needs)
    return jit(functools.partial(loss_and_gradient, scorer, objective, micro_batches))


def program(method, micro_batches=0):
    return compiled(method.objective, micro_batches)


def assert_close(actual, expected):
    """Float32 rounding, relative to the largest entry of the gradient."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    assert largest > 1e-4, "nothing to compare"
    np.testing.assert_allclose(actual[0], expected[0], rtol=2e-5, atol=2e-6 * max(1.0, largest))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * largest), actual[1], expected[1])


def permuted(rollouts, order):
    """The same rollouts in another order, their groups under other names."""
    names = np.random.default_rng(0).permutation(len(order)).astype(np.int32)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf)[order], rollouts)
    return moved.replace(group=names[moved.group])


def mesh_2x4():
    return jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def sharded(mesh, params, batch):
    """Rows over the data axis; the vocabulary of the parameters over the tensor axis."""
    place = lambda spec: lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec))  # noqa: E731
    batch = batch.replace(**{
        field.name: jax.tree.map(place(PartitionSpec("data")), getattr(batch, field.name))
        for field in dataclasses.fields(batch)
        if field.name not in ("step", "coefficients")
    })  # fmt: skip
    split = {"embedding", "head"}
    return {
        name: place(PartitionSpec("tensor") if name in split else PartitionSpec())(leaf) for name, leaf in params.items()
    }, batch


@pytest.fixture(scope="module")
def params():
    return tiny_policy.init()


@pytest.fixture(scope="module")
def rollouts(params):
    return forked(tiny_policy.random_rollouts(params))


def forked(rollouts):
    """Rows of a group begin alike, with two or three tokens, and those of odd numbers with two more: forks inside answers."""
    tokens, place = rollouts.tokens.copy(), np.arange(rollouts.tokens.shape[1])
    for row, group in enumerate(rollouts.group):
        first = int(np.flatnonzero(rollouts.group == group)[0])
        common = min(2 + 3 * (row % 2), rollouts.length[row], rollouts.length[first])
        tokens[row] = np.where(place < common, tokens[first], tokens[row])
    return rollouts.replace(tokens=tokens)


# Their estimators draw a number for each row, or pair the j-th rows of groups: what they say depends on the order.
DRAWS_BY_ORDER = ("dsac", "dsac_t", "pf_ppo", "red_drop", "riskpo")
# The others are slow: they are many, and each compiles two programs.
# They imitate demonstrations, which need no reward.
IMITATE = ("chord", "chord_phi")
# A pair counts by the probability of whole answers, which is tiny for random ones: `beta` leaves something to compare.
LARGER = {"wpo": {"beta": 1.0}}
CHOSEN = ("dapo", "dpo", "gkd", "gspo", "grpo", "kto", "nft", "ppo", "reward_model", "sft", "troll", "clip_cov")


# Those that take a gradient of a loss.
WITH_LOSS = [name for name in methods.names() if methods.get(name).objective.terms]


@pytest.mark.parametrize("name", tiny_policy.some_slow(CHOSEN, WITH_LOSS))
def test_splits_do_not_matter(name, params, rollouts):
    """A forest in micro-batches, some of them empty, its rows wider and in another order; the estimator sees the order too."""
    method = methods.get(name, **LARGER.get(name, {}))
    estimated = tiny_policy.estimated(method, rollouts)
    given = {"coefficients": tiny_policy.coefficients(method), "step": 3}
    batch = pack(estimated, ROW_WIDTH, rows=ROWS, **given)
    whole = program(method)
    expected = whole(params, batch)
    assert all(np.isfinite(value) for value in expected[3].values()) and all(map(defined, expected[3]))

    order = np.random.default_rng(2).permutation(len(rollouts.length))
    by_order = name in DRAWS_BY_ORDER
    moved = permuted(estimated, order) if by_order else tiny_policy.estimated(method, permuted(rollouts, order))
    repacked = pack_forest(moved, 2 * ROW_WIDTH, part_tokens=2 * ROW_WIDTH, multiple=1, **given)
    assert (repacked.forest.reach > 0).sum() < moved.length.sum() and len(repacked.parts) > 1
    assert_close(program(method)(params, repacked), expected)

    if method.learns_from == "samples" and not method.needs_teacher and name not in IMITATE:
        nothing = tiny_policy.estimated(method, rollouts.replace(rewards=np.full_like(rollouts.rewards, np.nan)))
        _, gradient, *_ = whole(params, pack(nothing, ROW_WIDTH, rows=ROWS, **given))
        assert not nothing.weight.any() and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", CHOSEN)
def test_order_and_mesh_do_not_matter(name, params, rollouts):
    method = methods.get(name)
    given = {"coefficients": tiny_policy.coefficients(method), "step": 3}
    batch = pack(tiny_policy.estimated(method, rollouts), ROW_WIDTH, rows=ROWS, **given)
    expected = program(method)(params, batch)
    shuffle = np.random.default_rng(3).permutation(ROWS)
    assert_close(program(method)(params, _rows(batch, shuffle)), expected)
    assert_close(program(method, 2)(*sharded(mesh_2x4(), params, batch)), expected)


def _rows(batch, order):
    scalars = {"step": batch.step, "coefficients": batch.coefficients}
    return jax.tree.map(lambda leaf: leaf[order], batch.replace(step=None, coefficients={})).replace(**scalars)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8])
def test_coupled_objectives_are_exact_under_any_split(micro_batches, params, rollouts):
    coupled = SquaredTotal()
    batch = pack(tiny_policy.estimated(methods.get("sft"), rollouts), ROW_WIDTH, rows=ROWS)
    scorer = make_scorer(tiny_policy.policy, coupled.needs)
    loss, gradient = jit(jax.value_and_grad(lambda params: coupled(scorer(params, batch), batch)[0]))(params)
    run = jit(functools.partial(loss_and_gradient, scorer, coupled, micro_batches))
    assert_close(run(params, batch), (loss, gradient))
    if micro_batches == 2:
        assert_close(run(*sharded(mesh_2x4(), params, batch)), (loss, gradient))


def test_a_coupled_objective_without_its_mark_is_another_loss(params, rollouts):
    """The mark matters: taken for additive, the micro-batches of this loss do not add up."""
    batch = pack(tiny_policy.estimated(methods.get("sft"), rollouts), ROW_WIDTH, rows=ROWS)
    coupled = SquaredTotal()
    scorer = make_scorer(tiny_policy.policy, coupled.needs)
    exact = jit(functools.partial(loss_and_gradient, scorer, coupled, 2))(params, batch)
    wrong = jit(functools.partial(loss_and_gradient, scorer, SquaredTotal(coupled=False), 2))(params, batch)
    assert np.abs(exact[1]["head"] - wrong[1]["head"]).max() > 1e-3 * np.abs(exact[1]["head"]).max()


def test_gradient_is_that_of_the_loss(params, rollouts):
    """Score, differentiate, pull back = differentiating the whole at once."""
    method = methods.get("ppo", entropy_coefficient=0.01)
    batch = pack(tiny_policy.estimated(method, rollouts), ROW_WIDTH, rows=ROWS)
    scorer = make_scorer(tiny_policy.policy, method.objective.needs)
    expected = jit(jax.value_and_grad(lambda params: method.objective(scorer(params, batch), batch)[0]))(params)
    assert_close(program(method, 5)(params, batch), expected)


def test_scores_come_back_in_their_rows(params, rollouts):
    method = methods.get("grpo")
    batch = pack(tiny_policy.estimated(method, rollouts), ROW_WIDTH, rows=ROWS)
    expected = program(method)(params, batch)[2].logp
    for micro_batches in (2, 5):
        np.testing.assert_allclose(program(method, micro_batches)(params, batch)[2].logp, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_splits_of_a_decoder_do_not_matter(rollouts):
    """The decoder proper: two layers, packed rows, a value head; micro-batches together with a mesh."""
    method = methods.get("ppo", entropy_coefficient=0.01)
    config = DecoderConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, value_head=True
    )
    network = decoder(config)
    random = np.random.default_rng(5)
    start = network.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * random.normal(size=leaf.shape).astype(np.float32), start)
    estimated = tiny_policy.estimated(method, rollouts)
    scorer = make_scorer(network, method.objective.needs)
    one, five = (jit(functools.partial(loss_and_gradient, scorer, method.objective, parts)) for parts in (1, 5))
    expected = one(params, pack(estimated, ROW_WIDTH, rows=ROWS))
    rows = NamedSharding(mesh_2x4(), PartitionSpec("data"))
    wider = pack(estimated, 2 * ROW_WIDTH, rows=6)
    assert_close(
        five(params, jax.tree.map(lambda leaf: jax.device_put(leaf, rows) if np.ndim(leaf) else leaf, wider)), expected
    )


# ---- the step


def sft_batch(rollouts):
    return pack(tiny_policy.estimated(methods.get("sft"), rollouts), ROW_WIDTH, rows=ROWS)


def assert_equal_bits(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(_bits(a), _bits(b)), one, other)


def _bits(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(leaf).view(np.uint8) if np.ndim(leaf) else np.asarray(leaf)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_steps_that_are_not_finite_are_skipped_and_counted(micro_batches, params, rollouts):
    optimizer = optax.adam(1e-2)
    update = jit(make_update(tiny_policy.apply, objective(negative_log_likelihood()), optimizer, micro_batches=micro_batches))
    batch = sft_batch(rollouts)
    state, _ = update(TrainState.create(params, optimizer), batch)
    for weight in (np.nan, np.inf):
        broken, metrics = update(state, batch.replace(weight=np.where(batch.mask > 0, np.float32(weight), 0)))
        assert_equal_bits((broken.params, broken.opt_state), (state.params, state.opt_state))
        assert int(broken.step) == 2 and int(broken.skipped) == 1 and float(metrics["skipped"]) == 1
        assert not np.isfinite(metrics["loss"])
    after, metrics = update(broken, batch)
    assert int(after.skipped) == 1 and int(after.step) == 3 and float(metrics["skipped"]) == 0
    assert_equal_bits(after.params, update(state, batch)[0].params)


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped(params, rollouts):
    @dataclasses.dataclass(frozen=True)
    class Kink:
        needs: frozenset = frozenset()
        coupled: bool = False

        def __call__(self, scores, batch):
            return jnp.sum(jnp.sqrt(0.0 * scores.logp)), {}

    optimizer = optax.sgd(1.0, momentum=0.9)
    state = TrainState.create(params, optimizer)
    after, metrics = jit(make_update(tiny_policy.apply, Kink(), optimizer))(state, sft_batch(rollouts))
    assert np.isfinite(metrics["loss"]) and int(after.skipped) == 1
    assert_equal_bits((after.params, after.opt_state), (params, state.opt_state))


def test_the_same_inputs_give_the_same_bits(params, rollouts):
    method = methods.get("grpo")
    batch = pack(tiny_policy.estimated(method, rollouts), ROW_WIDTH, rows=ROWS)
    optimizer = optax.adam(1e-2)

    def run():
        update = jax.jit(make_update(tiny_policy.apply, method.objective, optimizer, micro_batches=2))
        state = TrainState.create(params, optimizer)
        for _ in range(3):
            state, metrics = update(state, batch)
        return state, metrics

    assert_equal_bits(run(), run())


def test_inputs_are_left_alone(params, rollouts):
    optimizer = optax.adam(1e-2)
    state, batch = TrainState.create(params, optimizer), sft_batch(rollouts)
    before = jax.tree.map(np.array, (state.params, state.opt_state, batch))
    jit(make_update(tiny_policy.apply, objective(negative_log_likelihood()), optimizer))(state, batch)
    assert_equal_bits((state.params, state.opt_state, batch), before)


def test_metrics_are_float32_scalars_of_the_whole_batch(params, rollouts):
    method = methods.get("grpo")
    batch = pack(tiny_policy.estimated(method, rollouts), ROW_WIDTH, rows=ROWS)
    optimizer = optax.sgd(0.0)
    found = {}
    for micro_batches in (1, 5):
        update = jit(make_update(tiny_policy.apply, method.objective, optimizer, micro_batches=micro_batches))
        _, found[micro_batches] = update(TrainState.create(params, optimizer), batch)
    assert {"loss", "gradient_norm", "skipped", "logp_gap", "reference_kl"} <= set(found[1])
    for name, value in found[1].items():
        assert value.shape == () and value.dtype == jnp.float32, name
        np.testing.assert_allclose(found[5][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    _, gradient, scores, _ = program(method)(params, batch)
    sampled = (batch.mask > 0) & (batch.extras["source"] == 0)
    gap = np.abs(np.asarray(scores.logp) - batch.behavior_logp)[sampled].max()
    np.testing.assert_allclose(found[1]["logp_gap"], gap, rtol=1e-4)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(found[1]["gradient_norm"], norm, rtol=1e-4)


def test_temperature_is_that_of_the_policy(params, rollouts):
    """The update at temperature 0.5 is that of a policy whose logits are doubled."""
    loss, batch, optimizer = objective(negative_log_likelihood()), sft_batch(rollouts), optax.sgd(1.0)
    doubled = lambda *inputs: 2.0 * tiny_policy.apply(*inputs)  # noqa: E731
    state = TrainState.create(params, optimizer)
    cool, _ = jit(make_update(tiny_policy.apply, loss, optimizer, temperature=0.5))(state, batch)
    sharp, _ = jit(make_update(doubled, loss, optimizer))(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), cool.params, sharp.params)


def test_any_optax_chain(params, rollouts):
    """Clipping to a norm and a schedule: the step's length is the schedule's value times the clipped norm."""
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(optax.linear_schedule(1.0, 0.0, 2)))
    update = jit(make_update(tiny_policy.apply, objective(negative_log_likelihood()), optimizer))
    state, batch, lengths = TrainState.create(params, optimizer), sft_batch(rollouts), []
    for _ in range(3):
        new, metrics = update(state, batch)
        assert float(metrics["gradient_norm"]) > 1e-3
        lengths.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, new.params, state.params))))
        state = new
    np.testing.assert_allclose(lengths, [1e-3, 5e-4, 0.0], rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_bfloat16_parameters_stay_bfloat16(micro_batches, params, rollouts):
    small = jax.tree.map(jnp.bfloat16, params)
    optimizer = optax.adam(1e-2)
    loss = objective(negative_log_likelihood())
    scorer = make_scorer(tiny_policy.policy)
    update = jit(make_update(tiny_policy.apply, loss, optimizer, micro_batches=micro_batches, scorer=scorer))
    state, batch, losses = TrainState.create(small, optimizer), sft_batch(rollouts), []
    for _ in range(10):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state[0].mu)} == {jnp.dtype(jnp.bfloat16)}
    assert losses[-1] < losses[0] - 0.05 and metrics["loss"].dtype == jnp.float32


def test_bfloat16_micro_batches_are_added_in_float32(params):
    """512 equal parts: in bfloat16 the sum would stop growing at half of its value."""
    small, rows = jax.tree.map(jnp.bfloat16, params), 512
    row = Batch(tokens=np.array([[3, 1, 4, 1]]), mask=np.ones((1, 4), np.float32), weight=np.full((1, 4), 1 / rows, np.float32))
    batch = Batch(**{name: np.repeat(getattr(row, name), rows, axis=0) for name in ("tokens", "mask", "weight")})
    scorer, loss = make_scorer(tiny_policy.apply), objective(negative_log_likelihood())
    alone = jit(make_gradient(scorer, loss))(small, row)[1]
    many = jit(make_gradient(scorer, loss, rows))(small, batch)[1]
    for name in ("embedding", "mix", "head"):
        expected = rows * np.float32(alone[name])
        np.testing.assert_allclose(np.float32(many[name]), expected, rtol=0.02, atol=0.01 * np.abs(expected).max())


def test_a_wrong_number_of_micro_batches():
    with pytest.raises(ValueError, match="micro_batches is -1; it must be at least 1, or 0 for those of the batch"):
        make_update(tiny_policy.apply, objective(negative_log_likelihood()), optax.sgd(1.0), micro_batches=-1)


# ---- inside of somebody else's code


class Reader(nnx.Module):
    """A small network of a user: embedding, a causal running mean, a linear head."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(tiny_policy.VOCABULARY, 16, rngs=rngs)
        self.head = nnx.Linear(16, tiny_policy.VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        embedded = self.embedding(tokens)
        count = jnp.arange(1, tokens.shape[1] + 1)[None, :, None]
        return self.head(embedded + jnp.cumsum(embedded, axis=1) / count)


def nnx_policy():
    graph, start = nnx.split(Reader(nnx.Rngs(0)))
    return lambda params, tokens, positions, segments: nnx.merge(graph, params)(tokens), start


def bare_policy():
    return tiny_policy.apply, tiny_policy.init(3)


@pytest.mark.parametrize(("policy", "name"), [(nnx_policy, "sft"), (bare_policy, "grpo"), (nnx_policy, "grpo")])
def test_trains_a_network_that_we_did_not_write_in_a_loop_of_its_owner(policy, name, rollouts):
    apply, start = policy()
    method = methods.get(name, **({"kl_coefficient": 0.0} if name == "grpo" else {}))
    optimizer = optax.adam(3e-2)
    update = make_update(apply, method.objective, optimizer, micro_batches=2)
    estimated = tiny_policy.estimated(method, rollouts)
    # One sequence a row: a user's network need not know of packing.
    batch = Batch(**{field: getattr(estimated, field) for field in ("tokens", "mask", "advantage", "weight")})
    batch = batch.replace(behavior_logp=np.asarray(jit(make_scorer(apply))(start, batch).logp))

    @jit
    def users_loop(params):
        def body(carry, _):
            carry, metrics = update(carry, batch)
            return carry, metrics["loss"]

        return jax.lax.scan(body, TrainState.create(params, optimizer), length=20)

    state, losses = users_loop(start)
    assert int(state.step) == 20 and int(state.skipped) == 0
    assert losses[-1] < losses[0] - 0.02 and np.isfinite(losses).all()
    assert jax.tree.structure(state.params) == jax.tree.structure(start)
