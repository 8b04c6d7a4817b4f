"""Sampling from lists of token ids: checks, stop strings, streaming."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxrl_llm.compose import require
from jaxrl_llm.networks import Network
from jaxrl_llm.networks.axes import current_row_shards
from jaxrl_llm.sampling.cacheless import Cacheless
from jaxrl_llm.sampling.harvest import Found, Work, evened, first_of, progress, samples_of
from jaxrl_llm.sampling.memory import most_slots
from jaxrl_llm.sampling.records import RUNNING, STOP, Samples, make_sampling, row_keys

# Tokens between two looks for stop strings, and for samples that are over.
_STOP_STRING_CHUNK = 16
_FINISHED_CHUNK = 64


def generate(
    network: Network | Callable[..., Any],
    params: Any,
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
    logit_mask: ArrayLike | None = None,
    record_routes: bool = False,
    slots: int | None = None,
    finished: Callable[[np.ndarray, Found], None] | None = None,
) -> Samples:
    """Samples completions of prompts of different lengths.

    A row is a function of (parameters, prompt, seed, step, uid) and the options, whatever else is sampled with it. A program
    is compiled per number of slots and width of their tails, and per bucket of the numbers and lengths of prompts.

    Args:
      network: a `Network`, or anything with `apply(params, tokens) -> logits` [N, T, V] of a causal model, which is then
        run anew on the whole text for each token.
      params: its parameters; `Changing` ones where others go on in the middle.
      prompts: token ids of P prompts, none empty.
      max_new_tokens: most tokens of a completion.
      num_samples: completions of each prompt, which is read once for them; one number for all, or one for each.
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
      slots: rows that are sampled at a time, each of which takes the next one where one ends; by default as many as memory has
        room for.
      finished: called with the numbers of samples that are over, each once, and with what all are so far, see `harvest.Found`,
        while others are still sampled.

    Returns:
      `Samples` of NumPy arrays [N, max_new_tokens], in the order of the prompts, the samples of a prompt together.

    Raises:
      ValueError: an argument out of its range; the message names it and the mend.
    """
    work = _work(
        network, params, prompts, max_new_tokens=max_new_tokens, num_samples=num_samples, limits=limits,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, stop_ids=stop_ids, seed=seed, step=step, uids=uids,
        buckets=buckets, logit_mask=logit_mask, record_routes=record_routes,
    )  # fmt: skip
    counts = np.broadcast_to(num_samples, len(prompts))
    stops = _stops_of_rows(stop_strings, detokenize, counts)
    options = {"columns": max_new_tokens, "slots": _checked_slots(slots, work, max_new_tokens)}
    if any(stops):
        options |= {"chunk": _STOP_STRING_CHUNK, "cut": _cutter(stops, detokenize)}
    elif finished is not None:
        options |= {"chunk": _FINISHED_CHUNK}
    samples = samples_of(_last(progress(work, **options), finished))
    if samples.prompt_routes is None:
        return samples
    of_prompts = work.of_context[np.cumsum(counts) - 1]
    return samples.replace(prompt_routes=samples.prompt_routes[of_prompts])


def _last(parts: Iterator[Found], finished: Callable[[np.ndarray, Found], None] | None) -> Found:
    """The last of what the engine gives, with `finished` told of samples as they end."""
    told = 0
    for found in parts:
        over = found.reason != RUNNING
        new = np.flatnonzero(over & ~told)
        told = over
        if finished is not None and new.size:
            finished(new, found)
    return found


def stream(
    network: Network | Callable[..., Any],
    params: Any,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    chunk: int = 8,
    stop_strings: Sequence[str] = (),
    detokenize: Callable[[Sequence[int]], str] | None = None,
    **options: Any,
) -> Iterator[list[int]]:
    """Yields the tokens that `generate` samples for one prompt, as they come: one, then `chunk` at a time.

    Args:
      network: as in `generate`, like all that is not named here.
      params: its parameters.
      prompt: token ids.
      max_new_tokens: most tokens.
      chunk: tokens between two yields.
      stop_strings, detokenize: as in `generate`.
      **options: `temperature`, `top_k`, `top_p`, `min_p`, `stop_ids`, `seed`, `step`, `uids`, `buckets`, `logit_mask`.

    Raises:
      ValueError: an argument out of its range; the message names it and the mend.
    """
    require(chunk >= 1, "chunk", chunk, "at least 1")
    stops = _stops_of_rows(stop_strings, detokenize, np.ones(1, int))
    work = _work(network, params, [prompt], max_new_tokens=max_new_tokens, num_samples=1, **options)
    cut = _cutter(stops, detokenize) if any(stops) else None
    return _stream(progress(work, columns=max_new_tokens, slots=1, chunk=chunk, cut=cut))


def _stream(parts: Iterator[Found]) -> Iterator[list[int]]:
    told = 0
    for found in parts:
        tokens = found.tokens[0, : found.length[0]].tolist()
        yield tokens[told:]
        told = len(tokens)


def _cutter(stops: list[tuple[str, ...]], detokenize) -> Callable[[Found, np.ndarray], np.ndarray]:
    """Builds `cut(found, requests) -> ended`, which ends samples with the token that completes one of their stop strings."""
    seen = np.zeros(len(stops), np.int64)

    def cut(found: Found, at_work: np.ndarray) -> np.ndarray:
        for row in np.flatnonzero(found.length > seen):
            tokens = found.tokens[row, : found.length[row]].tolist()
            end = end_of_stop_string(tokens, int(seen[row]), stops[row], detokenize) if stops[row] else None
            if end is not None:
                found.length[row], found.reason[row] = end, STOP
        seen[:] = found.length
        return found.reason[at_work] != RUNNING

    return cut


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


def _work(
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
    logit_mask: ArrayLike | None = None,
    record_routes=False,
    **options: Any,
) -> Work:
    """Checks the arguments of `generate`; `options` are those of `make_sampling`."""
    network, vocab_size = prepared(network, first_of(params))
    if record_routes and getattr(network, "routed", None) is None:
        raise ValueError("record_routes is True, but the network has no experts; leave it out")
    for name, number, least in (("seed", seed, 0), ("step", step, 0)):
        require(least <= number < 2**32, name, number, f"from {least} to 2**32 - 1")
    prompts = [np.asarray(prompt) for prompt in prompts]
    _check_prompts(prompts, vocab_size)
    counts = _checked_counts(num_samples, len(prompts))
    rows = int(counts.sum())
    options |= {"temperature": _of_rows("temperature", temperature, counts), "logit_mask": logit_mask}
    if np.ndim(logit_mask) == 2:
        options["logit_mask"] = _of_rows("logit_mask", logit_mask, counts)
    most = max_new_tokens if limits is None else np.minimum(_of_rows("limits", limits, counts), max_new_tokens)
    sampling = make_sampling(rows, vocab_size, max_new_tokens=most, **options)
    keys = row_keys(seed, step, _checked_uids(uids, rows))
    # Equal prompts are read once.
    numbers: dict[tuple[int, ...], int] = {}
    of_prompt = np.array([numbers.setdefault(tuple(prompt.tolist()), len(numbers)) for prompt in prompts])
    width = _width(max(map(len, numbers)), buckets)
    contexts, of_context = evened(list(numbers), np.repeat(of_prompt, counts))
    return Work(network, params, contexts, of_context, keys, sampling, width, record_routes)


def _checked_slots(slots: int | None, work: Work, columns: int) -> int:
    rows, shards = len(work.of_context), current_row_shards()
    if slots is not None and slots < 1:
        raise ValueError(f"slots is {slots}; it must be at least 1, or None for as many as memory has room for")
    most = shards * most_slots(work.network, columns) if slots is None else slots
    # Slots that devices do not share out evenly would be computed by all of them.
    return -(-min(most, rows) // shards) * shards


def prepared(network, params) -> tuple[Any, int]:
    """The network as `decode` wants it, and the size of its vocabulary."""
    if getattr(network, "step", None) is None:
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


def _width(longest: int, buckets: Sequence[int] | None) -> int | None:
    """The bucket that the prompts are padded to; None for a power of two."""
    if buckets is None:
        return None
    fitting = [bucket for bucket in buckets if bucket >= longest]
    if not fitting:
        raise ValueError(f"buckets={sorted(buckets)} has none for {longest} tokens; add a larger one or shorten the prompt")
    return min(fitting)
