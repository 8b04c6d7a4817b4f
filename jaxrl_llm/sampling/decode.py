"""Decoding as one pure function of arrays, for loops of one's own: the slot engine with a slot for each row."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm.networks.axes import check_rows, current_queues
from jaxrl_llm.sampling import engine
from jaxrl_llm.sampling.records import Samples, Sampling


@functools.partial(jax.jit, static_argnames=("network", "max_new_tokens", "record_routes"))
def decode(
    network, params, prompts, lengths, keys, sampling: Sampling, *, max_new_tokens: int, record_routes: bool = False
) -> Samples:
    """Samples completions of right-padded prompts in one compiled program.

    Only shapes, the network's functions and `max_new_tokens` are static. Each prompt is read once for all its samples.
    `generate` does the same for lists of token ids, on as few columns as the samples need.

    Args:
      network: hashable, with `read`, `each_layer`, `init_tails`, `step` and `unembed`, see `networks.Network`.
      params: parameters of the network.
      prompts: int32 [P, T], right-padded.
      lengths: int32 [P], from 1 to T.
      keys: PRNG keys [N], N a multiple of P, from `row_keys`; rows of a prompt stand together.
      sampling: see `Sampling`; limits above `max_new_tokens` are lowered to it.
      max_new_tokens: L, columns of the result.
      record_routes: whether the samples say which experts their tokens were sent to; the network must have experts.

    Returns: `Samples` of N rows and L columns.
    """
    rows, places = keys.shape[0], keys.shape[0] // prompts.shape[0]
    _check_rows(rows, prompts.shape[0], sampling, max_new_tokens)
    check_rows(rows, "samples of decode")
    queues = current_queues()
    if len(prompts) % queues:
        raise ValueError(f"{len(prompts)} prompts do not go evenly over {queues} queues; pad them to a multiple of {queues}")
    last = jnp.take_along_axis(prompts, (lengths - 1)[:, None], axis=1)[:, 0]
    queue = engine.Queue(
        size=jnp.full(queues, rows // queues, jnp.int32), cell=jnp.arange(rows, dtype=jnp.int32) % (rows // queues),
        token=jnp.repeat(last, places), length=jnp.repeat(lengths, places).astype(jnp.int32), keys=keys,
        sampling=sampling.replace(limit=jnp.minimum(sampling.limit, max_new_tokens)),
    )  # fmt: skip
    read, experts = network.read(params, prompts, lengths - 1)
    slots = engine.begin(network, queue, slots=rows, width=max_new_tokens, routes=experts.shape[2:] if record_routes else None)
    nobody, layers = jnp.zeros(rows, bool), network.each_layer(params)
    slots = engine.run(network, params, layers, read, lengths - 1, queue, slots, nobody, max_new_tokens, 0, places=places)
    return _samples(slots.log, rows // queues, lengths, experts)


def _samples(log: engine.Log, size: int, lengths, experts) -> Samples:
    """Samples out of the log of slots that took one request each, in their order, of queues of this size."""
    kept = (log.request < size).T
    logp, tempered_logp, sampling_logp, entropy = jnp.where(kept, jnp.moveaxis(log.numbers, 0, 2), 0.0)
    samples = Samples(
        tokens=jnp.where(kept, log.token.T, 0), logp=logp, tempered_logp=tempered_logp, sampling_logp=sampling_logp,
        entropy=entropy, length=kept.sum(axis=1, dtype=jnp.int32), finish_reason=jnp.where(kept, log.reason.T, 0).max(axis=1),
    )  # fmt: skip
    if log.routes is None:
        return samples
    routes = jnp.where(kept[..., None, None], jnp.moveaxis(log.routes, 0, 1), -1)
    # What a step reads is the token before the one that it draws; the first step reads the last token of its prompt.
    last = jnp.arange(experts.shape[1]) == (lengths - 1)[:, None]
    inside = jnp.arange(experts.shape[1]) < (lengths - 1)[:, None]
    own = jnp.where(
        inside[..., None, None], experts, jnp.where(last[..., None, None], routes[:: len(kept) // len(lengths), :1], -1)
    )
    following = jnp.concatenate([routes[:, 1:], jnp.full_like(routes[:, :1], -1)], axis=1)
    return samples.replace(routes=following, prompt_routes=own.astype(jnp.int16))


def _check_rows(rows: int, prompt_rows: int, sampling: Sampling, columns: int) -> None:
    if rows % prompt_rows:
        raise ValueError(f"keys has {rows} rows; their number must be a multiple of the {prompt_rows} prompts")
    if sampling.temperature.shape != (rows,):
        raise ValueError(f"sampling is made for {sampling.temperature.shape} rows; make it for the {rows} rows of keys")
    if sampling.forced is not None and sampling.forced.shape != (rows, columns):
        raise ValueError(f"sampling.forced has shape {sampling.forced.shape}; it must be [{rows}, {columns}], -1 where free")
