"""Checkpoints: arrays and progress together, written aside and renamed, so that a kill leaves the last one whole.

Digests of all their files lie in them, and nothing is restored whose bytes are not those that were written.
"""

import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from jaxrl_llm import distributed
from jaxrl_llm.training.bucket import Folder, folder, renamed
from jaxrl_llm.training.digests import fault as digests_fault
from jaxrl_llm.training.digests import with_digests

ITEMS = ("arrays", "progress")
SAMPLES = "samples"  # where there are some that no step has learned from
_LOGGER = logging.getLogger(__name__)


def open_manager(directory: str | Folder, *, keep: int, best_metric: str = "") -> ocp.CheckpointManager:
    """Manager of the checkpoints of a run; saving goes on in the background.

    Broken checkpoints behind the newest whole one are renamed to `NUMBER.broken` first, as it takes their place.

    Args:
      directory: for the checkpoints, made if need be.
      keep: number of latest checkpoints to keep.
      best_metric: also keeps, of the checkpoints that were saved with this metric, the one where it is largest, or, of a
        loss, smallest; "" for none.

    Raises ValueError: there are checkpoints, but all are broken.
    """
    _set_broken_aside(folder(directory))
    distributed.gathered(None)  # Nobody looks at them before they are set aside.
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
    handlers = {
        "arrays": with_digests(ocp.StandardCheckpointHandler()),
        "progress": with_digests(ocp.JsonCheckpointHandler()),
        SAMPLES: with_digests(ocp.StandardCheckpointHandler()),
    }
    return ocp.CheckpointManager(folder(directory), options=options, item_handlers=handlers)


def save(
    manager: ocp.CheckpointManager, step: int, arrays, progress: dict[str, Any], metrics: dict[str, float],
    samples: dict[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Begins to save `arrays` (any pytree, PRNG keys included) and `progress` (plain values) as checkpoint `step`.

    `samples` are host arrays of any shapes, which `restore_samples` gives back.
    """
    items = {"arrays": ocp.args.StandardSave(_without_keys(arrays)), "progress": ocp.args.JsonSave(progress)}
    if samples:
        items[SAMPLES] = ocp.args.StandardSave(samples)
    manager.save(step, args=ocp.args.Composite(**items), metrics=metrics or None)


def restore_samples(manager: ocp.CheckpointManager, step: int) -> dict[str, np.ndarray]:
    """The samples of checkpoint `step`; the checkpoint is a whole one, see `restore_arrays`."""
    return manager.restore(step, args=ocp.args.Composite(**{SAMPLES: ocp.args.StandardRestore()}))[SAMPLES]


def newest_whole(directory: str | Folder) -> tuple[int | None, list[int]]:
    """Number of the newest whole checkpoint in `directory`, and those of the broken ones behind it, which are warned of.

    Raises ValueError: there are checkpoints, but all are broken.
    """
    directory, broken, first = folder(directory), [], ""
    # In a bucket a checkpoint has its name before it is whole: without the mark of the end it is none.
    whole = ocp.utils.is_checkpoint_finalized if isinstance(directory, epath.Path) else pathlib.Path.exists
    names = [path.name for path in filter(whole, directory.iterdir())] if directory.exists() else []
    for step in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
        reason = fault(directory / str(step))
        if not reason:
            return step, broken
        _LOGGER.warning("checkpoint %d is broken: %s; the newest whole one before it is taken", step, reason)
        broken.append(step)
        first = first or reason
    if broken:
        raise ValueError(
            f"all checkpoints in {directory}, {broken}, are broken; of the newest, {first}; "
            "put a copy of one in its place, or begin anew in another folder"
        )
    return None, []


def fault(directory: Folder) -> str:
    """Why the folder is no whole checkpoint; "" if it is one."""
    if not all((directory / name).is_dir() for name in ITEMS):
        return f"{directory} has no {' and '.join(ITEMS)}"
    for path in (directory / "_CHECKPOINT_METADATA", directory / "metrics" / "metrics"):
        try:
            json.loads(path.read_bytes()) if path.exists() else None
        except (OSError, ValueError) as error:
            return f"{path} cannot be read: {error}"
    items = [*ITEMS, SAMPLES] if (directory / SAMPLES).is_dir() else ITEMS
    return next(filter(None, (digests_fault(directory / name) for name in items)), "")


def _set_broken_aside(directory: Folder) -> None:
    _, broken = newest_whole(directory)
    for step in broken if distributed.is_first() else ():
        place, copies = directory / f"{step}.broken", 1
        while place.exists():
            place, copies = directory / f"{step}.broken{copies}", copies + 1
        renamed(directory / str(step), place)


def _refuse_broken(directory: Folder) -> None:
    if reason := fault(directory):
        raise ValueError(f"the checkpoint in {directory} is broken: {reason}; put a copy in its place, or take another")


def latest_progress(manager: ocp.CheckpointManager) -> tuple[int, dict[str, Any]] | None:
    """Number and progress of the latest checkpoint, or None."""
    step = manager.latest_step()
    return None if step is None else (step, read_progress(manager, step))


def read_progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Progress that was saved with checkpoint `step`.

    Raises ValueError: the checkpoint is broken.
    """
    _refuse_broken(folder(manager.directory) / str(step))
    return manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]


def restore_arrays(manager: ocp.CheckpointManager, step: int, like):
    """Arrays of checkpoint `step`, in the structure, dtypes and placement of `like`.

    Raises:
      ValueError: the checkpoint is broken, or holds other shapes or another structure; the message names the first difference.
    """
    _refuse_broken(folder(manager.directory) / str(step))
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
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable and jax.process_count() > 1):
        return leaf
    return np.asarray(leaf)  # Of what each of several processes has for itself the first one's is saved.


def _with_keys(tree, like):
    def rebuild(leaf, model):
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(model)) if _is_key(model) else leaf

    return jax.tree.map(rebuild, tree, like)


def restore_params(directory: str | Folder, like, *, path: tuple[str, ...] = ("params",)):
    """Only the parameters of the newest whole checkpoint in `directory`, in the structure and placement of `like`.

    Args:
      directory: of the checkpoints of a run.
      like: arrays or shapes of the parameters.
      path: where they stand in the checkpoint.

    Raises ValueError: there is no checkpoint, all are broken, or it holds other parameters.
    """
    arrays, handler = _newest_arrays(directory), ocp.PyTreeCheckpointHandler()
    template = jax.tree.map(_template_leaf, like)
    for name in reversed(path):
        template = {name: template}
    _check_part(_shapes(handler.metadata(arrays).tree), _shapes(template), directory)
    restoring = jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype), template)
    wanted = ocp.args.PyTreeRestore(template, restore_args=restoring, partial_restore=True)
    restored = handler.restore(arrays, args=wanted)
    for name in path:
        restored = restored[name]
    return restored


def parameter_names(directory: str | Folder) -> set[str]:
    """Names at the top of the parameters of the newest whole checkpoint."""
    return set(ocp.PyTreeCheckpointHandler().metadata(_newest_arrays(directory)).tree["params"])


def _newest_arrays(directory: str | Folder) -> epath.Path:
    step, _ = newest_whole(directory)
    if step is None:
        raise ValueError(f"{directory} holds no checkpoint; train first, or give another folder")
    return epath.Path(folder(directory)) / str(step) / "arrays"


def save_params(directory: Folder, params) -> None:
    """Writes parameters alone, whole or not at all; what lay there is replaced."""
    if not isinstance(directory, pathlib.Path) and distributed.is_first() and directory.exists():
        directory.rmtree()  # Orbax would write among what a kill left in a bucket.
    distributed.gathered(None)
    with ocp.AsyncCheckpointer(with_digests(ocp.StandardCheckpointHandler())) as checkpointer:
        checkpointer.save(directory, args=ocp.args.StandardSave(params), force=True)


def load_params(directory: Folder, like):
    """Parameters that `save_params` wrote, in the structure and placement of `like`.

    Raises ValueError: the folder is missing or broken.
    """
    if reason := digests_fault(directory):
        raise ValueError(f"the parameters in {directory} are broken: {reason}; put a copy in their place, or begin anew")
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


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
