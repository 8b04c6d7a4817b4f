"""The order of a data set: a pure function of (seed, epoch), walked by a cursor of two integers."""

import functools
from typing import NamedTuple

import numpy as np


class Cursor(NamedTuple):
    """The next example to take: `position` in the order of `epoch`."""

    epoch: int = 0
    position: int = 0


@functools.lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of [0, size) for one epoch, int64 [size], read-only.

    Sorts the raw words of a Philox counter keyed by (seed, epoch): unlike `Generator.permutation`, whose algorithm
    NumPy may change, these words are the same in every version, so that old checkpoints resume exactly.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a data set needs at least one example")
    key = np.array([seed % 2**64, epoch], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")
    order.setflags(write=False)
    return order


def next_indices(size: int, cursor: Cursor, count: int, seed: int) -> tuple[np.ndarray, Cursor]:
    """The next `count` examples and the cursor after them.

    Epochs follow each other without a gap: no remainder is dropped, and `count` may exceed `size`. Any split of a
    stream into calls gives the same stream.

    Args:
      size: number of examples in the data set.
      cursor: where to begin; `Cursor()` at first. A plain pair of integers will do.
      count: number of examples to take.
      seed: seed of the order.

    Returns: int64 [count] and the next `Cursor`.
    Raises ValueError: the cursor lies outside the data set, as when a run resumes with another data set.
    """
    epoch, position = (int(value) for value in cursor)
    if not 0 <= position < size:
        mend = "resume with the data set of the checkpoint"
        raise ValueError(f"cursor position {position} lies outside the {size} examples; {mend}")
    taken = [np.empty(0, np.int64)]
    while count > 0:
        part = epoch_order(size, seed, epoch)[position : position + count]
        taken.append(part)
        count -= len(part)
        epoch, position = divmod(epoch * size + position + len(part), size)
    return np.concatenate(taken), Cursor(epoch, position)


def weighted_indices(weights: np.ndarray, cursor: Cursor, count: int, seed: int) -> tuple[np.ndarray, Cursor]:
    """`count` different examples, drawn one after the other in proportion to their weights, and the cursor after them.

    A function of (weights, cursor, seed): the example with the largest log(u) / weight comes first, with a uniform number u
    for each example and place of the cursor. The cursor moves on as in `next_indices`.

    Args:
      weights: float [size], at least 0 and finite; examples of weight 0 are never drawn.
      cursor: where the draws before ended.
      count: number of examples to take.
      seed: seed of the order.

    Returns: int64 [count] in the order in which they were drawn, and the next `Cursor`.
    Raises ValueError: a weight that is negative or not finite, or fewer than `count` above 0.
    Source: Efraimidis and Spirakis, Weighted random sampling with a reservoir (2006)
    """
    weights = np.asarray(weights, np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size:
        raise ValueError(f"the weight of example {wrong[0]} is {weights[wrong[0]]}; weights are finite and at least 0")
    if (weights > 0).sum() < count:
        raise ValueError(f"{(weights > 0).sum()} examples have a weight above 0, and {count} are to be drawn; draw fewer")
    epoch, position = (int(value) for value in cursor)
    size = len(weights)
    # Words that no order of an epoch is made of.
    key = np.array([(seed + 2**63) % 2**64, epoch * size + position], np.uint64)
    uniform = ((np.random.Philox(key=key).random_raw(size) >> np.uint64(11)) + 0.5) * 2.0**-53
    rank = np.where(weights > 0, np.log(uniform) / np.where(weights > 0, weights, 1.0), -np.inf)
    chosen = np.argsort(-rank, kind="stable")[:count]
    return chosen, Cursor(*divmod(epoch * size + position + count, size))
