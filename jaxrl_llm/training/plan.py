"""What a run would need of a TPU slice and how long its steps would take at least, found out by compiling it, without a TPU."""

import dataclasses
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxrl_llm import distributed
from jaxrl_llm.distributed import chips, hlo
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.training.programs import PlannedRun, Program, all_programs, planned_run

LANES = 128  # numbers of a register's row: shards that are narrower are not gathered but summed, which sends twice the bytes
_DUMP = "xla_dump_to"


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is known of a program."""

    name: str  # of the program
    times: int  # how often it runs in a step
    memory: dict[str, float]  # bytes of a device by what they are; all together must fit
    capacity: float  # bytes that a device has
    compile_seconds: float  # of this machine
    tokens: int = 0  # that networks read in a run, on all devices
    learned: int = 0  # tokens whose logits it needs
    flops: float = 0.0  # of a device in a run, recomputation included
    attention: float = 0.0  # those of kernels among them, attention and grouped products
    useful: float = 0.0  # FLOPs of a device that the model needs
    moved: float = 0.0  # bytes of HBM that a device reads and writes
    # bytes that a device sends, by kind and axes, such as "all-gather fsdp"
    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    gathered: int = 0  # elements of the largest all-gather
    # least time by what bounds it: "compute", "memory", "links"
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    mfu: float = 0.0  # largest share of the chips' peak that useful FLOPs can have
    notes: tuple[str, ...] = ()  # what the figures leave out
    fault: str = ""  # what the compiler said where it refused; then only `memory` and times are known

    @property
    def fits(self) -> bool:
        return not self.fault and sum(self.memory.values()) <= self.capacity

    @property
    def least_seconds(self) -> float:
        """Of one run; infinite where the compiler refused."""
        return max(self.seconds.values(), default=math.inf)

    @property
    def bound(self) -> str:
        return max(self.seconds, key=self.seconds.get, default="memory")


def make_plan(config: ConfigDict, wanted: chips.Slice, *, search: bool = False) -> dict[str, Any]:
    """Compiles the programs of a step for a slice.

    Args:
      config: of the run; a mesh of one device stands for all devices along fsdp.
      wanted: the slice.
      search: whether the update is compiled for every mesh that could hold it, and the rest for the best of them.

    Returns:
      Plain values: "topology", "mesh", "programs" with the fields of `Planned`, "step_seconds", "warnings", "remedies" where
      the update does not fit, and "searched".

    Raises ValueError: an impossible configuration, or libtpu is missing or has no such slice.
    """
    devices, searched = chips.topology_devices(wanted), []
    if math.prod(config.mesh[name] for name in distributed.AXES) == 1:
        config = _changed(config, {"mesh.fsdp": -1})
    if search:
        searched = sorted(_searched(config, wanted, devices), key=lambda found: (not found["fits"], found["seconds"]))
        if not searched:
            raise ValueError("no mesh of this slice divides rows and heads and holds the state; take a larger slice")
        config = _changed(config, {f"mesh.{name}": size for name, size in searched[0]["mesh"].items()})
    run = planned_run(config, devices)
    programs = [planned(program, run, wanted) for program in all_programs(run, _memory(wanted))]
    remedies = [] if programs[0].fits else _remedies(config, wanted, devices)
    return {
        "topology": wanted.name,
        "slices": wanted.slices,
        "mesh": dict(run.mesh.shape),
        "sampling_mesh": dict(run.sampling_mesh.shape),
        "programs": [
            dataclasses.asdict(one) | {"fits": one.fits, "least_seconds": one.least_seconds, "bound": one.bound}
            for one in programs
        ],
        "fits": all(one.fits for one in programs),
        "step_seconds": sum(one.times * one.least_seconds for one in programs),
        "warnings": narrow_shards(run),
        "remedies": remedies,
        "searched": searched,
    }


def planned(program: Program, run: PlannedRun, wanted: chips.Slice) -> Planned:
    """Compiles a program and reads what it does."""
    memory, start = {name: device_bytes(tree) for name, tree in (program.inputs | program.beside).items()}, time.monotonic()
    known = {"name": program.name, "times": program.times, "capacity": _memory(wanted)}
    known |= {"tokens": program.tokens, "learned": program.learned}
    with tempfile.TemporaryDirectory() as folder, distributed.sharded(program.mesh):
        lowered = program.function.lower(*program.arguments, **program.options)
        try:
            compiled = lowered.compile(compiler_options={_DUMP: folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if wanting := re.search(r"temporaries \(([\d.]+)([KMG])\)", str(error)):
                scale = {"K": 2**10, "M": 2**20, "G": 2**30}[wanting.group(2)]
                memory |= {"temporaries": float(wanting.group(1)) * scale}
            fault = " ".join(str(error).split())[:200]
            return Planned(**known, memory=memory, compile_seconds=time.monotonic() - start, fault=fault)
        took = time.monotonic() - start
        text = _dumped(folder, "after_optimizations.txt")
    figures = hlo.read_hlo(text, program.mesh, program.loops, program.filled)
    memory |= _temporaries(compiled.memory_analysis(), memory, program)
    attention, notes = 0.0, []
    for kernel in figures.kernels:
        work = kernel_flops(kernel, program.seen)
        attention += work or 0.0
        if work is None:
            notes.append("the FLOPs of a kernel that is neither attention nor a grouped product are left out")
    flops, sent, by_axes = figures.flops + attention, {}, {}
    for (kind, axes), one in figures.collectives.items():
        sent[f"{kind} {axes}"] = one.sent
        by_axes[axes] = by_axes.get(axes, 0.0) + one.sent
    seconds = chips.seconds(wanted, program.mesh, flops, figures.bytes, by_axes)
    useful = useful_flops(program, run) / program.mesh.size
    share = useful * wanted.chip.devices / wanted.chip.flops / max(*seconds.values(), 1e-12)
    gathers = [one.largest for (kind, _), one in figures.collectives.items() if kind == "all-gather"]
    return Planned(
        **known, memory=memory, compile_seconds=took, flops=flops, attention=attention, useful=useful, moved=figures.bytes,
        sent=sent, gathered=max(gathers, default=0), seconds=seconds, mfu=share, notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def device_bytes(tree) -> float:
    """Bytes of the arrays of a tree on one device, from their shapes and shardings."""
    sizes = [
        (leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape), item_size(leaf.dtype))
        for leaf in jax.tree.leaves(tree)
    ]
    return float(sum(math.prod(shape) * size for shape, size in sizes))


def item_size(dtype) -> int:
    """Bytes of a number; of a PRNG key those of its words."""
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def _temporaries(found, known: dict[str, float], program: Program) -> dict[str, float]:
    """The rest of XLA's memory of a device: what programs keep, temporaries, outputs, and what fills inputs up."""
    inputs = sum(known[name] for name in program.inputs if name != "cache")
    rest, parts = float(found.temp_size_in_bytes), {}
    if "cache" in known:
        parts["cache"] = min(known["cache"], rest)
    parts["activations" if program.name == "update" else "temporaries"] = rest - sum(parts.values())
    parts["outputs"] = float(found.output_size_in_bytes - found.alias_size_in_bytes)
    parts["padding"] = max(found.argument_size_in_bytes - inputs, 0.0)
    return parts


def kernel_flops(kernel: hlo.Kernel, seen: float) -> float | None:
    """FLOPs of kernels of attention, and of grouped products of full groups, in all their runs; None for another kernel.

    Per pair of a query and a key that is seen, and head: 2 products forward, 3 for the gradient of queries, and 4 for those of
    keys and values (https://arxiv.org/abs/2307.08691).
    """
    *_, rows, last = kernel.operands
    of_groups = [shape for shape in (last, *kernel.results) if len(shape) == 3]
    if len(rows) == 2 and of_groups:
        return kernel.times * 2.0 * rows[0] * math.prod(of_groups[0][1:])
    if len(kernel.operands) < 6 or len(kernel.operands[3]) != 4 or len(kernel.operands[0]) != 3:
        return None
    rows, heads, length, width = kernel.operands[3]
    products = 3 if len(kernel.results) == 1 else 2 if kernel.results[1][2] == 1 else 4
    return kernel.times * products * 2.0 * rows * heads * length**2 * width * seen


def useful_flops(program: Program, run: PlannedRun) -> float:
    """FLOPs that the model needs: 2 for each active parameter and token forward, twice as many backward, and what mixes tokens.

    Source: https://arxiv.org/abs/2001.08361, section 2.1.
    """
    network = run.network.config
    passes = 3 if program.name == "update" else 1
    share = 1.0 if network.experts is None else network.experts.per_token / network.experts.count
    active = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.whole(run.network.params)):
        name = jax.tree_util.keystr(path)
        if "layers" in name and leaf.ndim >= 3:
            active += leaf.size * (share if "experts" in name and "router" not in name else 1.0)
    length = run.config.task.max_prompt_tokens + run.config.rl.max_new_tokens
    head = program.learned * network.vocab_size * network.hidden_size
    return passes * (2.0 * (active * program.tokens + head) + program.tokens * mixing_flops(network, program.seen * length))


def mixing_flops(network: DecoderConfig, keys: float) -> float:
    """FLOPs by which the layers of a network mix a token with `keys` others, without those of their matrices.

    Per head: attention multiplies each key that is seen with a query, and its value with a weight; the delta rule reads its
    state by a key, changes it by an outer product, and reads it by a query (https://arxiv.org/abs/2412.06464, equation 10).
    """
    total = 0.0
    for kind in map(network.kinds.__getitem__, network.kind_of_layer):
        if kind.shape.mixer == "delta":
            total += 6.0 * network.delta.value_heads * network.delta.key_dim * network.delta.value_dim
            continue
        of_value = kind.shape.head_dim if network.latent is None else network.latent.value_dim
        total += 2.0 * network.num_heads * (kind.shape.head_dim + of_value) * min(keys, kind.window or keys)
    return total


def narrow_shards(run: PlannedRun) -> list[str]:
    """A line for each matrix whose shards are narrower than 128 in the last axis because of the mesh."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.network.params):
        shard = leaf.sharding.shard_shape(leaf.shape)
        if leaf.ndim > 1 and shard[-1] < min(LANES, leaf.shape[-1]):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            lines.append(
                f"{name} {list(leaf.shape)}: shards of {shard[-1]} columns, below {LANES}, are gathered at twice the bytes"
            )
    return lines


def _memory(wanted: chips.Slice) -> float:
    return wanted.chip.memory / wanted.chip.devices


def _dumped(folder: str, end: str) -> str:
    files = sorted(pathlib.Path(folder).glob(f"*.{end}")) or sorted(pathlib.Path(folder).glob(f"*{end}"))
    return max((file.read_text() for file in files), key=len, default="")


def _changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def _searched(config: ConfigDict, wanted: chips.Slice, devices) -> Iterator[dict[str, Any]]:
    """The update on every mesh that could hold it."""
    for sizes in meshes_of(len(devices) // (config.mesh.expert * config.mesh.context)):
        changed = _changed(config, {f"mesh.{name}": size for name, size in sizes.items()})
        run = planned_run(changed, devices)
        if run.network.config.num_kv_heads % sizes["tensor"]:
            continue
        # By arithmetic: parameters and both moments of Adam lie on the device all the time.
        if 3 * device_bytes(run.network.params) > _memory(wanted):
            continue
        found = planned(all_programs(run, _memory(wanted))[0], run, wanted)
        yield {"mesh": sizes, "fits": found.fits, "bytes": sum(found.memory.values())} | {
            "seconds": found.least_seconds, "bound": found.bound, "mfu": found.mfu,
        }  # fmt: skip


def meshes_of(devices: int) -> list[dict[str, int]]:
    """All sizes of data, fsdp and tensor that make up so many devices; at most 8 along tensor, whose sums wait for links."""
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    return [
        {"data": devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
        for tensor in divisors
        for fsdp in divisors
        if tensor <= 8 and devices % (tensor * fsdp) == 0
    ]


def _remedies(config: ConfigDict, wanted: chips.Slice, devices) -> list[str]:
    """What would make the update fit: each found by a compile, up to the first that does."""
    network, mesh, lines = config.network, config.mesh, []
    options: list[tuple[bool, dict[str, Any]]] = [
        (network.remat != "full", {"network.remat": "full"}),
        (network.param_dtype == "float32", {"network.param_dtype": "bfloat16"}),
        (mesh.data > 1, {"mesh.data": 1, "mesh.fsdp": -1}),
        (mesh.tensor < 4, {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 4}),
    ]
    changes: dict[str, Any] = {}
    for useful, change in options:
        if not useful:
            continue
        changes |= change
        run = planned_run(_changed(config, changes), devices)
        found = planned(all_programs(run, _memory(wanted))[0], run, wanted)
        said = " ".join(f"--config.{name}={value}" for name, value in changes.items())
        size = f"{sum(found.memory.values()) / 2**30:.1f} GiB of {found.capacity / 2**30:.1f}"
        lines.append(f"{said}: {size}, {'fits' if found.fits else 'does not fit either'} (compiled)")
        if found.fits:
            return lines
    run = planned_run(config, devices)
    state = 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.network.params))
    least = math.ceil(state / _memory(wanted))
    return [*lines, f"parameters and moments alone, {state / 2**30:.0f} GiB, need {least} devices of this kind (by arithmetic)"]


def rows(plan: dict[str, Any]) -> Iterator[str]:
    """The plan as aligned text."""
    mesh = ", ".join(f"{name}={size}" for name, size in plan["mesh"].items())
    yield f"{plan['slices']} x {plan['topology']}, mesh {mesh}"
    for found in plan["searched"]:
        sizes = ", ".join(f"{name}={size}" for name, size in found["mesh"].items())
        what = f"{found['seconds']:8.2f} s  {found['bound']:8}" if found["fits"] else "does not fit     "
        yield f"  {sizes:32} {what} {found['bytes'] / 2**30:7.1f} GiB  update"
    for one in plan["programs"]:
        total = sum(one["memory"].values())
        fits = "fits" if one["fits"] else "DOES NOT FIT"
        yield f"\n{one['name']}, {one['times']} a step: {fits}; compiled in {one['compile_seconds']:.0f} s"
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in one["memory"].items() if size >= 2**20)
        yield f"  GiB a device: {total / 2**30:.2f} of {one['capacity'] / 2**30:.1f}: {parts}"
        if one["fault"]:
            yield f"  {one['fault']}"
            continue
        sent = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in one["sent"].items() if size >= 1e7) or "nothing"
        needed = f"of which the model needs {one['useful'] / 1e12:.2f}; GB of HBM {one['moved'] / 1e9:.1f}"
        yield f"  TFLOP {one['flops'] / 1e12:.2f}, {needed}"
        yield f"  GB sent: {sent}"
        times = ", ".join(f"{name} {value:.3f}" for name, value in one["seconds"].items())
        yield f"  least seconds: {times}; bound by {one['bound']}, MFU at most {100 * one['mfu']:.1f}%"
        yield from (f"  {note}" for note in one["notes"])
    yield f"\nat least {plan['step_seconds']:.2f} s a step"
    yield from (f"warning: {line}" for line in plan["warnings"])
    yield from (f"to make the update fit: {line}" for line in plan["remedies"])
