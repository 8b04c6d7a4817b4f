"""Rollouts into packed rows: after this, everything is per token."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxrl_llm.types import Batch, Rollouts, own_weight

# Fields of a rollout row that keep their name and meaning in a batch.
_COPIED = ("tokens", "mask", "advantage", "weight", "behavior_logp")


def first_fit(lengths, width: int) -> list[list[int]]:
    """Places sequences into rows of `width` tokens: each, longest first, goes to the first row with room.

    Args:
      lengths: tokens of each sequence.
      width: tokens of a row.

    Returns:
      For each row the sequence numbers in it, in rising order; rows are ordered by their first sequence. Sequences of
      length 0 are placed nowhere.

    Raises:
      ValueError: a sequence longer than `width`.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > width:
        worst = int(lengths.argmax())
        raise ValueError(f"sequence {worst} has {lengths[worst]} tokens; a packed row has {width}: raise the width of rows")
    rows: list[list[int]] = [[] for _ in lengths]
    # A tree of the most room left: a node has that of its two children, the leaves behind `first` that of each row.
    first = 1 << (max(len(lengths), 1) - 1).bit_length()
    room = [width] * (2 * first)
    for number in np.argsort(-lengths, kind="stable"):
        length, node = int(lengths[number]), 1
        if length == 0:
            continue
        while node < first:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        rows[node - first].append(int(number))
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return sorted(sorted(row) for row in rows if row)


def pack(
    rollouts: Rollouts,
    width: int,
    *,
    keep: np.ndarray | None = None,
    rows: int | None = None,
    multiple: int = 1,
    step: int = 0,
    coefficients=None,
) -> Batch:
    """Lays rollouts into rows of fixed width; numbers of group, source and turn travel with the tokens.

    Args:
      rollouts: host arrays (NumPy) of N rows.
      width: tokens of a packed row.
      keep: bool [N], rows to lay down; all by default. `has_weight` tells which can change a loss.
      rows: number of packed rows; by default as few as first-fit needs, rounded up by `round_up` so that few shapes
        are ever compiled.
      multiple: the number of rows is rounded up to a multiple of it, for micro-batches and meshes.
      step: training step of the batch.
      coefficients: scalars for the objective.

    Returns:
      A batch of NumPy arrays.

    Raises:
      ValueError: a rollout longer than `width`, or more rows needed than `rows`.
    """
    lengths = np.asarray(rollouts.length) if keep is None else np.where(keep, rollouts.length, 0)
    layout = first_fit(lengths, width)
    count = round_up(len(layout)) if rows is None else rows
    count += -count % multiple
    if len(layout) > count:
        raise ValueError(f"rows is {rows}; the rollouts need {len(layout)} packed rows of {width} tokens")
    fields = _per_token(rollouts)
    packed = {name: np.zeros((count, width, *value.shape[2:]), value.dtype) for name, value in fields.items()}
    positions, segment = np.zeros((2, count, width), np.int32)
    for row, members in enumerate(layout):
        start = 0
        for number, member in enumerate(members, start=1):
            span = slice(start, start + int(lengths[member]))
            for name, value in fields.items():
                packed[name][row, span] = value[member, : lengths[member]]
            positions[row, span] = np.arange(lengths[member])
            segment[row, span] = number
            start = span.stop
    own = {field.name for field in dataclasses.fields(Batch)}
    extras = {name: packed.pop(name) for name in list(packed) if name not in own}
    return Batch(
        **packed, positions=positions, segment=segment, extras=extras, step=np.int32(step), coefficients=coefficients or {}
    )


def batch_from(rollouts: Rollouts, *, step: int = 0, coefficients=None) -> Batch:
    """The batch of estimated rollouts, one a row, for an update in a loop of your own; `pack` lays several into a row.

    Args:
      rollouts: N rows of T tokens with the advantages and weights of an estimator, such as `methods.get("grpo").estimator`.
      step: training step of the batch.
      coefficients: scalars for the objective.

    Returns:
      A batch [N, T] of NumPy arrays.

    Raises:
      ValueError: no token has a weight, although there are actions: no estimator has been there.

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
    fields, width = _per_token(rollouts), rollouts.tokens.shape[1]
    real = np.arange(width) < np.asarray(rollouts.length)[:, None]
    # Behind the end of a row stands what padding is elsewhere, whatever the rollouts have there.
    fields = {name: np.where(np.expand_dims(real, tuple(range(2, value.ndim))), value, 0) for name, value in fields.items()}
    own = {field.name for field in dataclasses.fields(Batch)}
    extras = {name: fields.pop(name) for name in list(fields) if name not in own}
    fields |= {"positions": np.where(real, np.arange(width, dtype=np.int32), 0), "segment": real.astype(np.int32)}
    return Batch(**fields, extras=extras, step=np.int32(step), coefficients=coefficients or {})


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


def round_up(count: int) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20...: four sizes an octave, at most a quarter too many."""
    unit = 1 << max((max(count, 1) - 1).bit_length() - 3, 0)
    return -(-max(count, 1) // unit) * unit


def _per_token(rollouts: Rollouts) -> dict[str, np.ndarray]:
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
