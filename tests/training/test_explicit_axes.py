"""An update in a user's loop, under a mesh whose axes are explicit, as `jax.make_mesh` makes them, or automatic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl_llm import methods
from jaxrl_llm.training import TrainState, make_update
from jaxrl_llm.types import Batch

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(16, 16)).astype(np.float32)
OPTIMIZER = optax.sgd(1.0)


def apply(params, tokens, positions, segments):
    return jax.nn.one_hot(tokens, 16) @ params["table"]


def batch_of(rows: int) -> Batch:
    shape = (rows, 4)
    return Batch(
        tokens=RANDOM.integers(0, 16, shape),
        mask=np.ones(shape, np.float32),
        advantage=RANDOM.normal(size=shape).astype(np.float32),
        behavior_logp=np.full(shape, -2.7, np.float32),
        reference_logp=np.full(shape, -2.0, np.float32),
        group=np.arange(rows)[:, None] // 2 + np.zeros(shape, int),
        extras={"preference": np.tile([[1.0], [-1.0]], (rows // 2, 4))},
    )


def updated(objective, batch: Batch, micro_batches: int, place=lambda tree, spec: tree):
    state = TrainState.create({"table": jnp.asarray(TABLE)}, OPTIMIZER)
    update = jax.jit(make_update(apply, objective, OPTIMIZER, micro_batches=micro_batches))
    state, metrics = update(place(state, P()), jax.tree.map(lambda x: place(x, P("data") if np.ndim(x) else P()), batch))
    return np.asarray(state.params["table"]), float(metrics["loss"])


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize(("name", "rows", "micro_batches"), [("grpo", 4, 2), ("grpo", 8, 3), ("dpo", 8, 2)])
def test_the_update_is_that_of_one_device(kind, name, rows, micro_batches):
    """Rows that the parts do not divide, and a loss that compares rows of several devices, among them."""
    options = {"kl_coefficient": 0.0} if name == "grpo" else {}
    objective, batch = methods.get(name, **options).objective, batch_of(rows)
    alone, loss = updated(objective, batch, 1)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = updated(objective, batch, micro_batches, lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec)))
    np.testing.assert_allclose(placed[0], alone, atol=1e-6)
    assert placed[1] == pytest.approx(loss, abs=1e-6)


def test_manual_axes_give_their_own_share():
    """Inside of `shard_map` weights are shares of the whole: sums over the devices are the update of one."""
    objective, batch = methods.get("grpo", kl_coefficient=0.0).objective, batch_of(8)
    alone, loss = updated(objective, batch, 1)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    state = TrainState.create({"table": jnp.asarray(TABLE)}, OPTIMIZER)

    def share(table, rows):
        new, metrics = make_update(apply, objective, OPTIMIZER, micro_batches=2)(state.replace(params={"table": table}), rows)
        return jax.lax.psum(new.params["table"] - table, "data"), jax.lax.psum(metrics["loss"], "data")

    specs = jax.tree.map(lambda x: P("data") if np.ndim(x) else P(), batch)
    mapped = jax.shard_map(share, mesh=mesh, in_specs=(P(), specs), out_specs=P(), check_vma=False)
    change, total = jax.jit(mapped)(jnp.asarray(TABLE), batch)
    np.testing.assert_allclose(TABLE + change, alone, atol=1e-6)
    assert float(total) == pytest.approx(loss, abs=1e-6)
