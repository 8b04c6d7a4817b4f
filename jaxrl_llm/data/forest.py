"""Rollouts into a forest: what they begin with in common is read once, and what is learned stands apart, per action.

The batch holds the actions of each rollout and its last place, where the value of all of it stands.

Rollouts in the order of their tokens are the leaves of a trie in depth-first order, and two neighbours share the path up to
the first token in which they differ. A row of the forest holds some of them in that order; each begins where it leaves the
path of the one before it.
"""

import bisect
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data.packing import Rows, as_batch, first_with_room, per_token, place_rows, rooms, round_up, take_room
from jaxrl_llm.types import Batch, Forest, Rollouts

UNIT = 8  # columns, of which rows have a multiple, and at least two
WIDTHS = (1024, 2048)  # columns of rows that hold many short rollouts, the narrowest and the widest


class Leaves(NamedTuple):
    """The rollouts that are to be read, in the order of their tokens."""

    member: np.ndarray  # int [M], number of the rollout
    length: np.ndarray  # int [M], its tokens
    common: np.ndarray  # int [M], tokens that it begins with in common with the one before it; 0 for the first
    entries: np.ndarray  # int [M], its actions and its last place


def leaves_of(rollouts: Rollouts, keep: np.ndarray | None = None) -> Leaves:
    """Those of the rollouts, and of `keep` bool [N], that have actions.

    Args:
      rollouts: host arrays of N rows.
      keep: bool [N], rows to read; all by default.
    """
    tokens, ends = np.asarray(rollouts.tokens), np.asarray(rollouts.length)
    acted = (np.asarray(rollouts.mask) > 0) & (np.arange(tokens.shape[1]) < ends[:, None])
    chosen = np.flatnonzero(acted.any(axis=1) & (True if keep is None else np.asarray(keep, bool)))
    # Bytes compare as tokens do when the most significant comes first.
    keys = {number: tokens[number, : ends[number]].astype(">u4").tobytes() for number in chosen.tolist()}
    member = np.array(sorted(keys, key=lambda number: (keys[number], number)), np.int64)
    common = [0] * min(len(member), 1)
    for one, other in zip(member[:-1], member[1:], strict=True):
        shortest = min(ends[one], ends[other])
        differs = tokens[one, :shortest] != tokens[other, :shortest]
        common.append(int(differs.argmax()) if differs.any() else int(shortest))
    last = np.arange(tokens.shape[1]) == ends[:, None] - 1
    return Leaves(member, ends[member], np.array(common, np.int64), (acted | last)[member].sum(axis=1))


def rows_of(leaves: Leaves, groups: np.ndarray, width: int) -> list[list[int]]:
    """Places leaves into rows of `width` columns, those of a group together where there is room.

    Groups are taken by their size, largest first, and the leaves of each by their length. A leaf goes to the row of its group's
    last one, where it needs but what it does not share; else to the first row with room for all of it. What leaves share they
    may all learn: a row has at most `width` entries, or twice or four times as many and so on where all leaves together have
    more entries than tokens, so that the batch takes few shapes.

    Args:
      leaves: M of them.
      groups: int [M], which leaves go together.
      width: columns of a row.

    Returns: The numbers of the leaves in each row, in rising order.
    Raises ValueError: a leaf is longer than `width`.
    """
    if len(leaves.length) and leaves.length.max() > width:
        worst = int(leaves.length.argmax())
        length, number = leaves.length[worst], leaves.member[worst]
        raise ValueError(f"rollout {number} has {length} tokens; a packed row has {width}: raise the width of rows")
    sizes = np.bincount(groups, weights=leaves.length)
    more = round_up(-(-int(leaves.entries.sum()) // max(int((leaves.length - leaves.common).sum()), 1)), sizes=1)
    room, rows, last = rooms(len(groups), width), [[] for _ in groups], {}

    def needed(row: int, leaf: int) -> int:
        return max(int(leaves.length[leaf]) - _shared(leaves, rows[row], leaf), -(-int(leaves.entries[leaf]) // more))

    for leaf in np.lexsort((-leaves.length, groups, -sizes[groups])).tolist():
        row = last.get(groups[leaf])
        if row is None or needed(row, leaf) > room[len(room) // 2 + row]:
            row = first_with_room(room, int(leaves.length[leaf]))
        take_room(room, row, needed(row, leaf))
        bisect.insort(rows[row], leaf)
        last[groups[leaf]] = row
    return sorted(row for row in rows if row)


def _shared(leaves: Leaves, row: list[int], leaf: int) -> int:
    """Tokens of a leaf that a row reads already; its neighbours in the row share the most with it."""
    place = bisect.bisect(row, leaf)
    before = leaves.common[row[place - 1] + 1 : leaf + 1].min() if place else 0
    behind = leaves.common[leaf + 1 : row[place] + 1].min() if place < len(row) else 0
    return int(max(before, behind))


def step_up(number: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96... columns: two sizes an octave, so that few shapes are ever compiled."""
    return UNIT * max(round_up(-(-number // UNIT), sizes=2), 2)


def width_of(leaves: Leaves, groups: np.ndarray, **placing) -> int:
    """Columns of rows that hold the leaves with little filling: the narrowest of a few widths within 5% of the least cost.

    It is a function of the leaves and of the options of `place_rows` alone, so that a run that is resumed packs as one that was
    not; and few widths mean few programs.
    """
    longest, costs = step_up(int(leaves.length.max(initial=1))), {}
    width = max(longest, min(WIDTHS[0], step_up(int((leaves.length - leaves.common).sum()))))
    while not costs or width <= max(WIDTHS[1], 2 * longest):
        costs[width] = width * place_rows(len(rows_of(leaves, groups, width)), width, **placing).computed
        width = step_up(width + 1)
    return next(width for width, cost in costs.items() if cost <= 1.05 * min(costs.values()))


def pack_forest(
    rollouts: Rollouts, width: int | None = None, *, keep: np.ndarray | None = None, step: int = 0,
    coefficients: dict[str, Any] | None = None, columns: int = 1, **placing: Any,
) -> Batch:  # fmt: skip
    """Lays rollouts into a forest, which reads what they begin with in common once, and their actions into the batch.

    Value and gradient of a loss are those of `data.pack`, up to rounding. Common beginnings are found among all rollouts of a
    row, whoever sampled them and wherever they part.

    Args:
      rollouts: host arrays (NumPy) of N rows; `extras["routes"]` go into the forest, those of a common beginning from the first
        that has it.
      width: W, columns of a row; by default what leaves little empty, see `width_of`.
      keep: bool [N], rows to lay down; all by default. Rows without actions are not.
      step: training step of the batch.
      coefficients: scalars for the objective.
      columns: W and T are filled up to a multiple of it.
      **placing: `rows`, `multiple`, `parts` and `part_tokens`, as in `data.pack`.

    Returns: A batch of NumPy arrays, T at most W where rollouts part before their actions.
    Raises ValueError: a rollout longer than `width`, or more rows needed than `rows`.

    Example:
      >>> rollouts = Rollouts(tokens=np.array([[7, 8, 1], [7, 8, 2]]), length=np.array([3, 3]), rewards=np.zeros((2, 1)),
      ...                     mask=np.array([[0, 0, 1], [0, 0, 1.0]]), group=np.array([0, 0]))
      >>> batch = pack_forest(rollouts, width=4)
      >>> batch.forest.tokens.tolist(), batch.forest.reach.tolist()
      ([[7, 8, 1, 2]], [[4, 4, 3, 4]])
    """
    leaves = leaves_of(rollouts, keep)
    groups = np.asarray(rollouts.group)[leaves.member]
    width = width_of(leaves, groups, **placing | {"rows": None}) if width is None else width
    width += -width % columns
    layout = rows_of(leaves, groups, width)
    placed = place_rows(len(layout), width, **placing)
    forest = {name: np.zeros((placed.count, width), np.int32) for name in ("tokens", "positions", "reach")}
    routes = rollouts.extras.get("routes")
    if routes is not None:
        forest["routes"] = np.full((placed.count, width, *routes.shape[2:]), -1, np.int32)
    entries = []
    for row, members in zip(placed.slots.tolist(), layout, strict=True):
        entries.append(_lay_row({name: values[row] for name, values in forest.items()}, rollouts, leaves, members, row))
    return as_batch(_entries(rollouts, entries, placed, width, columns) | {"forest": Forest(**forest)}, step, coefficients)


def _lay_row(forest: dict, rollouts: Rollouts, leaves: Leaves, members: list[int], row: int) -> np.ndarray:
    """Writes a row of the forest, and gives its entries: row, member, segment, position, index and column."""
    path, entries, column = np.zeros(0, np.int64), [], 0
    for segment, leaf in enumerate(members, start=1):
        member, length = int(leaves.member[leaf]), int(leaves.length[leaf])
        common = int(leaves.common[members[segment - 2] + 1 : leaf + 1].min()) if segment > 1 else 0
        # What the one before read beyond what they share is over here.
        forest["reach"][path[common:]] = column
        end = column + length - common
        path = np.concatenate([path[:common], np.arange(column, end)])
        forest["tokens"][column:end] = rollouts.tokens[member, common:length]
        forest["positions"][column:end] = np.arange(common, length)
        if "routes" in forest:
            forest["routes"][column:end] = rollouts.extras["routes"][member, common:length]
        column = end
        acted = np.flatnonzero((np.asarray(rollouts.mask[member, :length]) > 0) | (np.arange(length) == length - 1))
        index = np.where(acted > 0, path[np.maximum(acted, 1) - 1], -1)
        own = np.broadcast_to(np.array([[row], [member], [segment]]), (3, len(acted)))
        entries.append(np.stack([*own, acted, index, path[acted]]))
    forest["reach"][path] = column
    return np.concatenate(entries, axis=1)


def entries_width(number: int, width: int) -> int:
    """The size of `step_up` for `number` entries, or `width` where that is little more: full rows have one shape then."""
    size = step_up(number)
    return width if number <= width and 8 * size > 7 * width else size


def _entries(rollouts: Rollouts, entries: list[np.ndarray], placed: Rows, forest_width: int, columns: int) -> dict:
    """All per-token arrays of the batch, by name."""
    width = entries_width(max((found.shape[1] for found in entries), default=1), forest_width)
    width += -width % columns
    places = np.concatenate([np.arange(found.shape[1]) for found in entries] or [np.zeros(0, np.int64)])
    row, member, segment, position, index, column = np.concatenate(entries or [np.zeros((6, 0), np.int64)], axis=1)
    fields = per_token(rollouts)
    fields.pop("routes", None)
    packed = {name: np.zeros((placed.count, width, *value.shape[2:]), value.dtype) for name, value in fields.items()}
    for name, value in fields.items():
        packed[name][row, places] = value[member, position]
    packed |= {name: np.zeros((placed.count, width), np.int32) for name in ("segment", "positions", "column")}
    packed["index"] = np.full((placed.count, width), -1, np.int32)
    for name, value in {"segment": segment, "positions": position, "index": index, "column": column}.items():
        packed[name][row, places] = value
    return packed | {"parts": placed.parts}
