"""Checkpoints: arrays and progress together, written aside and renamed, so that a kill leaves the last one whole."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


def open_manager(directory: str | pathlib.Path, *, keep: int, best_metric: str = "") -> ocp.CheckpointManager:
    """Manager of the checkpoints of a run; saving goes on in the background.

    Args:
      directory: for the checkpoints, made if need be.
      keep: number of latest checkpoints to keep.
      best_metric: also keeps, of the checkpoints that were saved with this metric, the one where it is largest, or, of a
        loss, smallest; "" for none.
    """
    kept: list[Any] = [policies.LatestN(keep)]
    sign = -1 if best_metric.endswith("loss") else 1

    def quality(measured) -> float:
        return sign * measured[best_metric]

    if best_metric:
        best = policies.BestN(n=1, get_metric_fn=quality, keep_checkpoints_without_metrics=False)
        kept.append(best)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        best_fn=quality if best_metric else None,
        enable_async_checkpointing=True,
        create=True,
    )
    handlers = {"arrays": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options, item_handlers=handlers)


def save(manager: ocp.CheckpointManager, step: int, arrays, progress: dict[str, Any], metrics: dict[str, float]) -> None:
    """Begins to save `arrays` (any pytree, PRNG keys included) and `progress` (plain values) as checkpoint `step`."""
    contents = ocp.args.Composite(arrays=ocp.args.StandardSave(_without_keys(arrays)), progress=ocp.args.JsonSave(progress))
    manager.save(step, args=contents, metrics=metrics or None)


def latest_progress(manager: ocp.CheckpointManager) -> tuple[int, dict[str, Any]] | None:
    """Number and progress of the latest whole checkpoint, or None."""
    step = manager.latest_step()
    return None if step is None else (step, read_progress(manager, step))


def read_progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Progress that was saved with checkpoint `step`."""
    return manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]


def restore_arrays(manager: ocp.CheckpointManager, step: int, like):
    """Arrays of checkpoint `step`, in the structure, dtypes and placement of `like`.

    Raises:
      ValueError: the checkpoint holds other shapes or another structure; the message names the first difference.
    """
    template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_keys(like))
    _check_shapes(manager, step, template)
    restored = manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(template)))["arrays"]
    return _with_keys(restored, like)


def _check_shapes(manager: ocp.CheckpointManager, step: int, template) -> None:
    stored = _shapes(manager.item_metadata(step)["arrays"])
    wanted = _shapes(template)
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise ValueError(
                f"checkpoint {step} in {manager.directory} has {name} of shape {stored.get(name, 'nothing')}, this run "
                f"{wanted.get(name, 'nothing')}; resume with the configuration it was made with, or choose another workdir"
            )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree):
    """PRNG keys as their raw words, and Python numbers as arrays."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else _as_array(leaf), tree)


def _as_array(leaf):
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _with_keys(tree, like):
    def rebuild(leaf, model):
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(model)) if _is_key(model) else leaf

    return jax.tree.map(rebuild, tree, like)


def restore_params(directory: str | pathlib.Path, like, *, path: tuple[str, ...] = ("params",)):
    """Only the parameters of the latest checkpoint in `directory`, in the structure and placement of `like`.

    Args:
      directory: of the checkpoints of a run.
      like: arrays or shapes of the parameters.
      path: where they stand in the checkpoint.

    Raises:
      ValueError: there is no checkpoint, or it holds other parameters.
    """
    handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(pathlib.Path(directory).absolute(), item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{directory} holds no checkpoint; train first, or give another folder")
        template = jax.tree.map(_template_leaf, like)
        for name in reversed(path):
            template = {name: template}
        _check_part(_shapes(manager.item_metadata(step)["arrays"].tree), _shapes(template), directory)
        restoring = jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype), template)
        wanted = ocp.args.PyTreeRestore(template, restore_args=restoring, partial_restore=True)
        restored = manager.restore(step, args=ocp.args.Composite(arrays=wanted))["arrays"]
    for name in path:
        restored = restored[name]
    return restored


def parameter_names(directory: str | pathlib.Path) -> set[str]:
    """Names at the top of the parameters of the latest checkpoint."""
    handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(pathlib.Path(directory).absolute(), item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{directory} holds no checkpoint; train first, or give another folder")
        return set(manager.item_metadata(step)["arrays"].tree["params"])


def _template_leaf(leaf):
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_part(stored, wanted, directory) -> None:
    for name, shape in wanted.items():
        if stored.get(name) != shape:
            raise ValueError(
                f"the checkpoint in {directory} has {name} of shape {stored.get(name, 'nothing')}, the network {shape}; "
                "give the configuration that it was made with"
            )
