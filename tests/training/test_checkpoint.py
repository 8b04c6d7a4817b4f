"""Checkpoints: the same bits back, useful errors, what is kept, and parts of one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm.training import TrainState, checkpoint

PARAMS = {
    "a": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32),
    "b": {"c": jnp.asarray(np.random.default_rng(1).normal(size=5), jnp.bfloat16), "d": jnp.arange(4)},
}
STEP_METRIC = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2, 5: 0.5}


def make_state(params=PARAMS, seed=7):
    method_state = {"mean": jnp.float32(0.25), "count": 3, "share": 0.5}
    optimizer = optax.adam(1e-3)
    floats = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.bfloat16)), params)
    return TrainState.create(floats, optimizer, method_state=method_state, key=jax.random.key(seed))


def save_one(directory, state, step=3, **options):
    with checkpoint.open_manager(directory, keep=2, **options) as manager:
        checkpoint.save(manager, step, state, {"phase": "rl", "cursor": [0, 5], "accuracy": None}, {})


def bits(leaf):
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.atleast_1d(np.asarray(jax.random.key_data(leaf) if is_key else leaf)).view(np.uint8)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), one, other)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    save_one(tmp_path, state)
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        step, progress = checkpoint.latest_progress(manager)
        restored = checkpoint.restore_arrays(manager, step, make_state(jax.tree.map(jnp.zeros_like, PARAMS), seed=1))
    assert step == 3 and progress == {"phase": "rl", "cursor": [0, 5], "accuracy": None}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(bits(mine), bits(theirs), err_msg=jax.tree_util.keystr(path))
        assert getattr(theirs, "dtype", mine.dtype) == mine.dtype
    assert jnp.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
    np.testing.assert_array_equal(jax.random.uniform(restored.key, 4), jax.random.uniform(state.key, 4))


def test_other_implementations_of_keys(tmp_path):
    arrays = {"key": jax.random.key(3, impl="rbg"), "keys": jax.random.split(jax.random.key(4), (2, 3))}
    save_one(tmp_path, arrays)
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        restored = checkpoint.restore_arrays(manager, 3, jax.tree.map(lambda key: key, arrays))
    assert_same_bits(restored, arrays)
    assert jax.random.key_impl(restored["key"]) == jax.random.key_impl(arrays["key"])


def test_arrays_come_back_where_they_lay(tmp_path):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    arrays = {"w": jax.device_put(jnp.arange(16.0), split), "b": jnp.ones(3)}
    save_one(tmp_path, arrays)
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        restored = checkpoint.restore_arrays(manager, 3, arrays)
        assert restored["w"].sharding == split
        assert_same_bits(restored, arrays)
        # Another layout than the one it was saved in.
        elsewhere = checkpoint.restore_arrays(manager, 3, {"w": jnp.zeros(16), "b": jnp.ones(3)})
    assert len(elsewhere["w"].devices()) == 1
    np.testing.assert_array_equal(elsewhere["w"], np.arange(16.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "a": jnp.zeros((3, 4))}, r"checkpoint 3 in .*params/a of shape \(3, 2\), this run \(3, 4\)"),
        (lambda p: {**p, "e": jnp.zeros(2)}, r"params/e of shape nothing, this run \(2,\)"),
        (lambda p: {"a": p["a"]}, r"params/b/c of shape \(5,\), this run nothing"),
    ],
)
def test_other_shapes_name_the_leaf_and_the_mend(change, message, tmp_path):
    save_one(tmp_path, {"params": PARAMS})
    with checkpoint.open_manager(tmp_path, keep=2) as manager, pytest.raises(ValueError, match=message) as caught:
        checkpoint.restore_arrays(manager, 3, {"params": change(PARAMS)})
    assert "another workdir" in str(caught.value)


def steps_of(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("keep", "best", "expected"), [(2, "", [4, 5]), (1, "", [5]), (2, "score", [2, 4, 5]), (5, "", [1, 2, 3, 4, 5])]
)
def test_the_latest_and_the_best_are_kept(keep, best, expected, tmp_path):
    with checkpoint.open_manager(tmp_path, keep=keep, best_metric=best) as manager:
        for step, score in STEP_METRIC.items():
            checkpoint.save(manager, step, {"w": jnp.full(2, step)}, {"step": step}, {"score": score} if best else {})
    assert steps_of(tmp_path) == expected
    with checkpoint.open_manager(tmp_path, keep=keep, best_metric=best) as manager:
        assert checkpoint.latest_progress(manager) == (5, {"step": 5})
        for step in expected:
            np.testing.assert_array_equal(checkpoint.restore_arrays(manager, step, {"w": jnp.zeros(2)})["w"], [step, step])


def test_checkpoints_without_the_metric_are_not_the_best(tmp_path):
    with checkpoint.open_manager(tmp_path, keep=1, best_metric="score") as manager:
        for step, score in STEP_METRIC.items():
            checkpoint.save(manager, step, {"w": jnp.zeros(2)}, {}, {"score": score} if step < 3 else {})
    assert steps_of(tmp_path) == [2, 5]


def test_nothing_saved_yet(tmp_path):
    with checkpoint.open_manager(tmp_path / "new", keep=1) as manager:
        assert checkpoint.latest_progress(manager) is None
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.restore_params(tmp_path / "new", PARAMS)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.parameter_names(tmp_path / "new")


def test_only_the_parameters(tmp_path):
    save_one(tmp_path, make_state())
    like = jax.eval_shape(lambda: make_state().params)
    assert_same_bits(checkpoint.restore_params(tmp_path, like), make_state().params)
    assert checkpoint.parameter_names(tmp_path) == {"a", "b"}


def test_only_the_policy_of_an_actor_and_a_critic(tmp_path):
    params = {"policy": PARAMS, "critic": {**jax.tree.map(lambda leaf: leaf + 1, PARAMS), "value_head": jnp.ones(2)}}
    save_one(tmp_path, make_state(params))
    like = jax.eval_shape(lambda: make_state(params).params["policy"])
    assert checkpoint.parameter_names(tmp_path) == {"policy", "critic"}
    restored = checkpoint.restore_params(tmp_path, like, path=("params", "policy"))
    assert_same_bits(restored, make_state(params).params["policy"])


def test_parameters_of_another_network_name_the_leaf(tmp_path):
    save_one(tmp_path, make_state())
    like = jax.eval_shape(lambda: {**make_state().params, "a": jnp.zeros((9, 2))})
    with pytest.raises(ValueError, match=r"params/a of shape \(3, 2\), the network \(9, 2\); give the configuration"):
        checkpoint.restore_params(tmp_path, like)
