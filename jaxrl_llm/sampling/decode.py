"""The jitted core: prefill once per prompt, then one token per row and step until every row is done."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl_llm.sampling.draw import draw, tempered_entropy
from jaxrl_llm.sampling.records import LENGTH, RUNNING, STOP, Samples, Sampling
from jaxrl_llm.types import Array, record


@record
class State:
    """A decoding under way: N rows, L columns, `step` of them filled.

    Attributes:
      cache: the network's cache of N rows.
      tokens: int32 [N, L]; columns past a row's length hold whatever was sampled after its end.
      logps: float32 [3, N, L], as returned by `draw`.
      entropy: float32 [N, L], of `tempered_entropy`.
      length: int32 [N].
      finish_reason: int32 [N].
      step: int32 [].
      prompt_length: int32 [N].
      keys: [N], see `row_keys`.
      routes: as in `Samples`, or None.
      prompt_routes: as in `Samples`, or None.
    """

    cache: Any
    tokens: Array
    logps: Array
    entropy: Array
    length: Array
    finish_reason: Array
    step: Array
    prompt_length: Array
    keys: Array
    routes: Array | None = None
    prompt_routes: Array | None = None


@functools.partial(jax.jit, static_argnames=("network", "max_new_tokens", "record_routes"))
def decode(
    network, params, prompts, lengths, keys, sampling: Sampling, *, max_new_tokens: int, record_routes: bool = False
) -> Samples:
    """Samples completions of right-padded prompts in one compiled program.

    Only shapes, the network's functions and `max_new_tokens` are static. The cache is born in the program and never copied;
    each prompt is prefilled once for all its samples.

    Args:
      network: hashable, with `hidden(params, tokens, positions=, segments=, cache=) -> (hidden, cache)`,
        `unembed(params, hidden) -> logits` and `init_cache(rows, length) -> cache`.
      params: parameters of the network.
      prompts: int32 [P, T], right-padded.
      lengths: int32 [P], from 1 to T.
      keys: PRNG keys [N], N a multiple of P, from `row_keys`; rows of a prompt stand together.
      sampling: see `Sampling`; limits above `max_new_tokens` are lowered to it.
      max_new_tokens: L, columns of the result.
      record_routes: whether the samples say which experts their tokens were sent to; the network must have experts.

    Returns:
      `Samples` of N rows and L columns.
    """
    state = _start(network, params, prompts, lengths, keys, sampling, max_new_tokens, record_routes)
    return finished(_advance(network, params, state, sampling, max_new_tokens))


@functools.partial(jax.jit, static_argnames=("network", "max_new_tokens", "record_routes"))
def start(
    network, params, prompts, lengths, keys, sampling: Sampling, *, max_new_tokens: int, record_routes: bool = False
) -> State:
    """Prefills and samples the first token: the beginning of `decode`, to go on with `advance`."""
    return _start(network, params, prompts, lengths, keys, sampling, max_new_tokens, record_routes)


@functools.partial(jax.jit, static_argnames=("network",), donate_argnames=("state",))
def advance(network, params, state: State, sampling: Sampling, steps) -> State:
    """Samples up to `steps` further tokens per row; gives up the buffers of `state`."""
    return _advance(network, params, state, sampling, steps)


@jax.jit
def finished(state: State) -> Samples:
    """The samples of a decoding, cleared past each row's length."""
    kept = jnp.arange(state.tokens.shape[1]) < state.length[:, None]
    logp, tempered_logp, sampling_logp = jnp.where(kept, state.logps, 0.0)
    return Samples(
        tokens=jnp.where(kept, state.tokens, 0),
        logp=logp,
        tempered_logp=tempered_logp,
        sampling_logp=sampling_logp,
        entropy=jnp.where(kept, state.entropy, 0.0),
        length=state.length,
        finish_reason=state.finish_reason,
        routes=None if state.routes is None else jnp.where(kept[..., None, None], state.routes, -1),
        prompt_routes=state.prompt_routes,
    )


def _start(network, params, prompts, lengths, keys, sampling, max_new_tokens, record_routes) -> State:
    prompt_rows, width = prompts.shape
    rows = keys.shape[0]
    _check_rows(rows, prompt_rows, sampling, max_new_tokens)
    cache = network.init_cache(prompt_rows, width)
    segments = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
    hidden, cache, routes = _run(network, record_routes, params, prompts, segments=segments, cache=cache)
    # Logits are wanted for the last token of each prompt alone: [P, V], never [P, T, V].
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = jnp.repeat(network.unembed(params, last), rows // prompt_rows, axis=0)
    state = State(
        cache=_grown(network, cache, prompt_rows, rows, width + max_new_tokens),
        tokens=jnp.zeros((rows, max_new_tokens), jnp.int32),
        logps=jnp.zeros((3, rows, max_new_tokens), jnp.float32),
        entropy=jnp.zeros((rows, max_new_tokens), jnp.float32),
        length=jnp.zeros(rows, jnp.int32),
        finish_reason=jnp.full(rows, RUNNING, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        prompt_length=jnp.repeat(lengths, rows // prompt_rows).astype(jnp.int32),
        keys=keys,
    )
    if record_routes:
        # No token has been fed back yet: all choices are open.
        unknown = jnp.full((rows, max_new_tokens, *routes.shape[2:]), -1, jnp.int16)
        state = state.replace(routes=unknown, prompt_routes=routes)
    return _append(state, logits, sampling)


def _run(network, record_routes: bool, params, tokens, **options):
    """Hidden states [N, T, D], the cache, and the experts of each token, int16 [N, T, layers, k], or None."""
    if not record_routes:
        return *network.hidden(params, tokens, **options), None
    hidden, cache, routing = network.routed(params, tokens, **options)
    return hidden, cache, jnp.moveaxis(routing.experts, 0, 2).astype(jnp.int16)


def _check_rows(rows: int, prompt_rows: int, sampling: Sampling, columns: int) -> None:
    if rows % prompt_rows:
        raise ValueError(f"keys has {rows} rows; their number must be a multiple of the {prompt_rows} prompts")
    if sampling.temperature.shape != (rows,):
        raise ValueError(f"sampling is made for {sampling.temperature.shape} rows; make it for the {rows} rows of keys")
    if sampling.forced is not None and sampling.forced.shape != (rows, columns):
        raise ValueError(f"sampling.forced has shape {sampling.forced.shape}; it must be [{rows}, {columns}], -1 where free")


def _grown(network, cache, prompt_rows: int, rows: int, length: int):
    """The prompts' cache, copied to `rows` rows and with room for `length` tokens.

    Which axis counts rows is read off the cache's shapes, so any pytree of arrays may serve as cache.
    """
    one, two = (jax.eval_shape(lambda n=n: network.init_cache(n, length)) for n in (1, 2))

    def grow(filled, empty, one, two):
        axes = [axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]]
        if axes:
            filled = jnp.repeat(filled, rows // prompt_rows, axis=axes[0])
        return filled if filled.shape == empty.shape else lax.dynamic_update_slice(empty, filled, (0,) * empty.ndim)

    return jax.tree.map(grow, cache, network.init_cache(rows, length), one, two)


def _advance(network, params, state: State, sampling, steps) -> State:
    until = jnp.minimum(state.step + steps, state.tokens.shape[1])

    def unfinished(state):
        return (state.step < until) & (state.finish_reason == RUNNING).any()

    def body(state):
        token = lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        position = (state.prompt_length + state.step - 1)[:, None]
        recorded = state.routes is not None
        hidden, cache, routes = _run(network, recorded, params, token, positions=position, cache=state.cache)
        if recorded:
            routes = lax.dynamic_update_slice_in_dim(state.routes, routes, state.step - 1, axis=1)
        state = state.replace(cache=cache, routes=routes)
        return _append(state, network.unembed(params, hidden[:, 0]), sampling)

    return lax.while_loop(unfinished, body, state)


def _append(state: State, logits, sampling: Sampling) -> State:
    """Draws the token of column `step` from `logits` [N, V] and books it."""
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.prompt_length + state.step)
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    forced = None if sampling.forced is None else lax.dynamic_index_in_dim(sampling.forced, state.step, 1, keepdims=False)
    token, logps = draw(logits, uniforms, sampling, forced)
    entropy = tempered_entropy(logits, sampling.temperature)
    running = state.finish_reason == RUNNING
    length = state.length + running
    stopped = (token[:, None] == sampling.stop_ids).any(-1)
    full = length >= jnp.minimum(sampling.limit, state.tokens.shape[1])
    reason = jnp.where(stopped, STOP, jnp.where(full, LENGTH, RUNNING))
    return state.replace(
        tokens=lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1),
        logps=lax.dynamic_update_slice_in_dim(state.logps, logps[:, :, None], state.step, axis=2),
        entropy=lax.dynamic_update_slice_in_dim(state.entropy, entropy[:, None], state.step, axis=1),
        length=length,
        finish_reason=jnp.where(running, reason, state.finish_reason),
        step=state.step + 1,
    )
