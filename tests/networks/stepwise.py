"""A decoder read token by token, as the sampler reads it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.networks.past import Sight


@functools.partial(jax.jit, static_argnums=0)
def _step(network, params, layers, token, contexts, tails, sight):
    hidden, tails, _ = network.step(params, layers, token, contexts, tails, sight)
    return network.unembed(params, hidden), tails


@functools.partial(jax.jit, static_argnums=0)
def _begin(network, params, tokens, lengths):
    return network.read(params, tokens, lengths)[0], network.each_layer(params)


def stepwise_logits(network, params, tokens, lengths, steps, *, greedy=False):
    """Logits [B, steps, V] behind token `lengths - 1` of each row and those after it, the text before it read at once.

    What is read is the text, or the best token of each step.
    """
    network, lengths, rows = network.without_params(), np.asarray(lengths, np.int32), np.arange(len(tokens))
    contexts, layers = _begin(network, params, tokens, lengths - 1)
    tails, found = network.init_tails(len(tokens), steps), []
    token = np.asarray(tokens)[rows, lengths - 1]
    for step in range(steps):
        sight = Sight(
            position=lengths - 1 + step,
            cell=rows.astype(np.int32),
            lengths=lengths - 1,
            start=np.zeros(len(rows), np.int32),
            column=jnp.int32(step),
            origin=lengths - 1,
            places=1,
        )
        logits, tails = _step(network, params, layers, token.astype(np.int32), contexts, tails, sight)
        found.append(np.asarray(logits))
        behind = np.minimum(lengths + step, tokens.shape[1] - 1)
        token = found[-1].argmax(-1) if greedy else np.asarray(tokens)[rows, behind]
    return np.stack(found, axis=1)
