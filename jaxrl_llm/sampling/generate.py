"""Sampling from lists of token ids: checks, buckets of shapes, stop strings, streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.sampling.cacheless import Cacheless
from jaxrl_llm.sampling.decode import State, advance, decode, finished, start
from jaxrl_llm.sampling.records import RUNNING, STOP, Samples, Sampling, make_sampling, row_keys

# Prompts are padded to powers of two from here on.
_SMALLEST_BUCKET = 16
# Columns are rounded up to powers of two below this, and to multiples of it above.
_COLUMNS_MULTIPLE = 64
# Tokens between two looks for stop strings.
_STOP_STRING_CHUNK = 16


class Prepared(NamedTuple):
    """Arguments of `decode`: all but the network and the last two are arrays."""

    network: Any
    params: Any
    prompts: np.ndarray
    lengths: np.ndarray
    keys: jax.Array
    sampling: Sampling
    columns: int
    record_routes: bool


def generate(
    network,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_samples: int | Sequence[int] = 1,
    limits: Sequence[int] | None = None,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    step: int = 0,
    uids: Sequence[int] | None = None,
    stop_strings: Sequence[str] | Sequence[Sequence[str]] = (),
    detokenize: Callable[[Sequence[int]], str] | None = None,
    buckets: Sequence[int] | None = None,
    logit_mask=None,
    record_routes: bool = False,
) -> Samples:
    """Samples completions of prompts of different lengths.

    A row is a function of (parameters, prompt, seed, step, uid) and the options, whatever else is sampled with it. A program
    is compiled per number of prompts, per bucket of prompt lengths and per rounded `max_new_tokens`; nothing else compiles.

    Args:
      network: a `Network`, or anything with `apply(params, tokens) -> logits` [N, T, V] of a causal model, which is then
        run anew on the whole text for each token.
      params: its parameters.
      prompts: token ids of P prompts, none empty.
      max_new_tokens: most tokens of a completion.
      num_samples: completions of each prompt: one number for all, which are then prefilled once each, or one for each.
      limits: most tokens of a completion of each prompt [P], where they differ; at most `max_new_tokens` counts.
      temperature: 0 is greedy; one number for all prompts, or one for each.
      top_k: keeps the best tokens; None keeps all, as in the two below.
      top_p: keeps the fewest tokens, best first, that together have this probability.
      min_p: keeps tokens of at least this share of the best token's probability.
      stop_ids: tokens that end a completion, of which they stay a part.
      seed: seed of the run.
      step: training step, folded into the noise.
      uids: number of each of the N samples, folded into the noise; by default the number of the row.
      stop_strings: texts that end a completion with the token that completes one of them; of all prompts, or lists of them,
        one for each prompt.
      detokenize: token ids to text, for `stop_strings`.
      buckets: prompt widths to choose from; by default powers of two.
      logit_mask: bool [V] or [P, V], False where a token may not be sampled.
      record_routes: whether to return the experts that tokens were sent to, for a learner that shall use the same.

    Returns:
      `Samples` of NumPy arrays [N, max_new_tokens], in the order of the prompts, the samples of a prompt together.

    Raises:
      ValueError: an argument out of its range; the message names it and the mend.
    """
    prepared = _prepared_arguments(
        network,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        limits=limits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop_ids=stop_ids,
        seed=seed,
        step=step,
        uids=uids,
        buckets=buckets,
        logit_mask=logit_mask,
        record_routes=record_routes,
    )
    rows = prepared.keys.shape[0]
    stops = _stops_of_rows(stop_strings, detokenize, np.broadcast_to(num_samples, len(prompts)))
    if any(stops):
        *_, state = _states(prepared, _STOP_STRING_CHUNK, stops, detokenize)
        samples = finished(state)
    else:
        *arguments, columns, record_routes = prepared
        samples = decode(*arguments, max_new_tokens=columns, record_routes=record_routes)
    prompt_routes, samples = samples.prompt_routes, samples.replace(prompt_routes=None)
    if prompt_routes is not None and len(prompt_routes) == rows:
        prompt_routes = prompt_routes[np.cumsum(np.broadcast_to(num_samples, len(prompts))) - 1]
    samples = jax.tree.map(lambda x: x[:, :max_new_tokens] if x.ndim > 1 else x, jax.device_get(samples))
    return samples.replace(prompt_routes=jax.device_get(prompt_routes))


def stream(
    network,
    params,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    chunk: int = 8,
    stop_strings: Sequence[str] = (),
    detokenize: Callable[[Sequence[int]], str] | None = None,
    **options,
) -> Iterator[list[int]]:
    """Yields the tokens that `generate` samples for one prompt, as they come: one, then `chunk` at a time.

    Args:
      network: as in `generate`, like all that is not named here.
      params: its parameters.
      prompt: token ids.
      max_new_tokens: most tokens.
      chunk: tokens between two yields.
      stop_strings: as in `generate`.
      detokenize: as in `generate`.
      **options: `temperature`, `top_k`, `top_p`, `min_p`, `stop_ids`, `seed`, `step`, `uids`, `buckets`, `logit_mask`.

    Raises:
      ValueError: an argument out of its range; the message names it and the mend.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    stops = _stops_of_rows(stop_strings, detokenize, np.ones(1, int))
    prepared = _prepared_arguments(network, params, [prompt], max_new_tokens=max_new_tokens, num_samples=1, **options)
    return _stream(_states(prepared, chunk, stops, detokenize))


def _stream(states: Iterator[State]) -> Iterator[list[int]]:
    told = 0
    for state in states:
        tokens = np.asarray(state.tokens)[0, : int(state.length[0])].tolist()
        yield tokens[told:]
        told = len(tokens)


def _states(prepared: Prepared, chunk: int, stops: list[tuple[str, ...]], detokenize) -> Iterator[State]:
    """States of a decoding after one token and then after every `chunk`; each is void once the next is asked for."""
    *arguments, columns, record_routes = prepared
    network, params, *_, keys, sampling = arguments
    state = start(*arguments, max_new_tokens=columns, record_routes=record_routes)
    seen = np.zeros(keys.shape[0], np.int32)
    while True:
        if any(stops):
            state = _cut(state, seen, stops, detokenize)
            seen = np.asarray(state.length)
        yield state
        if not (np.asarray(state.finish_reason) == RUNNING).any():
            return
        state = advance(network, params, state, sampling, chunk)


def _cut(state: State, seen: np.ndarray, stops: list[tuple[str, ...]], detokenize) -> State:
    """Ends the rows in which one of their stop strings was completed after the first `seen` tokens."""
    tokens = np.asarray(state.tokens)
    length, reason = np.array(state.length), np.array(state.finish_reason)
    for row in np.flatnonzero(length > seen):
        if not stops[row]:
            continue
        end = end_of_stop_string(tokens[row, : length[row]].tolist(), seen[row], stops[row], detokenize)
        if end is not None:
            length[row], reason[row] = end, STOP
    return state.replace(length=jnp.asarray(length), finish_reason=jnp.asarray(reason))


def end_of_stop_string(tokens: list[int], seen: int, stop_strings, detokenize) -> int | None:
    """Fewest tokens, more than `seen`, whose text holds a stop string; None if all of them do not.

    The first `seen` hold none, so that only the end of their text can be the beginning of one.
    """
    before = _tail(tokens, seen, 2 * max(map(len, stop_strings), default=0), detokenize)

    def stops(count):
        text = detokenize(tokens[before:count])
        return any(stop in text for stop in stop_strings)

    if not stops(len(tokens)):
        return None
    return next(count for count in range(seen + 1, len(tokens) + 1) if stops(count))


def _tail(tokens: list[int], end: int, characters: int, detokenize) -> int:
    """A place from which the text of the tokens up to `end` has so many characters, however little a token says; or 0."""
    count = characters
    while count < end and len(detokenize(tokens[end - count : end])) < characters:
        count *= 2
    return max(end - count, 0)


def _prepared_arguments(
    network,
    params,
    prompts,
    *,
    max_new_tokens,
    num_samples,
    limits=None,
    temperature=1.0,
    seed=0,
    step=0,
    uids=None,
    buckets=None,
    logit_mask=None,
    record_routes=False,
    **options,
) -> Prepared:
    """Checks and pads the arguments of `generate`; `options` are those of `make_sampling`."""
    network, vocab_size = _prepared(network, params)
    if record_routes and getattr(network, "routed", None) is None:
        raise ValueError("record_routes is True, but the network has no experts; leave it out")
    for name, number, least in (("seed", seed, 0), ("step", step, 0)):
        if not least <= number < 2**32:
            raise ValueError(f"{name} is {number}; it must be from {least} to 2**32 - 1")
    prompts = [np.asarray(prompt) for prompt in prompts]
    _check_prompts(prompts, vocab_size)
    counts = _checked_counts(num_samples, len(prompts))
    rows = int(counts.sum())
    if len(set(counts.tolist())) > 1:
        # Rows of a prompt would have to be equally many to be prefilled together.
        prompts = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
    lengths = np.asarray([prompt.size for prompt in prompts], np.int32)
    width = _bucket(int(lengths.max()), buckets)
    padded = np.stack([np.pad(prompt, (0, width - prompt.size)) for prompt in prompts]).astype(np.int32)
    options |= {"temperature": _of_rows("temperature", temperature, counts), "logit_mask": logit_mask}
    if np.ndim(logit_mask) == 2:
        options["logit_mask"] = _of_rows("logit_mask", logit_mask, counts)
    most = max_new_tokens if limits is None else np.minimum(_of_rows("limits", limits, counts), max_new_tokens)
    sampling = make_sampling(rows, vocab_size, max_new_tokens=most, **options)
    keys = row_keys(seed, step, _checked_uids(uids, rows))
    return Prepared(network, params, padded, lengths, keys, sampling, _columns(max_new_tokens), record_routes)


def _prepared(network, params) -> tuple[Any, int]:
    """The network as `decode` wants it, and the size of its vocabulary."""
    if getattr(network, "init_cache", None) is None:
        logits = jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct((1, 1), jnp.int32))
        return Cacheless(network.apply), logits.shape[-1]
    # A program that was compiled for a network with its parameters would keep them alive.
    return network.without_params(), network.config.vocab_size


def _check_prompts(prompts: list[np.ndarray], vocab_size: int) -> None:
    if not prompts:
        raise ValueError("prompts is empty; give at least one list of token ids")
    for row, prompt in enumerate(prompts):
        if prompt.ndim != 1 or not prompt.size:
            raise ValueError(f"prompts[{row}] has shape {prompt.shape}; give a list of at least one token id")
        if not np.issubdtype(prompt.dtype, np.integer):
            raise ValueError(f"prompts[{row}] holds {prompt.dtype} numbers; give token ids as integers")
        if prompt.min() < 0 or prompt.max() >= vocab_size:
            wrong = prompt[(prompt < 0) | (prompt >= vocab_size)][0]
            raise ValueError(f"prompts[{row}] holds {wrong}; token ids go from 0 to {vocab_size - 1} here")


def _checked_counts(num_samples, prompts: int) -> np.ndarray:
    """Samples of each prompt, int [P]."""
    counts = np.asarray(num_samples)
    if counts.shape not in ((), (prompts,)) or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"num_samples is {num_samples}; give one integer, or one for each of the {prompts} prompts")
    if counts.min() < 1 or counts.max() >= 2**32:
        raise ValueError(f"num_samples is {num_samples}; it must be from 1 to 2**32 - 1")
    return np.broadcast_to(counts, (prompts,))


def _of_rows(name: str, value, counts: np.ndarray):
    """What is given for each prompt, for each of its samples; what is given once stays as it is."""
    if np.ndim(value) == 0:
        return value
    if len(value) != len(counts):
        raise ValueError(f"{name} has {len(value)} entries; give one for all, or one for each of the {len(counts)} prompts")
    return np.repeat(np.asarray(value), counts, axis=0)


def _checked_uids(uids, rows: int) -> np.ndarray:
    uids = np.arange(rows) if uids is None else np.asarray(uids)
    if uids.shape != (rows,):
        raise ValueError(f"uids has shape {uids.shape}; give one number for each of the {rows} samples")
    if len(np.unique(uids)) < rows or uids.min() < 0 or uids.max() >= 2**32:
        raise ValueError(f"uids={uids.tolist()} must be different numbers from 0 to 2**32 - 1, or samples would coincide")
    return uids


def _stops_of_rows(stop_strings, detokenize, counts: np.ndarray) -> list[tuple[str, ...]]:
    """Stop strings of each row, for `counts` samples of each prompt; they are given once, or for each prompt."""
    kinds = {isinstance(stop, str) for stop in stop_strings}
    of_prompts = list(map(tuple, stop_strings)) if kinds == {False} else [tuple(stop_strings)] * len(counts)
    if isinstance(stop_strings, str) or len(kinds) > 1 or not all(all(stops) for stops in of_prompts):
        raise ValueError(f"stop_strings is {stop_strings!r}; give a list of texts that are not empty, or such a list a prompt")
    if len(of_prompts) != len(counts):
        raise ValueError(f"stop_strings has lists for {len(of_prompts)} prompts; give one for each of the {len(counts)}")
    if any(of_prompts) and detokenize is None:
        raise ValueError(f"stop_strings={list(stop_strings)} needs detokenize; give a function from token ids to text")
    return [stops for stops, count in zip(of_prompts, counts, strict=True) for _ in range(count)]


def _bucket(longest: int, buckets: Sequence[int] | None) -> int:
    if buckets is None:
        return max(_SMALLEST_BUCKET, _power_of_two(longest))
    fitting = [bucket for bucket in buckets if bucket >= longest]
    if not fitting:
        raise ValueError(f"buckets={sorted(buckets)} has none for {longest} tokens; add a larger one or shorten the prompt")
    return min(fitting)


def _columns(max_new_tokens: int) -> int:
    if max_new_tokens < _COLUMNS_MULTIPLE:
        return _power_of_two(max_new_tokens)
    return -(-max_new_tokens // _COLUMNS_MULTIPLE) * _COLUMNS_MULTIPLE


def _power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
