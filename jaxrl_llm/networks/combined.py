"""Two networks as one: their logits are mixed token by token, in decoding and in scoring alike."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

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

    def extend(params, layers, tokens, lengths, contexts, before):
        (mine, experts), (theirs, _) = (
            network.extend(params[who], layers[place], tokens, lengths, contexts[place], before)
            for place, (who, network) in enumerate(both.items())
        )
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
        extend=extend,
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


@functools.cache
def tempered(network: Network, rule: Composable) -> Network:
    """The network whose logits are `rule(logits)`, in decoding and in scoring; it scores by whole logits, without values.

    Args:
      network: without parameters; those of the result are the same.
      rule: such as `by_entropy()`.
    """
    return dataclasses.replace(
        network,
        apply=lambda *arguments, **options: rule(network.apply(*arguments, **options)),
        unembed=lambda params, hidden: rule(network.unembed(params, hidden)),
        **dict.fromkeys(("hidden", "unembedding", "logit_softcap", "routed", "value", "value_outputs")),
    )


@composable
def by_entropy(logits, *, strength: float = 0.05, centre: float = 0.0, width: float = 1.0):
    """logits / (1 + `strength` clip((log H - `centre`) / `width`, -1, 1)), H the entropy (nats) of their distribution.

    Source: HAPO, https://arxiv.org/abs/2509.16591, where the centre is the 0.8-quantile of log H in the step before, and the
      width its largest distance from there
    """
    logp = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(logp)
    entropy = -jnp.where(probabilities > 0, probabilities * logp, 0.0).sum(-1, keepdims=True)
    # A certain token has a log-entropy of -inf; far below the centre all are alike.
    height = (jnp.log(jnp.maximum(entropy, 1e-30)) - centre) / width
    return logits / (1.0 + strength * jnp.clip(height, -1.0, 1.0))


@functools.cache
def of_first(network: Network) -> Network:
    """The network on parameters {"first": its own, ...}, such as a critic that is a copy of a combined policy's first."""

    def on_first(function):
        return function and (lambda params, *arguments, **options: function(params["first"], *arguments, **options))

    names = ("apply", "hidden", "unembed", "unembedding", "routed", "value", "value_outputs")
    functions = {name: on_first(getattr(network, name)) for name in names}
    own = network.init
    unlike = dict.fromkeys(("read", "extend", "step", "each_layer", "init_tails"))
    return dataclasses.replace(network, init=lambda key: {"first": own(key)}, **functions, **unlike)


@dataclasses.dataclass(frozen=True)
class AutomatonSize:
    """What stands for the configuration of an automaton."""

    vocab_size: int  # tokens


def automaton(vocab_size: int) -> Network:
    """A finite automaton over tokens as a network: its logits are 0 for tokens that may come next and -inf for others.

    Its parameters are {"next": int32 [states, V], the state s behind each token, or -1 - s where it may not come}. It begins
    in state 0 in front of the first token of a sequence, the prompt's, which has to be allowed by the table too; see `behind`
    for one that begins later.
    """
    return _automaton(vocab_size)


@functools.cache
def _automaton(vocab_size: int) -> Network:
    def following(params, state, token):
        found = params["next"][state, token]
        return jnp.where(found >= 0, found, -1 - found)

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
        return extend(params, (), tokens, lengths, jnp.zeros(tokens.shape[0], jnp.int32), None)

    def extend(params, layers, tokens, lengths, contexts, before):
        def advance(state, now):
            token, column = now
            return jnp.where(column < lengths, following(params, state, token), state), None

        columns = jnp.arange(tokens.shape[1])
        state, _ = jax.lax.scan(advance, contexts, (tokens.T, columns))
        return state, None

    def step(params, layers, token, contexts, tails, sight):
        rows = jnp.arange(token.shape[0])
        # A sample goes on from the state behind its context, and after its first token from that in the column before.
        of_context = contexts[jnp.minimum(sight.cell // sight.places, contexts.shape[0] - 1)]
        before = tails[rows, jnp.maximum(sight.column - 1, 0)]
        state = following(params, jnp.where(sight.column == sight.start, of_context, before), token)
        return state, jax.lax.dynamic_update_slice_in_dim(tails, state[:, None], sight.column, 1), None

    return Network(
        apply=apply, config=AutomatonSize(vocab_size), unembed=unembed, read=read, extend=extend, step=step,
        each_layer=lambda params: (), init_tails=lambda slots, width: jnp.zeros((slots, width), jnp.int32),
    )  # fmt: skip


def behind(table, *marker: int) -> jax.Array:
    """The table of an automaton that allows everything up to and with the tokens `marker`, and then runs `table`.

    Where a text leaves the table, by a token that may not come or behind an end in which all may follow, it waits again: an
    earlier turn of a dialogue, or a marker in the middle of a prompt, need not match.

    Args:
      table: int32 [states, V], see `automaton`; a state that everything leads back to is an end.
      marker: tokens, such as those of an assistant's header.

    Returns: int32 [m + states, V] for m tokens of the marker; state s < m waits, s tokens of it being there.
    """
    table, count = np.asarray(table), len(marker)
    waiting = np.zeros((count, table.shape[1]), np.int32)
    for state in range(count):
        for token in set(marker):
            seen = (*marker[:state], token)
            waiting[state, token] = max(n for n in range(len(seen) + 1) if seen[len(seen) - n :] == marker[:n])
    moved = np.where(table >= 0, table + count, -1 - waiting[0])
    ends = np.flatnonzero((table == np.arange(len(table))[:, None]).all(axis=1))
    moved[ends] = waiting[0]
    return jnp.asarray(np.concatenate([waiting, moved]), jnp.int32)


def walked(table, tokens: Iterable[int]) -> int:
    """The state of an automaton behind some tokens.

    Args:
      table: int [states, V], see `automaton`.
      tokens: ids.
    """
    state = 0
    for token in tokens:
        found = int(table[state, token])
        state = found if found >= 0 else -1 - found
    return state
