"""What a compiled program does, read from its HLO text: multiplications, bytes of memory, and bytes on links.

XLA's own `cost_analysis` counts the body of a loop once. Here a loop counts as often as it runs: as the text says itself
(`known_trip_count`), or as its condition `i < constant` and the step of its counter say; of a conditional, every branch counts,
as if it were taken, but for the share of turns that the caller knows. https://openxla.org/xla/operation_semantics says what
each operation computes.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
)  # fmt: skip
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s})\]])([a-z][\w\-]*)\(")
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
# Operations that call sums or comparisons of two numbers.
_OF_TWO_NUMBERS = frozenset({
    "reduce", "scatter", "sort", "map", "reduce-window", "select-and-scatter", "all-reduce", "reduce-scatter",
})  # fmt: skip
# Operations that move nothing by themselves.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain",
})  # fmt: skip
# Of what is sliced after these, no more is read than the slice. Loops over windows of a dot pad its operand before they slice.
_SEEN_THROUGH = frozenset({"bitcast", "pad", "convert", "copy", "reshape"})


class Array(NamedTuple):
    """An array in HLO text: its sizes, its bytes, and whether these lie in HBM."""

    sizes: tuple[int, ...]
    bytes: float
    in_memory: bool


class Instruction(NamedTuple):
    """One line of HLO text."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    text: str
    root: bool


class Kernel(NamedTuple):
    """A custom call of Pallas, and how often it runs."""

    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    times: float


class Collectives(NamedTuple):
    """Collectives of one kind along the same axes: bytes that a device sends on a ring, runs, and elements of the largest."""

    sent: float = 0.0
    times: float = 0.0
    largest: int = 0


class Figures(NamedTuple):
    """What one device does in a run of a program."""

    flops: float  # 2 for each multiplication of dots and convolutions that meets no padding; without kernels
    bytes: float  # read from HBM and written to it
    collectives: dict[tuple[str, str], Collectives]  # by kind and mesh axes, such as ("all-gather", "fsdp")
    kernels: list[Kernel]  # custom calls of Pallas, whose work the text does not tell
    unknown_loops: int  # loops that no text tells the length of


def read_hlo(text: str, mesh: Mesh, unknown_lengths: Sequence[int] = (1,), taken: float = 1.0) -> Figures:
    """Reads the optimised HLO of a program for the devices of a mesh.

    Args:
      text: as of `compiled.as_text()`, or of the compiler's dump.
      mesh: whose devices HLO numbers in their order.
      unknown_lengths: how often loops run whose length depends on data; then those inside of them, and so on, as the last.
      taken: share of the turns in which the outermost conditionals take their second branch, such as that of a micro-batch
        that holds something.
    """
    program = _Program(text, unknown_lengths, taken)
    flops, moved, kernels, found = 0.0, 0.0, [], []
    for place, times in program.times.items():
        for one in program.computations[place]:
            kind = one.operation.removesuffix("-start")
            if kind in COLLECTIVES:
                found.append((place, one, times))
            elif kind in ("dot", "convolution"):
                flops += times * _flops(one, [program.arrays(place, name) for name in one.operands])
            elif 'custom_call_target="tpu_custom_call"' in one.text:
                operands = tuple(array.sizes for name in one.operands for array in program.arrays(place, name))
                kernels.append(Kernel(operands, tuple(array.sizes for array in arrays_of(one.shape)), times))
            if place not in program.fused:
                moved += times * program.moved(place, one)
    return Figures(flops, moved, _collectives(program, found, mesh), kernels, program.unknown)


def arrays_of(shape: str) -> list[Array]:
    """The arrays of a shape in HLO text; a layout with a memory space, S(n), lies elsewhere than in HBM."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        sizes = tuple(int(size) for size in sizes.split(",") if size)
        found.append(Array(sizes, math.prod(sizes) * _bytes(dtype), "S(" not in layout))
    return found


def _bytes(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    return {"pred": 1, "token": 0}.get(dtype) if bits is None else int(bits.group()) / 8


class _Program:
    """Computations of HLO text by name, and how often each runs."""

    def __init__(self, text: str, unknown_lengths: Sequence[int], taken: float = 1.0):
        self.computations: dict[str, list[Instruction]] = {}
        self.unknown, self.unknown_lengths = 0, unknown_lengths
        entry = self._parse(text)
        self.shapes = {(place, one.name): one.shape for place, lines in self.computations.items() for one in lines}
        self.times: dict[str, float] = collections.Counter()
        self.fused: set[str] = set()
        self._run(entry, 1.0, taken)

    def _parse(self, text: str) -> str:
        entry = place = None
        for line in text.splitlines():
            if not line.startswith(" ") and line.rstrip().endswith("{") and not line.startswith("HloModule"):
                place = _HEAD.match(line).group(1)
                self.computations[place] = []
                entry = place if line.startswith("ENTRY") else entry
            elif line.startswith("}"):
                place = None
            elif place and (match := _INSTRUCTION.match(line)):
                root, name, rest = match.groups()
                if operation := _OPERATION.search(rest):
                    operands = tuple(_NAME.findall(_inside(rest[operation.end() :])))
                    shape = rest[: operation.start(1)]
                    self.computations[place].append(Instruction(name, shape, operation.group(1), operands, rest, bool(root)))
        if entry is None:
            raise ValueError("the HLO text has no ENTRY computation; give the optimised text of a whole program")
        return entry

    def arrays(self, place: str, name: str) -> list[Array]:
        return arrays_of(self.shapes.get((place, name), ""))

    def _run(self, place: str, times: float, taken: float, depth: int = 0) -> None:
        self.times[place] += times
        for one in self.computations.get(place, ()):
            if one.operation.removesuffix("-start") in _OF_TWO_NUMBERS:
                continue
            inner, below = times, depth
            if one.operation == "while":
                trips = self._trips(one)
                self.unknown += trips is None
                inner *= self.unknown_lengths[min(depth, len(self.unknown_lengths) - 1)] if trips is None else trips
                below += trips is None
            for key, called in _CALLED.findall(one.text):
                if key == "calls" or place in self.fused:
                    self.fused.add(called)
                self._run(called, inner, taken, below)
            for branches in _BRANCHES.findall(one.text):
                names = _NAME.findall(branches[0]) or list(filter(None, (branches[1], *branches[0].split(", "))))
                for number, called in enumerate(names):
                    chosen = number == 1 and one.operation == "conditional"
                    self._run(called, times * (taken if chosen else 1.0), 1.0 if chosen else taken, depth)

    def _trips(self, loop: Instruction) -> int | None:
        told = re.search(r"known_trip_count[^\d}]*(\d+)", loop.text)
        called = dict(_CALLED.findall(loop.text))
        return int(told.group(1)) if told else self._counted(called["condition"], called["body"])

    def _counted(self, condition: str, body: str) -> int | None:
        """Times that `for (i = 0; i < constant; i += step)` runs; None where the condition is another one."""
        lines = {one.name: one for one in self.computations[condition]}
        root = next(one for one in lines.values() if one.root)
        if root.operation == "fusion":
            called = dict(_CALLED.findall(root.text))["calls"]
            inner = next(one for one in self.computations[called] if one.root)
            outer = [lines[name] for name in root.operands if name in lines]
            bounds = [*outer, *self.computations[called]]
            counters = outer
        else:
            inner, bounds, counters = root, [lines[name] for name in root.operands], [lines[name] for name in root.operands]
        limits = [_constant(one) for one in bounds if one.operation == "constant"]
        if inner.operation != "compare" or "direction=LT" not in inner.text or len(limits) != 1:
            return None
        places = [re.search(r"index=(\d+)", one.text) for one in counters if one.operation == "get-tuple-element"]
        step = self._step(body, int(places[0].group(1))) if places else 1
        return -(-limits[0] // step)

    def _step(self, body: str, place: int) -> int:
        """What a turn adds to the counter at a place of the loop's tuple: loops of windowed dots take two or more at a time."""
        lines = {one.name: one for one in self.computations[body]}
        root, step = next(one for one in lines.values() if one.root), 0
        at = lines.get(root.operands[place]) if root.operation == "tuple" else None
        while at is not None and at.operation == "add":
            operands = [lines[name] for name in at.operands]
            numbers = [_constant(one) for one in operands if one.operation == "constant"]
            if len(numbers) != 1:
                break
            step, at = step + numbers[0], next(one for one in operands if one.operation != "constant")
        return step or 1

    def moved(self, place: str, one: Instruction) -> float:
        """Bytes of HBM that an instruction outside of fusions reads and writes."""
        if one.operation in _FREE or one.operation.endswith(("-done", "-update")):
            return 0.0
        if one.operation == "async-start":  # Its shape names all of what it may take a slice of.
            called = dict(_CALLED.findall(one.text))["calls"]
            return sum(self.moved(called, line) for line in self.computations[called])
        if one.operation == "custom-call" and "tpu_custom_call" not in one.text:
            return 0.0
        results = _in_memory(arrays_of(one.shape))
        if one.operation.endswith("-start"):  # Its results are what it reads and what it writes.
            return results
        operands = [_in_memory(self.arrays(place, name)) for name in one.operands]
        if one.operation in ("dynamic-slice", "slice", "gather"):
            return results + min(operands[0], sum(array.bytes for array in arrays_of(one.shape)))
        if one.operation == "dynamic-update-slice":
            return 2 * operands[1]
        if one.operation == "fusion":
            return self._moved_by_fusion(one, dict(_CALLED.findall(one.text))["calls"], operands, results)
        return results + sum(operands)

    def _moved_by_fusion(self, one: Instruction, called: str, operands: list[float], results: float) -> float:
        """Of operands that are only sliced, the slices; of results that are updated in place, the updates."""
        lines = self.computations[called]
        for number, whole in enumerate(operands):
            taken = self._taken_of_parameter(called, number)
            operands[number] = whole if taken is None else min(whole, taken)
        made, root = {line.name: line for line in lines}, next(line for line in lines if line.root)
        if root.operation == "tuple":
            # What is passed on, or filled by a collective that overlaps with the fusion, is not touched here.
            passed = [made[name].operation in (*COLLECTIVES, "parameter") for name in root.operands]
            results -= _in_memory([array for array, idle in zip(arrays_of(one.shape), passed, strict=False) if idle])
        for line in lines:
            if line.operation == "dynamic-update-slice":
                names = line.name, line.operands[1]
                whole, part = (sum(array.bytes for array in self.arrays(called, name)) for name in names)
                results = max(results - whole, 0.0) + part if results >= whole else results
        return results + sum(operands)

    def _taken_of_parameter(self, place: str, number: int) -> float | None:
        """Bytes that a fused computation takes of an operand: None for all of it."""
        users, name = collections.defaultdict(list), ""
        for line in self.computations[place]:
            if line.operation == "parameter" and f"parameter({number})" in line.text:
                name = line.name
            for position, operand in enumerate(line.operands):
                users[operand].append((line, position))
        taken = [self._taken(place, users, user, position) for user, position in users[name]]
        return None if None in taken else sum(taken)

    def _taken(self, place: str, users, user: Instruction, position: int) -> float | None:
        """Bytes that a user takes of an array: None for all of it."""
        if user.operation == "fusion":  # within a fusion: loops over windows of a dot slice its operands so
            return self._taken_of_parameter(dict(_CALLED.findall(user.text))["calls"], position)
        if user.root and user.operation == "tuple":
            return 0.0
        if user.operation in ("dynamic-slice", "slice", "gather") and position == 0:
            return sum(array.bytes for array in arrays_of(user.shape))
        if user.operation == "dynamic-update-slice" and position == 0:
            return 0.0
        if user.operation in _SEEN_THROUGH and position == 0:
            inner = [self._taken(place, users, further, at) for further, at in users[user.name]]
            before, after = (sum(array.bytes for array in self.arrays(place, name)) for name in (user.operands[0], user.name))
            return None if None in inner or not inner else sum(inner) * before / after
        return None


def _inside(text: str) -> str:
    """The text up to the bracket that closes."""
    depth = 1
    for end, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:end]
    return text


def _constant(one: Instruction) -> int:
    found = re.search(r"constant\((-?\d+)\)", one.text)
    return int(found.group(1)) if found else 0


def _in_memory(arrays: list[Array]) -> float:
    return sum(array.bytes for array in arrays if array.in_memory)


def _flops(one: Instruction, operands: list[list[Array]]) -> float:
    left, right = (arrays[0].sizes for arrays in operands[:2])
    (out, *_) = arrays_of(one.shape)
    if one.operation == "convolution":
        return 2.0 * _multiplications(one.text, left, right, out.sizes)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
    return 2.0 * math.prod(out.sizes) * math.prod(left[int(axis)] for axis in contracted.group(1).split(",") if axis)


def _multiplications(text: str, left, right, out) -> float:
    """Multiplications of a convolution that meet no padding: for TPU a dot is one, with batch axes as windows over padding."""
    of_left, of_right, of_out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text).groups()
    window = re.search(r"window=\{([^}]*)\}", text)
    options = dict(part.split("=") for part in window.group(1).split()) if window else {}
    groups = re.search(r"batch_group_count=(\d+)", text)
    count = out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    count /= int(groups.group(1)) if groups else 1
    for number, axis in enumerate(sorted(filter(str.isdigit, of_right))):
        option = {name: value.split("x")[number] for name, value in options.items()}
        stride, spread, step = (int(option.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        places = np.arange(out[of_out.index(axis)])[:, None] * stride + np.arange(right[of_right.index(axis)]) * step
        places = places - int(option.get("pad", "0_0").split("_")[0])
        count *= int(((places >= 0) & (places % spread == 0) & (places // spread < left[of_left.index(axis)])).sum())
    return count


def _collectives(program: _Program, found, mesh: Mesh) -> dict[tuple[str, str], Collectives]:
    totals: dict[tuple[str, str], Collectives] = {}
    for place, one, times in _started_once(program, found):
        kind, group = one.operation.removesuffix("-start"), _group(one.text, mesh.size)
        operand = sum(array.bytes for name in one.operands for array in program.arrays(place, name))
        arrays = arrays_of(one.shape)
        result = sum(array.bytes for array in arrays) - (operand if one.operation.endswith("-start") else 0)
        share = (len(group) - 1) / max(len(group), 1)
        sent = {"all-gather": result * share, "all-reduce": 2 * operand * share, "collective-permute": operand}
        sent = sent.get(kind, operand * share)
        key, largest = (kind, _axes(group, mesh)), max((math.prod(array.sizes) for array in arrays), default=0)
        old = totals.get(key, Collectives())
        totals[key] = Collectives(old.sent + times * sent, old.times + times, max(old.largest, largest))
    return {key: value for key, value in sorted(totals.items()) if key[1]}


def _started_once(program: _Program, found) -> Iterator[tuple[str, Instruction, float]]:
    """Asynchronous collectives stand again in each fusion that overlaps with them; each counts once, as often as the rarest."""
    alike = collections.defaultdict(list)
    for place, one, times in found:
        channel = re.search(r"channel_id=(\d+)", one.text)
        name = re.search(r'op_name="([^"]*)"', one.text)
        shape = re.sub(r"\{[^}]*\}", "", one.shape)
        # The channel is not enough: all of `shard_map` have the same.
        alike[(channel and channel.group(1), one.operation, shape, name and name.group(1))].append((place, one, times))
    for key, copies in alike.items():
        if key[0] is not None and any(place in program.fused for place, *_ in copies):
            yield min(copies, key=lambda copy: copy[2])
        else:
            yield from copies


def _group(text: str, devices: int) -> list[int]:
    """Numbers of the devices of one group of a collective, in any of the notations of HLO."""
    listed = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if listed:
        shape, base, order = ([int(size) for size in (part or "").split(",") if size] for part in listed.groups())
        numbers = np.arange(math.prod(base)).reshape(base)
        return numbers.transpose(order or range(len(base))).reshape(shape)[0].tolist()
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", text
    )
    if named:
        sizes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", named.group(1))]
        wanted = re.findall(r"'([^']+)'", named.group(4))
        base, order = ([int(size) for size in (named.group(part) or "").split(",") if size] for part in (2, 3))
        numbers = np.arange(math.prod(size for _, size in sizes))
        if base:  # The axes are those of the devices in another order.
            numbers = numbers.reshape(base).transpose(order or range(len(base)))
        numbers = numbers.reshape([size for _, size in sizes])
        return numbers[tuple(slice(None) if name in wanted else 0 for name, _ in sizes)].reshape(-1).tolist()
    plain = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", text)
    return [int(number) for number in plain.group(1).split(",")] if plain else list(range(devices))


def _axes(group: list[int], mesh: Mesh) -> str:
    """Mesh axes along which the devices of a group differ; "" for one device alone."""
    places = np.array(np.unravel_index(group, tuple(mesh.shape.values())))
    return "+".join(name for name, own in zip(mesh.axis_names, places, strict=True) if len(set(own.tolist())) > 1)
