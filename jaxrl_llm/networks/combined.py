"""Two networks as one: their logits are mixed token by token, in decoding and in scoring alike."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.networks.network import Network


@functools.cache
def combined(first: Network, second: Network, mix: Composable) -> Network:
    """The network whose logits are `mix(logits of the first, logits of the second)`; equal arguments give the same network.

    Its parameters are {"first": ..., "second": ...}. What is made of it samples with a cache for each of both, and scores by
    whole logits, with the same mixture: the sampler's log-probabilities are the learner's. Value heads and routers are left
    out.

    Args:
      first: without parameters, such as `decoder` makes; its `config` is that of the result.
      second: the same, over the same vocabulary.
      mix: `(logits, second_logits) -> logits`, float32 [..., V], such as `geometric(share=0.1)`.

    Raises ValueError: a network with parameters or without a cache, or another vocabulary.
    """
    for name, network in (("first", first), ("second", second)):
        if network.params is not None or network.step is None:
            raise ValueError(f"{name} has {'parameters' if network.params is not None else 'no cache'}; give a decoder without")
    sizes = [network.config.vocab_size for network in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the networks have {sizes[0]} and {sizes[1]} tokens; a mixture needs one vocabulary")
    both = {"first": first, "second": second}

    def each(name: str, params, *arguments):
        return tuple(getattr(network, name)(params[who], *arguments) for who, network in both.items())

    def apply(params, tokens, positions=None, segments=None, reach=None):
        arguments = (tokens, positions, segments) if reach is None else (tokens, positions, segments, reach)
        return mix(*each("apply", params, *arguments))

    def read(params, tokens, lengths):
        (mine, experts), (theirs, _) = each("read", params, tokens, lengths)
        return (mine, theirs), experts

    def step(params, layers, token, contexts, tails, sight):
        found = [
            network.step(params[who], layers[place], token, contexts[place], tails[place], sight)
            for place, (who, network) in enumerate(both.items())
        ]
        (hidden, tail, experts), (other, other_tail, _) = found
        return (hidden, other), (tail, other_tail), experts

    return Network(
        apply=apply,
        config=first.config,
        unembed=lambda params, hidden: mix(
            *(n.unembed(params[who], h) for (who, n), h in zip(both.items(), hidden, strict=True))
        ),
        read=read,
        step=step,
        each_layer=lambda params: each("each_layer", params),
        init_tails=lambda slots, width: (first.init_tails(slots, width), second.init_tails(slots, width)),
        reads_forests=first.reads_forests and second.reads_forests,
    )


@composable
def geometric(logits, second, *, share: float = 0.1):
    """(1 - `share`) log p + `share` log q: the geometric mixture of both, up to its normaliser.

    Source: IPO-MD, https://arxiv.org/abs/2403.08635; Nash-MD, https://arxiv.org/abs/2312.00886
    """
    return (1.0 - share) * jax.nn.log_softmax(logits) + share * jax.nn.log_softmax(second)


@composable
def guided_by(logits, second, *, weight: float = 1.5):
    """second + `weight` (logits - second): beyond the first, away from the second, for weights above 1.

    Source: classifier-free guidance as policy improvement, https://arxiv.org/abs/2505.23458
    """
    return second + weight * (logits - second)


@composable
def residual(logits, second, *, scale: float = 1.0):
    """second + `scale` logits: the first is what is learned on top of the second.

    Source: residual policies, https://arxiv.org/abs/2407.16677; on logits as in proxy tuning, https://arxiv.org/abs/2401.08565
    """
    return second + scale * logits


@composable
def within_top(logits, second, *, mass: float = 0.9):
    """The first where the token is among the likeliest of the second, up to and with the one that completes `mass`; none else.

    Source: NLPO, https://arxiv.org/abs/2210.01241
    """
    require(0 < mass <= 1, "mass", mass, "above 0 and at most 1")
    order = jnp.argsort(-second, axis=-1)
    ranked = jnp.take_along_axis(jax.nn.softmax(second), order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    kept = jnp.put_along_axis(jnp.zeros(second.shape, bool), order, before < mass, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


@composable
def allowed(logits, second):
    """The first where the second is finite: the second is a mask, such as that of an `automaton`."""
    return jnp.where(jnp.isfinite(second), logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class AutomatonSize:
    """What stands for the configuration of an automaton."""

    vocab_size: int  # tokens


def automaton(vocab_size: int) -> Network:
    """A finite automaton over tokens as a network: its logits are 0 for tokens that may come next and -inf for others.

    Its parameters are {"next": int32 [states, V], the state behind each token, -1 where it may not come}. It begins in state
    0 in front of the first token of a sequence, the prompt's, which has to be allowed by the table too; see `behind` for one
    that begins later. A token that may not come leads to state 0.
    """
    return _automaton(vocab_size)


@functools.cache
def _automaton(vocab_size: int) -> Network:
    def following(params, state, token):
        return jnp.maximum(params["next"][state, token], 0)

    def unembed(params, state):
        return jnp.where(params["next"][state] >= 0, 0.0, -jnp.inf)

    def apply(params, tokens, positions=None, segments=None):
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

        def advance(state, read):
            token, position = read
            state = following(params, jnp.where(position == 0, 0, state), token)
            return state, state

        _, states = jax.lax.scan(advance, jnp.zeros(tokens.shape[0], jnp.int32), (tokens.T, positions.T))
        return unembed(params, states.T)

    def read(params, tokens, lengths):
        def advance(state, now):
            token, column = now
            return jnp.where(column < lengths, following(params, state, token), state), None

        columns = jnp.arange(tokens.shape[1])
        state, _ = jax.lax.scan(advance, jnp.zeros(tokens.shape[0], jnp.int32), (tokens.T, columns))
        return state, None

    def step(params, layers, token, contexts, tails, sight):
        rows = jnp.arange(token.shape[0])
        # A sample goes on from the state behind its context, and after its first token from that in the column before.
        of_context = contexts[jnp.minimum(sight.cell // sight.places, contexts.shape[0] - 1)]
        before = tails[rows, jnp.maximum(sight.column - 1, 0)]
        state = following(params, jnp.where(sight.column == sight.start, of_context, before), token)
        return state, jax.lax.dynamic_update_slice_in_dim(tails, state[:, None], sight.column, 1), None

    return Network(
        apply=apply, config=AutomatonSize(vocab_size), unembed=unembed, read=read, step=step, each_layer=lambda params: (),
        init_tails=lambda slots, width: jnp.zeros((slots, width), jnp.int32),
    )  # fmt: skip


def behind(table, token: int):
    """The table of an automaton that allows everything up to and with `token`, and then runs `table` from its state 0.

    Args:
      table: int32 [states, V], see `automaton`.
      token: such as the last one of an assistant's header.

    Returns: int32 [states + 1, V], of which state 0 waits.
    """
    waiting = jnp.zeros((1, table.shape[1]), jnp.int32).at[0, token].set(1)
    return jnp.concatenate([waiting, jnp.where(table >= 0, table + 1, -1)])
