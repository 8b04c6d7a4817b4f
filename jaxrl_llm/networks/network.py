"""`Network`: a language model as functions of its parameters, whatever it was written with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.decoder import Decoder, each_layer, extend, init_tails, read_contexts, step
from jaxrl_llm.networks.families import check_family
from jaxrl_llm.networks.matrices import check_matrices

Params = Any


@dataclasses.dataclass(frozen=True)
class Network:
    """Functions of parameters; compared and hashed without the parameters.

    A network without parameters (`without_params`) is a static argument of `jax.jit`; one with them is a convenient pair.
    Shapes: B rows of T tokens, vocabulary V, width D. `positions` int [B, T] default to 0, 1, 2...; `segments` int
    [B, T] to 1: 0 is padding, and a token sees the tokens of its own segment up to itself. `reach` int [B, T] in their place
    says it of trees, see `attention`.
    """

    apply: Callable[..., Any]  # `(params, tokens, positions=None, segments=None, reach=None) -> logits` [B, T, V] float32
    config: Any = None  # what the network was made from, where it was made here
    init: Callable[..., Params] | None = None  # `(key) -> params`, a nested dict of arrays
    hidden: Callable[..., Any] | None = None  # as `apply`, but gives the last hidden states [B, T, D]
    unembed: Callable[..., Any] | None = None  # `(params, hidden) -> logits`: [..., D] -> [..., V] float32
    # `(params) -> matrix` [V, D], with `logits == softcapped(hidden @ matrix.T)` accumulated in float32
    unembedding: Callable[..., Any] | None = None
    logit_softcap: float | None = None  # cap of the logits, see `attention.softcapped`; None for none
    # `(params, tokens, lengths) -> (contexts, experts)`: what decoding has to know of C right-padded contexts [C, T], in arrays
    # of the network's own, and the experts of their tokens [C, T, layers, k] or None
    read: Callable[..., Any] | None = None
    # `(params, layers, tokens, lengths, contexts, before) -> (contexts, experts)`: reads up to n tokens [C, n] more behind the
    # first `before` [C] of contexts that have room for them
    extend: Callable[..., Any] | None = None
    # `(params, layers, token, contexts, tails, sight) -> (hidden, tails, experts)`: reads one token a slot, int [S], that sees
    # what `past.Sight` says, and gives its hidden state [S, D] and experts [S, layers, k] or None
    step: Callable[..., Any] | None = None
    # `(params) -> layers`: the parameters as decoding reads them, laid out once for many steps
    each_layer: Callable[..., Any] | None = None
    # `(slots, width) -> tails`: what it has to know of the tokens of S slots, W columns, in arrays of its own
    init_tails: Callable[..., Any] | None = None
    # `(params, tokens, positions=None, segments=None, routes=None, reach=None) -> (hidden, routing)`: as `hidden`, with the
    # `experts.Routing` of all tokens; `routes` int32 [layers, B, T, k] are experts to use in place of the router's, -1 where it
    # is free. None without experts
    routed: Callable[..., Any] | None = None
    # `(params, hidden) -> values`: [B, T, D] -> [B, T] float32, or [B, T, outputs] where the value head has several plain ones;
    # None without a value head
    value: Callable[..., Any] | None = None
    # `(params, hidden) -> outputs` [B, T, n] of the value head, such as the logits of bins; None without
    value_outputs: Callable[..., Any] | None = None
    reads_forests: bool = False  # whether `apply`, `hidden` and `routed` take `reach` in place of segments
    params: Params = dataclasses.field(default=None, compare=False, repr=False)  # the parameters, or None

    def with_params(self, params: Params) -> "Network":
        return dataclasses.replace(self, params=params)

    def without_params(self) -> "Network":
        """The same functions without parameters: a static argument of `jax.jit` that keeps no arrays alive."""
        return dataclasses.replace(self, params=None)


def from_apply(apply_fn: Callable[..., Any], params: Params = None) -> Network:
    """Network of any function `(params, tokens, positions=None, segments=None) -> logits` [B, T, V].

    It has no `hidden`, so that scoring builds its logits whole, and no cache, so that sampling runs the whole text again
    for every token: slow, and only for causal functions. It must honour `segments` where rows are packed.
    """
    return Network(apply=apply_fn, params=params)


@functools.cache
def decoder(config: DecoderConfig) -> Network:
    """Decoder transformer without parameters; equal configurations give the same network.

    Raises ValueError: the configuration does not fit the family that it names, or an adapter or a quantisation fits no matrix.
    """
    check_family(config)
    check_matrices(config)
    module = Decoder(config)

    def bound(method: str):
        return lambda params, *args, **kwargs: module.apply({"params": params}, *args, method=method, **kwargs)

    hidden, unembed = bound("hidden"), bound("unembed")

    def apply(params, tokens, positions=None, segments=None, reach=None):
        return unembed(params, hidden(params, tokens, positions, segments, reach))

    return Network(
        apply=apply, config=config, init=jax.jit(lambda key: _each_box(lambda box: box.value, _boxed_params(config, key))),
        hidden=hidden, unembed=unembed, unembedding=bound("unembedding"), logit_softcap=config.logit_softcap,
        read=functools.partial(read_contexts, config), step=functools.partial(step, config),
        extend=functools.partial(extend, config), each_layer=functools.partial(each_layer, config),
        init_tails=functools.partial(init_tails, config),
        routed=bound("routed") if config.experts else None, value=bound("value") if config.value_head else None,
        value_outputs=bound("value_outputs") if config.value_head else None, reads_forests=True,
    )  # fmt: skip


_ROUNDED = ("kernel", "embedding", "head", "per_layer_embedding", "per_layer_projection")


def as_computed(network: Network, params: Params) -> Params:
    """The parameters with each matrix in the dtype of the computation, to which the network rounds it before it multiplies.

    Those that it reads in float32, such as scales and routers, stay, and so do all of an adapted network, whose matrices are
    added in float32 first.
    """
    config = network.config
    if not isinstance(config, DecoderConfig) or config.adapter is not None:
        return params
    rounded = {jax.tree_util.DictKey(name) for name in _ROUNDED}

    def as_read(path, leaf):
        return leaf.astype(config.dtype) if path[-1] in rounded else leaf

    return jax.tree_util.tree_map_with_path(as_read, params)


def _boxed_params(config: DecoderConfig, key: jax.Array) -> Params:
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32), method="everything")["params"]


def _each_box(function: Callable[[Any], Any], boxed: Params) -> Params:
    """Applies `function` to the boxes in which Linen keeps a parameter with the names of its axes."""
    return jax.tree.map(function, boxed, is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned))


def logical_axes(network: Network) -> Params:
    """Names of the logical axes of each parameter: a tree like `params`, with tuples of names as leaves.

    Raises ValueError: the network was not made by `decoder`, so that nothing is known of its parameters.
    """
    if not isinstance(network.config, DecoderConfig):
        raise ValueError(f"network.config={network.config!r} has no logical axes; give partition rules by parameter path")
    boxed = jax.eval_shape(lambda: _boxed_params(network.config, jax.random.key(0)))
    return _each_box(lambda box: box.names, boxed)
