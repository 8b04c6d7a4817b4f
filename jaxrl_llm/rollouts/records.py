"""Building `Rollouts` from samples, and joining them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.estimators import row_scores
from jaxrl_llm.rewards import LARGEST_REWARD
from jaxrl_llm.rollouts.requests import Prefix
from jaxrl_llm.sampling import LENGTH, Samples
from jaxrl_llm.types import Rollouts

_MULTIPLE = 64
PER_TOKEN = {"tokens": np.int32, "mask": np.float32, "behavior_logp": np.float32, "version": np.int32, "turn": np.int32}


def make_rollouts(
    prompts: Sequence[Sequence[int]], samples: Samples, rewards: np.ndarray, prompt_ids: Sequence[int], *, width: int,
    version: int = 0, samples_of: Sequence[int] | None = None, prefixes: Sequence[Prefix | None] | None = None,
    keeps_entropy: bool = False,
) -> Rollouts:  # fmt: skip
    """One row for each sample: its prompt, the prefix of its prompt, then its completion, from column 0.

    Args:
      prompts: token ids of P prompts.
      samples: N rows, the samples of a prompt together.
      rewards: [N, K], within +-1e6, NaN where missing.
      prompt_ids: number of each prompt in its data set.
      width: T, columns of the result.
      version: training step of the parameters that sampled; of the first ones where they changed, and the others have the next.
      samples_of: number of samples of each prompt; by default all have as many.
      prefixes: what stands between each prompt and its samples; nothing by default.
      keeps_entropy: whether `extras["behavior_entropy"]` has the entropies of the samples, 0 at other tokens.

    Returns: Rollouts of NumPy arrays, each prompt a group; `behavior_logp` is that of the tempered policy, without truncation.
      Where the samples have routes, so has `extras["routes"]`, int16 [N, T, layers, k].
    Raises ValueError: a prompt, prefix and completion do not fit into `width`, or a reward that is infinite or larger than
      `rewards.LARGEST_REWARD`, 1e6: squares of such rewards would not stay finite in float32.
    """
    check_range(rewards)
    rows = len(samples.length)
    counts = np.full(len(prompts), rows // max(len(prompts), 1)) if samples_of is None else np.asarray(samples_of)
    prompt_of = np.repeat(np.arange(len(prompts)), counts)
    fields = {name: np.zeros((rows, width), kind) for name, kind in PER_TOKEN.items()}
    fields["version"][:] = version
    length, extras = np.zeros(rows, np.int32), {}
    if keeps_entropy:
        extras["behavior_entropy"] = np.zeros((rows, width), np.float32)
    if samples.routes is not None:
        extras["routes"] = np.full((rows, width, *samples.routes.shape[2:]), -1, np.int16)
    for row, number in enumerate(prompt_of):
        prompt, prefix = prompts[number], None if prefixes is None else prefixes[number]
        head = len(prompt) + (0 if prefix is None else len(prefix.tokens))
        count = int(samples.length[row])
        length[row] = head + count
        if length[row] > width:
            raise ValueError(f"row {row} has {length[row]} tokens, more than width = {width}: raise it to the longest row")
        own, whole = slice(head, length[row]), {name: value[row] for name, value in fields.items()}
        whole["tokens"][: len(prompt)] = prompt
        if prefix is not None:
            _lay_prefix(whole, prefix, slice(len(prompt), head), own)
        whole["tokens"][own], whole["mask"][own] = samples.tokens[row, :count], 1.0
        whole["behavior_logp"][own] = samples.tempered_logp[row, :count]
        if samples.older is not None:
            whole["version"][head + samples.older[row] : own.stop] += 1
        if keeps_entropy:
            extras["behavior_entropy"][row, own] = samples.entropy[row, :count]
        if samples.routes is not None:
            extras["routes"][row, :head] = samples.prompt_routes[number, :head]
            extras["routes"][row, own] = samples.routes[row, :count]
    return Rollouts(
        **fields, length=length, rewards=np.asarray(rewards, np.float32), group=prompt_of.astype(np.int32),
        prompt_id=np.repeat(np.asarray(prompt_ids, np.int32), counts), extras=extras,
    )  # fmt: skip


def rollouts_of_texts(
    prompts: Sequence[Sequence[int]], texts: Sequence[Prefix], prompt_ids: Sequence[int], *, width: int, version: int
) -> Rollouts:
    """One row for each prompt with the text behind it, each a group, without rewards; see `make_rollouts`."""
    rows = len(texts)
    none = np.zeros((rows, 1), np.float32)
    samples = Samples(
        tokens=none.astype(np.int32), logp=none, tempered_logp=none, sampling_logp=none, length=np.zeros(rows, np.int32),
        finish_reason=np.full(rows, LENGTH, np.int32),
    )  # fmt: skip
    missing = np.full((rows, 1), np.nan)
    return make_rollouts(prompts, samples, missing, prompt_ids, width=width, version=version, prefixes=texts)


def _lay_prefix(row: dict[str, np.ndarray], prefix: Prefix, place: slice, behind: slice) -> None:
    for name, value in (("tokens", prefix.tokens), ("mask", prefix.mask), ("behavior_logp", prefix.logp)):
        row[name][place] = value
    row["version"][place], row["turn"][place] = prefix.version, prefix.turn
    row["turn"][behind] = prefix.turn[-1] if len(prefix.turn) else 0


def check_range(rewards: np.ndarray) -> None:
    """Refuses rewards [N, K] that are infinite or beyond +-1e6; NaN is a missing one."""
    outside = np.argwhere(np.abs(np.nan_to_num(rewards, nan=0.0, posinf=np.inf, neginf=-np.inf)) > LARGEST_REWARD)
    if len(outside):
        row, component = outside[0]
        raise ValueError(
            f"reward {component} of row {row} is {rewards[row][component]}; rewards, times their weights, lie within "
            f"+-{LARGEST_REWARD:g}: scale it, or give NaN where it is missing"
        )


def select_rows(rollouts: Rollouts, rows: np.ndarray) -> Rollouts:
    """The given rows, their groups numbered anew from 0 in order of appearance."""
    chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], rollouts.replace(group=np.zeros_like(rollouts.group)))
    return chosen.replace(group=numbered(np.asarray(rollouts.group)[rows]))


def numbered(group: np.ndarray) -> np.ndarray:
    """Numbers of groups from 0, in order of appearance, int32 [N]."""
    _, first, renumbered = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[renumbered].astype(np.int32)


def concatenate(parts: Sequence[Rollouts]) -> Rollouts:
    """All rows of `parts`, which have equal widths; groups of different parts stay apart.

    Routes that a part does not have are free, as those of texts that nobody sampled.
    """
    if len(parts) == 1:
        return parts[0]
    parts = _with_routes(parts)
    offsets = np.cumsum([0] + [len(part.length) for part in parts[:-1]])
    group = np.concatenate([np.asarray(part.group) + offset for part, offset in zip(parts, offsets, strict=True)])
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts).replace(group=group)


def _with_routes(parts: Sequence[Rollouts]) -> Sequence[Rollouts]:
    shapes = {part.extras["routes"].shape[2:] for part in parts if "routes" in part.extras}
    if not shapes:
        return parts
    (shape,) = shapes
    free = [np.full((*part.tokens.shape, *shape), -1, np.int16) for part in parts]
    return [part.replace(extras={"routes": routes} | part.extras) for part, routes in zip(parts, free, strict=True)]


def rounded(length: int) -> int:
    """A length filled up to a multiple, so that few programs are compiled."""
    return -(-length // _MULTIPLE) * _MULTIPLE


def scores_of_rows(rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray]:
    """What `estimators.row_scores` says, of as many rows as `rounded` says."""
    names = [name for name in ("rewards", "valid", "mask", "group", "token_rewards") if getattr(rollouts, name) is not None]
    count, filling = len(rollouts.length), rounded(len(rollouts.length)) - len(rollouts.length)
    arrays = {name: np.asarray(getattr(rollouts, name)) for name in names}
    filled = {name: np.pad(array, [(0, filling)] + [(0, 0)] * (array.ndim - 1)) for name, array in arrays.items()}
    return tuple(np.asarray(found)[:count] for found in _row_scores(filled))


@jax.jit
def _row_scores(arrays: dict[str, jax.Array]):
    shape = arrays["mask"].shape
    rest = {"tokens": jnp.zeros(shape, jnp.int32), "length": jnp.zeros(shape[:1], jnp.int32)}
    return row_scores(Rollouts(**rest, **arrays))


def informative_groups(rollouts: Rollouts) -> np.ndarray:
    """Numbers, in rising order, of the groups whose total rewards differ; rows without any reward have no part.

    It decides by the scores of `estimators.row_scores`, so that all who ask find the same groups uniform.
    """
    score, present = scores_of_rows(rollouts)
    group = np.asarray(rollouts.group)
    counted = present > 0
    return np.array([g for g in np.unique(group[counted]) if np.ptp(score[counted & (group == g)]) > 0], np.int32)
