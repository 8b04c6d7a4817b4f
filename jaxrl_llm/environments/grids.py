"""Walks over a frozen lake, drawn as text."""

import functools
import random
from typing import NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition

MOVES = {"l": (0, -1), "r": (0, 1), "u": (-1, 0), "d": (1, 0)}
ICE, HOLE, GOAL, SELF = ".", "O", "G", "@"


class Lake(NamedTuple):
    """A lake and where the walker stands."""

    rows: tuple[str, ...]
    place: tuple[int, int]
    seed: int
    steps: int = 0


def frozen_lake(size: int = 4, holes: float = 0.2, slippery: float = 0.0) -> Environment:
    """A lake with a way from the upper left to the lower right; a turn is "l", "r", "u" or "d", its last letter counts.

    The walker "@" reads the lake before each turn. The goal gives 1 and ends the walk, a hole gives 0 and ends it, a turn that
    is no move gives -0.1 and moves nobody.

    Args:
      size: rows and columns.
      holes: share of the ice that has holes.
      slippery: probability of a move to the right of the one that was meant.

    Raises ValueError: a size below 2, or shares outside of [0, 1).
    """
    if size < 2 or not 0 <= holes < 1 or not 0 <= slippery < 1:
        raise ValueError(f"size is {size}, holes {holes}, slippery {slippery}; give at least 2, and shares from 0 to below 1")
    return Environment(functools.partial(_begin, size, holes), functools.partial(_step, slippery))


def _begin(size: int, holes: float, example: Example, seed: int) -> tuple[Lake, str]:
    source = random.Random(seed)
    way = _way(source, size)

    def field(row: int, column: int) -> str:
        if (row, column) == (size - 1, size - 1):
            return GOAL
        return HOLE if source.random() < holes and (row, column) not in way else ICE

    rows = tuple("".join(field(row, column) for column in range(size)) for row in range(size))
    lake = Lake(rows, (0, 0), source.getrandbits(32))
    return lake, drawn(lake)


def _way(source: random.Random, size: int) -> set[tuple[int, int]]:
    """Fields of one way to the goal, which have no holes."""
    moves = ["d"] * (size - 1) + ["r"] * (size - 1)
    source.shuffle(moves)
    place, found = (0, 0), {(0, 0)}
    for move in moves:
        place = place[0] + MOVES[move][0], place[1] + MOVES[move][1]
        found.add(place)
    return found


def drawn(lake: Lake) -> str:
    """The lake as lines of text, which end with a colon."""
    rows = [list(row) for row in lake.rows]
    rows[lake.place[0]][lake.place[1]] = SELF
    return "/".join(map("".join, rows)) + ":"


def _step(slippery: float, lake: Lake, text: str) -> Transition:
    move = text.strip()[-1:].lower()
    lake = lake._replace(steps=lake.steps + 1)
    if move not in MOVES:
        return Transition(lake, drawn(lake), reward=-0.1)
    if random.Random(f"{lake.seed} {lake.steps}").random() < slippery:
        move = {"l": "u", "u": "r", "r": "d", "d": "l"}[move]
    size = len(lake.rows)
    row, column = (min(max(old + by, 0), size - 1) for old, by in zip(lake.place, MOVES[move], strict=True))
    lake = lake._replace(place=(row, column))
    found = lake.rows[row][column]
    over = found in (HOLE, GOAL)
    return Transition(lake, drawn(lake), reward=float(found == GOAL), done=over)
