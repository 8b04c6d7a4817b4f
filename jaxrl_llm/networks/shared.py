"""What layers are told: what all of one call share, and what is each one's own."""

from typing import Any, NamedTuple

import flax.struct
import jax

from jaxrl_llm.networks import rotary
from jaxrl_llm.networks.config import DecoderConfig, LayerKind, LayerShape
from jaxrl_llm.networks.past import Cells, LayerPast, Sight
from jaxrl_llm.networks.recurrent import Chunks, State

Array = jax.Array


@flax.struct.dataclass
class Shared:
    """What all layers of one call share: who sees whom and angles of the rotary embedding, for each kind of layer.

    Layers that are to `keep` them give their keys and values [B, T, K, H]. A step of decoding has `sight` in place of `reach`
    and what each kind of layer makes of it: tokens of the window, and the blocks of long rows. Where several tokens are read
    behind contexts, `reach` is 1 for those that count.
    """

    angles: tuple[tuple[Array, Array], ...]
    gains: tuple[Array, ...]  # of queries, see `rotary.query_gain`
    reach: Array | None = None
    positions: Array | None = None
    windows: tuple[Array, ...] = ()
    blocks: tuple[Any, ...] = ()
    chunks: Chunks | None = None  # how tokens go on from one another, for layers with a state
    sight: Sight | None = None
    keep: bool = flax.struct.field(pytree_node=False, default=False)


class Numbered(NamedTuple):
    """What is told to each layer: the number of its kind among those of its shape, experts that it must use [B, T, k], and
    what lies before a step; where several tokens a row are read, that is `Cells` with room for them, or a state."""

    kind: Array | int
    forced: Array | None = None
    past: LayerPast | Cells | State | None = None
    embedded: Array | None = None  # its own embedding of the tokens [B, T, P]
    lent: tuple[Array, Array] | None = None  # keys and values [B, T, K, H] of another layer


def gains_of(config: DecoderConfig, positions: Array) -> tuple[Array, ...]:
    """What queries of each kind of layer are multiplied by."""
    return tuple(rotary.query_gain(kind, positions) for kind in config.kinds)


def kinds_of(config: DecoderConfig, shape: LayerShape) -> tuple[LayerKind, ...]:
    """The kinds of layers of this shape."""
    return tuple(kind for kind in config.kinds if kind.shape == shape)


def of_kind(config: DecoderConfig, shape: LayerShape, values: tuple, kind: Array | int):
    """The one of `values` of all kinds that belongs to a layer of this shape and the kind of this number among its kinds."""
    values = tuple(value for value, own in zip(values, config.kinds, strict=True) if own.shape == shape)
    if len(values) == 1:
        return values[0]
    if isinstance(kind, int):
        return values[kind]
    return jax.tree.map(lambda *leaves: jax.lax.select_n(kind, *leaves), *values)
