"""What goes into decoding (`Sampling`) and what comes out (`Samples`)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxrl_llm.types import Array, Record

# Values of `Samples.finish_reason`.
RUNNING, STOP, LENGTH = 0, 1, 2
_FINISH_NAMES = ("running", "stop", "length")
# Numbers of stop ids are rounded up to a multiple of this, so that another number of them seldom recompiles.
_STOP_IDS_MULTIPLE = 8
# What the numbers of `make_sampling` may be: dtype, in words, and as a test. Tempered logits must fit float32.
_RANGES = {
    "temperature": (np.float32, "0 (greedy) or from 1e-6 up", lambda x: (x == 0) | (np.isfinite(x) & (x >= 1e-6))),
    "top_k": (np.int32, "at least 1, or None for all tokens", lambda x: x >= 1),
    "top_p": (np.float32, "above 0 and at most 1, or None for all tokens", lambda x: (x > 0) & (x <= 1)),
    "min_p": (np.float32, "from 0 to 1, or None for all tokens", lambda x: (x >= 0) & (x <= 1)),
    "max_new_tokens": (np.int32, "at least 1", lambda x: x >= 1),
}


def finish_name(code: int) -> str:
    """Name of a value of `Samples.finish_reason`: "stop", "length", or "running" for a row cut off while decoding."""
    return _FINISH_NAMES[int(code)]


class Samples(Record):
    """Completions of N rows in L columns. Past `length`, tokens, log-probabilities and entropies are 0."""

    tokens: Array  # int32 [N, L], sampled tokens, a stop id included
    logp: Array  # float32 [N, L], log-probability (nats) of each token under the policy, `log_softmax(logits)`
    # float32 [N, L], the same under `log_softmax(logits / temperature)`, without mask and truncation: the policy that
    # reinforcement learning trains. Equal to `logp` in greedy rows
    tempered_logp: Array
    # float32 [N, L], the same under the distribution that the token was drawn from: temperature, mask, top-k, top-p and min-p.
    # 0 for greedy and forced tokens, which were certain
    sampling_logp: Array
    length: Array  # int32 [N], number of tokens
    finish_reason: Array  # int32 [N], `STOP` (a stop id or a stop string) or `LENGTH`; see `finish_name`
    # float32 [N, L] or None, entropy (nats) of the tempered policy at each token: how open the choice was
    entropy: Array | None = None
    # int16 [N, L, layers, k] or None, experts that each token was sent to when it was read; -1 for tokens that were not read
    # any more, such as the last ones
    routes: Array | None = None
    prompt_routes: Array | None = None  # int16 [P, T, layers, k] or None, the same of the prompts' tokens
    older: Array | None = None  # int32 [N] or None, first tokens that were drawn before the parameters changed; None for all


class Sampling(Record):
    """How each of N rows is sampled. Every value is traced: none of them ever recompiles or is frozen into a program."""

    temperature: Array  # float32 [N], 0 is greedy
    top_k: Array  # int32 [N], number of best tokens that stay; the vocabulary's size or more keeps all
    top_p: Array  # float32 [N], probability mass that stays; 1 keeps all
    min_p: Array  # float32 [N], least probability that stays, as a share of the best token's; 0 keeps all
    stop_ids: Array  # int32 [S], tokens that end a row; -1 stands for none
    limit: Array  # int32 [N], most tokens of a row
    logit_mask: Array | None = None  # bool [N, V] or [1, V] or None, False where a token may not be sampled
    # int32 [N, L] or None, tokens to take instead of sampled ones; -1 leaves the choice to the sampler
    forced: Array | None = None


def make_sampling(
    rows: int, vocab_size: int, *, max_new_tokens: ArrayLike, temperature: ArrayLike = 1.0, top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None, min_p: ArrayLike | None = None, stop_ids: Sequence[int] = (),
    logit_mask: ArrayLike | None = None, forced: ArrayLike | None = None,
) -> Sampling:  # fmt: skip
    """Checked `Sampling` of `rows` rows; numbers may be given once for all rows or as [rows].

    Args:
      rows: N, number of rows that are sampled.
      vocab_size: V, number of logits.
      max_new_tokens: most tokens of a row, at least 1.
      temperature: 0 (greedy) or at least 1e-6.
      top_k: at least 1; None keeps all tokens. Of equal logits the lower token id is the better one.
      top_p: in (0, 1]; None keeps all tokens.
      min_p: in [0, 1]; None keeps all tokens.
      stop_ids: token ids.
      logit_mask: bool [V], [1, V] or [rows, V].
      forced: int [rows, L] as in `Sampling`.

    Raises ValueError: a value out of its range; the message names it.
    """
    return Sampling(
        temperature=_per_row("temperature", temperature, rows),
        top_k=_per_row("top_k", vocab_size if top_k is None else top_k, rows),
        top_p=_per_row("top_p", 1.0 if top_p is None else top_p, rows),
        min_p=_per_row("min_p", 0.0 if min_p is None else min_p, rows),
        stop_ids=_checked_stop_ids(stop_ids, vocab_size),
        limit=_per_row("max_new_tokens", max_new_tokens, rows),
        logit_mask=_checked_mask(logit_mask, rows, vocab_size),
        forced=_checked_forced(forced, rows, vocab_size),
    )


def _per_row(name: str, value, rows: int) -> np.ndarray:
    dtype, allowed, test = _RANGES[name]
    array = np.asarray(value)
    if array.shape not in ((), (rows,)):
        raise ValueError(f"{name} has shape {array.shape}; give one number, or one for each of the {rows} rows")
    whole = np.issubdtype(dtype, np.integer)
    if whole and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} is {value}; it must be {allowed}, as an integer")
    fine = test(array)
    if not fine.all():
        raise ValueError(f"{name} is {array[~fine].flat[0]}; it must be {allowed}")
    # A very large top_k means all tokens and must not wrap round.
    fitting = np.minimum(array, np.iinfo(dtype).max) if whole else array
    return np.broadcast_to(fitting.astype(dtype), (rows,))


def _checked_stop_ids(stop_ids, vocab_size: int) -> np.ndarray:
    stop_ids = np.asarray(list(stop_ids), np.int64)
    wrong = stop_ids[(stop_ids < 0) | (stop_ids >= vocab_size)]
    if wrong.size:
        raise ValueError(f"stop_ids holds {wrong[0]}; give token ids from 0 to {vocab_size - 1} (the network's vocabulary)")
    width = -(-max(stop_ids.size, 1) // _STOP_IDS_MULTIPLE) * _STOP_IDS_MULTIPLE
    return np.pad(stop_ids, (0, width - stop_ids.size), constant_values=-1).astype(np.int32)


def _checked_mask(mask, rows, vocab_size) -> np.ndarray | None:
    if mask is None:
        return None
    mask = np.atleast_2d(np.asarray(mask, bool))
    if mask.shape not in ((1, vocab_size), (rows, vocab_size)):
        raise ValueError(f"logit_mask has shape {mask.shape}; it must be [{vocab_size}] or [{rows}, {vocab_size}]")
    if not mask.any(-1).all():
        raise ValueError(f"logit_mask forbids every token of row {int(np.argmin(mask.any(-1)))}; allow at least one")
    return mask


def _checked_forced(forced, rows, vocab_size) -> np.ndarray | None:
    if forced is None:
        return None
    forced = np.asarray(forced, np.int32)
    if forced.ndim != 2 or forced.shape[0] != rows:
        raise ValueError(f"forced has shape {forced.shape}; it must be [{rows}, max_new_tokens], -1 where a token is free")
    if forced.min() < -1 or forced.max() >= vocab_size:
        raise ValueError(f"forced holds {forced.min()} to {forced.max()}; give -1 (free) or ids below {vocab_size}")
    return forced


def row_keys(seed: int, step: int | Array, uids: ArrayLike) -> jax.Array:
    """Keys [N] of rows: `fold_in(fold_in(key(seed), step), uid)`.

    Decoding folds in the position of each token. A row's noise is thus a function of (seed, step, uid, position) alone:
    neither other rows nor the place in the batch take part.

    Args:
      seed: seed of the run.
      step: training step.
      uids: int [N], number of each sample within the step.
    """
    return _row_keys(jax.random.key(seed), step, jnp.asarray(uids, jnp.uint32))


@jax.jit
def _row_keys(key, step, uids) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, step), uids)
