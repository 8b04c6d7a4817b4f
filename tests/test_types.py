"""The records: what they fill in, what they refuse, and how they go through the transforms of JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.types import Batch, Forest, Rollouts, Scores

N, T, K = 3, 4, 2


def rollouts(xp=np, **fields) -> Rollouts:
    given = {
        "tokens": xp.zeros((N, T), xp.int32),
        "length": xp.full((N,), T, xp.int32),
        "mask": xp.ones((N, T), xp.float32),
        "rewards": xp.zeros((N, K), xp.float32),
    }
    return Rollouts(**(given | fields))


def batch(**fields) -> Batch:
    return Batch(**({"tokens": np.zeros((N, T), np.int32), "mask": np.ones((N, T), np.float32)} | fields))


WRONG = {
    "mask": np.ones((N, T + 1)),
    "length": np.ones((N, 1)),
    "rewards": np.ones(N),
    "group": np.zeros(N + 1, np.int32),
    "token_rewards": np.zeros((T, N)),
    "behavior_logp": np.zeros((N,)),
    "valid": np.ones((N, T)),
    "advantage": np.zeros((1, T)),
    "weight": np.zeros((N, T, 1)),
    "source": np.zeros((), np.int32),
}


@pytest.mark.parametrize("field", WRONG)
def test_rollouts_name_the_field_and_its_shape(field):
    with pytest.raises(ValueError) as error:
        rollouts(**{field: WRONG[field]})
    assert f"Rollouts.{field}" in str(error.value) and str(WRONG[field].shape) in str(error.value)


@pytest.mark.parametrize(
    "field", ["mask", "positions", "segment", "rollout", "group", "advantage", "weight", "behavior_logp", "returns"]
)
def test_batch_names_the_field_and_its_shape(field):
    with pytest.raises(ValueError, match=rf"Batch.{field} has shape \(3, 5\); it must be \(3, 4\)"):
        batch(**{field: np.zeros((N, T + 1))})


@pytest.mark.parametrize("field", ["entropy", "mean_logp", "value", "hidden"])
def test_scores_name_the_field_and_its_shape(field):
    with pytest.raises(ValueError, match=rf"Scores.{field} has shape \(3, 5\)"):
        Scores(logp=np.zeros((N, T)), **{field: np.zeros((N, T + 1))})


def test_ranks_are_refused():
    with pytest.raises(ValueError, match=r"Rollouts.tokens must have two axes.*\(4,\)"):
        rollouts(tokens=np.zeros(T, np.int32))
    with pytest.raises(ValueError, match=r"Batch.tokens must have two axes"):
        batch(tokens=np.zeros((1, N, T), np.int32))
    with pytest.raises(ValueError, match=r"Scores.logp must have two axes"):
        Scores(logp=np.zeros(T))


def test_a_list_is_refused_with_the_name_of_the_field():
    with pytest.raises(ValueError, match="Rollouts.length has shape list"):
        rollouts(length=[T] * N)


def test_extras_are_checked():
    assert rollouts(extras={"score": np.zeros((N, 7))}).extras["score"].shape == (N, 7)
    with pytest.raises(ValueError, match=r"Rollouts.extras\['score'\] has shape \(4,\)"):
        rollouts(extras={"score": np.zeros(4)})
    with pytest.raises(ValueError, match=r"Batch.extras\['score'\] has shape \(3,\)"):
        batch(extras={"score": np.zeros(N)})


def test_replace_checks_and_leaves_the_original():
    record = rollouts()
    with pytest.raises(ValueError, match="Rollouts.advantage"):
        record.replace(advantage=np.zeros(N))
    changed = record.replace(advantage=np.ones((N, T)))
    assert changed.advantage.all() and not record.advantage.any()
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.advantage = None
    with pytest.raises(TypeError, match="unknown"):
        record.replace(unknown=1)


def test_the_plain_case_is_filled_in():
    record = rollouts()
    np.testing.assert_array_equal(record.group, np.arange(N))
    np.testing.assert_array_equal(record.prompt_id, record.group)
    np.testing.assert_array_equal(record.valid, np.ones(N))
    assert not record.advantage.any() and not record.weight.any() and record.token_rewards is None
    plain = batch(mask=np.array([[0, 1, 1, 0]] * N, np.float32))
    np.testing.assert_array_equal(plain.positions, np.tile(np.arange(T), (N, 1)))
    np.testing.assert_array_equal(plain.segment, np.ones((N, T)))
    np.testing.assert_array_equal(plain.rollout, np.tile(np.arange(N)[:, None], (1, T)))
    np.testing.assert_allclose(plain.weight, plain.mask / (2 * N))
    assert not batch(mask=np.zeros((N, T), np.float32)).weight.any()


def test_numpy_stays_numpy_and_jax_stays_jax():
    assert isinstance(rollouts().advantage, np.ndarray)
    assert isinstance(rollouts(jnp).advantage, jax.Array)


def test_rewards_keep_their_type():
    assert rollouts(rewards=np.full((N, K), 0.5, np.float64)).rewards[0, 0] == 0.5


def test_tree_map_and_key_paths():
    doubled = jax.tree.map(lambda leaf: leaf * 2, rollouts())
    assert isinstance(doubled, Rollouts) and doubled.mask[0, 0] == 2
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(rollouts(extras={"a": np.zeros(N)}))}
    assert ".tokens" in paths and ".extras['a']" in paths
    structure = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), rollouts())
    assert structure.tokens.shape == (N, T)


def test_vmap_over_rows():
    lengths = jax.vmap(lambda row: row.mask.sum() + row.length)(rollouts(jnp))
    np.testing.assert_allclose(lengths, [8, 8, 8])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), rollouts(jnp))
    assert jax.vmap(lambda record: record.replace(advantage=record.mask))(stacked).advantage.shape == (2, N, T)


def test_scan_over_stacked_batches():
    stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 3), batch(step=np.int32(2)))
    total, _ = jax.lax.scan(lambda carry, part: (carry + part.mask.sum() + part.step, None), 0.0, stacked)
    assert float(total) == 3 * (N * T + 2)


def test_scores_are_differentiated_as_a_whole():
    scores = Scores(logp=jnp.zeros((N, T)), value=jnp.ones((N, T)))
    gradient = jax.grad(lambda s: jnp.sum(s.logp * 2 + s.value**2))(scores)
    assert isinstance(gradient, Scores) and gradient.entropy is None
    np.testing.assert_array_equal(gradient.value, 2 * np.ones((N, T)))


def test_flattening_and_back():
    record = rollouts(extras={"a": np.ones(N)})
    leaves, structure = jax.tree.flatten(record)
    again = jax.tree.unflatten(structure, leaves)
    jax.tree.map(np.testing.assert_array_equal, record, again)
    jitted = jax.jit(lambda r: r)(record)
    assert isinstance(jitted, Rollouts) and jitted.tokens.dtype == np.int32


@pytest.mark.parametrize("group", [[0, 3], [-1, 0]])
def test_groups_that_reductions_would_drop_are_refused(group):
    columns = {"tokens": np.zeros((2, 3), np.int32), "length": np.full(2, 3), "mask": np.ones((2, 3))}
    with pytest.raises(ValueError, match="Rollouts.group holds (3|-1); number the groups from 0 to 1"):
        Rollouts(**columns, rewards=np.zeros((2, 1)), group=np.array(group))


def test_a_forest_comes_with_its_index_and_as_many_rows():
    rows, actions = np.zeros((2, 6), np.int32), np.zeros((2, 3), np.int32)
    forest = Forest(tokens=rows, positions=rows, reach=rows)
    batch = Batch(tokens=actions, mask=np.zeros((2, 3)), forest=forest, index=actions)
    assert batch.forest.tokens.shape == (2, 6)
    with pytest.raises(ValueError, match="Batch has 'forest' alone; forest and index say together what is read"):
        Batch(tokens=actions, mask=np.zeros((2, 3)), forest=forest)
    with pytest.raises(ValueError, match=r"Batch.forest has 2 rows; it must have the 1 of the batch"):
        Batch(tokens=actions[:1], mask=np.zeros((1, 3)), forest=forest, index=actions[:1])
    with pytest.raises(ValueError, match=r"Forest.reach has shape \(2, 5\); it must be \(2, 6\)"):
        Forest(tokens=rows, positions=rows, reach=rows[:, :5])
