"""Rollouts into packed rows: after this, everything is per token."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.types import Batch, Rollouts, own_weight

# Fields of a rollout row that keep their name and meaning in a batch.
_COPIED = ("tokens", "mask", "advantage", "weight", "behavior_logp")


def first_fit(lengths: Sequence[int] | np.ndarray, width: int) -> list[list[int]]:
    """Places sequences into rows of `width` tokens: each, longest first, goes to the first row with room.

    Args:
      lengths: tokens of each sequence.
      width: tokens of a row.

    Returns: For each row the sequence numbers in it, in rising order; rows are ordered by their first sequence. Sequences of
      length 0 are placed nowhere.
    Raises ValueError: a sequence longer than `width`.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > width:
        worst = int(lengths.argmax())
        raise ValueError(f"sequence {worst} has {lengths[worst]} tokens; a packed row has {width}: raise the width of rows")
    rows: list[list[int]] = [[] for _ in lengths]
    room = rooms(len(lengths), width)
    for number in np.argsort(-lengths, kind="stable"):
        length = int(lengths[number])
        if length:
            row = first_with_room(room, length)
            rows[row].append(int(number))
            take_room(room, row, length)
    return sorted(sorted(row) for row in rows if row)


def rooms(count: int, width: int) -> list[int]:
    """Room in each of at least `count` rows of `width` tokens, as a tree: a node has the most room of its two children."""
    return [width] * (2 << (max(count, 1) - 1).bit_length())


def first_with_room(room: list[int], length: int) -> int:
    """The first row of the tree with so much room; there must be one."""
    node, first = 1, len(room) // 2
    while node < first:
        node = 2 * node if room[2 * node] >= length else 2 * node + 1
    return node - first


def take_room(room: list[int], row: int, length: int) -> None:
    """Takes so much room of a row."""
    node = len(room) // 2 + row
    room[node] -= length
    while node > 1:
        node //= 2
        room[node] = max(room[2 * node], room[2 * node + 1])


class Rows(NamedTuple):
    """Where packed rows stand in a batch."""

    slots: np.ndarray  # int [R], row of the batch of each packed row
    count: int  # rows of the batch
    parts: np.ndarray | None = None  # int [P], packed rows in each of its micro-batches, or None where it is not cut here

    @property
    def computed(self) -> int:
        """Rows of the micro-batches that hold something."""
        return self.count if self.parts is None else self.count * int((self.parts > 0).sum()) // len(self.parts)


def place_rows(
    number: int, width: int, *, rows: int | None = None, multiple: int = 1, parts: int = 0, part_tokens: int = 0
) -> Rows:
    """Rounds the number of packed rows up, so that few shapes are ever compiled, and cuts them into micro-batches.

    With `part_tokens` the batch has a power of two of micro-batches, of which those beyond the packed rows are empty and cost
    nothing; `update.split_rows` puts rows m, m + P, ... into the m-th.

    Args:
      number: R.
      width: tokens of a row.
      rows: rows of the batch; by default as few as needed, rounded by `round_up`.
      multiple: of which the rows of the batch, or of each micro-batch, are a multiple.
      parts: P, number of micro-batches; 0 for no cuts, or as many as `part_tokens` make.
      part_tokens: tokens of a micro-batch, at least one row.

    Raises ValueError: more packed rows than `rows`.
    """
    if rows is not None and number > rows:
        raise ValueError(f"rows is {rows}; the rollouts need {number} packed rows of {width} tokens")
    count = round_up(number) if rows is None else rows
    count += -count % (multiple * max(parts, 1))
    if parts:
        return Rows(np.arange(number), count, np.array([len(range(part, number, parts)) for part in range(parts)], np.int32))
    if not part_tokens:
        return Rows(np.arange(number), count)
    size = max(part_tokens // width, 1)
    size += -size % multiple
    if count <= size:
        return Rows(np.arange(number), count, np.array([number], np.int32))
    parts, packed = round_up(-(-count // size), sizes=1), np.arange(number)
    filled = np.clip(number - size * np.arange(parts), 0, size).astype(np.int32)
    return Rows(packed % size * parts + packed // size, size * parts, filled)


def pack(
    rollouts: Rollouts, width: int, *, keep: np.ndarray | None = None, rows: int | None = None, multiple: int = 1,
    parts: int = 0, part_tokens: int = 0, step: int = 0, coefficients: dict[str, Any] | None = None, columns: int = 1,
) -> Batch:  # fmt: skip
    """Lays rollouts into rows of fixed width; numbers of group, source and turn travel with the tokens.

    Networks read each rollout whole; see `pack_forest` for those that read what rollouts have in common once.

    Args:
      rollouts: host arrays (NumPy) of N rows.
      width: tokens of a packed row.
      keep: bool [N], rows to lay down; all by default. `has_weight` tells which can change a loss.
      rows: number of packed rows; by default as few as first-fit needs, rounded up by `round_up` so that few shapes
        are ever compiled.
      multiple: the number of rows is rounded up to a multiple of it, for micro-batches and meshes.
      parts: micro-batches to cut the rows into, see `place_rows`.
      part_tokens: tokens of a micro-batch, where `parts` does not say how many there are.
      step: training step of the batch.
      coefficients: scalars for the objective.
      columns: `width` is filled up to a multiple of it.

    Returns: A batch of NumPy arrays.
    Raises ValueError: a rollout longer than `width`, or more rows needed than `rows`.
    """
    lengths = np.asarray(rollouts.length) if keep is None else np.where(keep, rollouts.length, 0)
    width += -width % columns
    layout = first_fit(lengths, width)
    placed = place_rows(len(layout), width, rows=rows, multiple=multiple, parts=parts, part_tokens=part_tokens)
    fields = per_token(rollouts)
    packed = {name: np.zeros((placed.count, width, *value.shape[2:]), value.dtype) for name, value in fields.items()}
    positions, segment = np.zeros((2, placed.count, width), np.int32)
    for row, members in zip(placed.slots, layout, strict=True):
        start = 0
        for number, member in enumerate(members, start=1):
            span = slice(start, start + int(lengths[member]))
            for name, value in fields.items():
                packed[name][row, span] = value[member, : lengths[member]]
            positions[row, span] = np.arange(lengths[member])
            segment[row, span] = number
            start = span.stop
    packed |= {"positions": positions, "segment": segment, "parts": placed.parts}
    return as_batch(packed, step, coefficients)


def as_batch(fields: dict, step: int, coefficients: dict[str, Any] | None = None) -> Batch:
    """The batch of these arrays; those that are no fields of it are extras."""
    own = {field.name for field in dataclasses.fields(Batch)}
    extras = {name: fields.pop(name) for name in list(fields) if name not in own}
    return Batch(**fields, extras=extras, step=np.int32(step), coefficients=coefficients or {})


def batch_from(rollouts: Rollouts, *, step: int = 0, coefficients: dict[str, Any] | None = None) -> Batch:
    """The batch of estimated rollouts, one a row, for an update in a loop of your own; `pack` lays several into a row.

    Args:
      rollouts: N rows of T tokens with the advantages and weights of an estimator, such as `methods.get("grpo").estimator`.
      step: training step of the batch.
      coefficients: scalars for the objective.

    Returns: A batch [N, T] of NumPy arrays.
    Raises ValueError: no token has a weight, although there are actions: no estimator has been there.

    Example:
      >>> rollouts = Rollouts(tokens=np.ones((2, 3), int), length=np.array([3, 2]), mask=np.ones((2, 3), np.float32),
      ...                     rewards=np.zeros((2, 1)), weight=np.full((2, 3), 1 / 6))
      >>> batch_from(rollouts).segment.tolist()
      [[1, 1, 1], [1, 1, 0]]
    """
    taking_part = np.asarray(rollouts.mask).sum(axis=1) * np.asarray(rollouts.valid)
    if not has_weight(rollouts).any() and taking_part.any():
        raise ValueError(
            "Rollouts.weight is 0 everywhere, so that nothing would be learned; let an estimator fill it first: "
            "rollouts, state = method.estimator.update(rollouts, state, key)"
        )
    fields, width = per_token(rollouts), rollouts.tokens.shape[1]
    real = np.arange(width) < np.asarray(rollouts.length)[:, None]
    # Behind the end of a row stands what padding is elsewhere, whatever the rollouts have there.
    fields = {name: np.where(np.expand_dims(real, tuple(range(2, value.ndim))), value, 0) for name, value in fields.items()}
    fields |= {"positions": np.where(real, np.arange(width, dtype=np.int32), 0), "segment": real.astype(np.int32)}
    return as_batch(fields, step, coefficients)


def unpack(values: np.ndarray, batch: Batch, rows: int, width: int) -> np.ndarray:
    """Per-token values [B, W, ...] of a packed batch back in the rollouts' places, [rows, width, ...]; 0 elsewhere."""
    values, real = np.asarray(values), np.asarray(batch.segment) > 0
    result = np.zeros((rows, width, *values.shape[2:]), values.dtype)
    result[np.asarray(batch.rollout)[real], np.asarray(batch.positions)[real]] = values[real]
    return result


def has_weight(rollouts: Rollouts) -> np.ndarray:
    """Rows [N] with a share in the loss; the others cannot change it."""
    return sum(np.abs(np.asarray(weight)).sum(axis=1) for weight in _weights(rollouts).values()) > 0


def scale_weights(rollouts: Rollouts, factor: float) -> Rollouts:
    """The rollouts with all shares times `factor`, those of terms with shares of their own too."""
    scaled = {name: weight * factor for name, weight in _weights(rollouts).items()}
    return rollouts.replace(weight=scaled.pop("weight"), extras=rollouts.extras | scaled)


def _weights(rollouts: Rollouts) -> dict:
    """The shares of the loss, and those of terms with shares of their own, by name."""
    own = {name: value for name, value in rollouts.extras.items() if name.startswith(own_weight(""))}
    return {"weight": rollouts.weight} | own


def round_up(count: int, sizes: int = 4) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20...: four sizes an octave, at most a quarter too many.

    With fewer `sizes` an octave, a power of two of them, fewer shapes are compiled: 1, 2, 3, 4, 6, 8, 12... or 1, 2, 4, 8...
    """
    unit = 1 << max((max(count, 1) - 1).bit_length() - sizes.bit_length(), 0)
    return -(-max(count, 1) // unit) * unit


def per_token(rollouts: Rollouts) -> dict[str, np.ndarray]:
    """All arrays that go into the batch, broadcast to [N, T, ...]."""
    shape = rollouts.tokens.shape
    fields = {name: np.asarray(value) for name in _COPIED if (value := getattr(rollouts, name)) is not None}
    fields["rollout"] = np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None], shape)
    fields["turn"] = np.asarray(rollouts.turn)
    for name in ("group", "source"):
        fields[name] = np.broadcast_to(np.asarray(getattr(rollouts, name))[:, None], shape)
    for name, value in rollouts.extras.items():
        value = np.asarray(value)
        per_token = value.shape[:2] == shape
        fields[name] = value if per_token else np.broadcast_to(np.expand_dims(value, 1), (*shape, *value.shape[1:]))
    return fields
