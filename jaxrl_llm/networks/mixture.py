"""The MLPs of experts as a function of their leaves: tokens are sorted by expert, on a mesh each device its own, none dropped.

Without a mesh, or where experts are whole on each device, a device sorts its tokens and every expert multiplies a run of
them. Where devices share out the experts, each gets the tokens of all of these devices, picks those that its experts were
chosen for, and what experts give is summed where the token came from (an all-gather and a reduce-scatter over the axis).
That is exact for any choice, works on every platform and needs room for the tokens of these devices, however unevenly they
choose. Of N devices each receives N - 1 times its own tokens, no matter how many experts a token has; sending a token to each
of its k experts, by an all-to-all, would take k (N - 1) / N times, which is more for N < k.

How many rows a device's experts get is known when the program runs. So they are taken in blocks, as many as there are: neither
work nor room grows with what might come.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl_llm.networks.attention import uses_kernel
from jaxrl_llm.networks.axes import current_spec, manual_axes, manual_axes_of, partition_spec
from jaxrl_llm.networks.codes import inputs_of_scale
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.matrices import Leaves, product
from jaxrl_llm.networks.modules import gated

Array = jax.Array
LEAST_ROWS = 512  # of a block: fewer are not worth a step of their own
LANES = 128  # numbers in a row of a TPU's registers
AXES = {"gate": ("expert", "embed", "mlp"), "up": ("expert", "embed", "mlp"), "down": ("expert", "mlp", "embed")}


def mixture(config: DecoderConfig, leaves: dict[str, Leaves], x: Array, experts: Array, weights: Array) -> Array:
    """Sum over a token's experts of weight * MLP(token), like `x`.

    Args:
      config: of the network.
      leaves: of the matrices "gate", "up" and "down" of all experts.
      x: [B, T, D].
      experts: int [B, T, k], those of each token.
      weights: float32 [B, T, k].
    """
    rows = current_spec(("batch", "length", None), x.shape)
    if rows is None:
        return _on_device(config, Split(), leaves, x, experts, weights)
    split = _split(config, leaves, rows)
    run = jax.shard_map(
        functools.partial(_on_device, config, split),
        in_specs=(split.leaves, rows, rows, rows),
        out_specs=rows,
        axis_names=set(jax.sharding.get_abstract_mesh().axis_names) - set(manual_axes()),
        check_vma=False,
    )
    return run(leaves, x, experts, weights)


class Split(NamedTuple):
    """Mesh axes that split a mixture; none without a mesh.

    Attributes:
      tokens: of rows and columns.
      experts: of the leading axis of the matrices.
      width: of the MLPs' inner width.
      leaves: `PartitionSpec` of each leaf, a tree like them.
    """

    tokens: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    leaves: dict[str, dict[str, PartitionSpec]] = {}  # noqa: RUF012

    def whole(self, name: str, leaves: Leaves, dtype) -> Leaves:
        """Leaves of a matrix with the whole width of the residual stream, of which a device keeps a part."""

        def gathered(leaf: str, value: Array) -> Array:
            axis = _names(name, leaf).index("embed") if "embed" in _names(name, leaf) else None
            split = None if axis is None or not self.leaves else self.leaves[name][leaf][axis]
            if split is None:
                return value
            value = value.astype(dtype) if leaf == "kernel" else value  # as it is multiplied by: often half the bytes
            return jax.lax.all_gather(value, split, axis=axis, tiled=True)

        return {leaf: gathered(leaf, value) for leaf, value in leaves.items()}

    def collected(self, x: Array) -> Array:
        """Rows [n, ...] of all devices that share out what is done with them."""
        axes = tuple(axis for axis in self.experts + self.width if axis in self.tokens)
        return jax.lax.all_gather(x, axes, tiled=True) if axes else x

    def summed(self, x: Array) -> Array:
        """Sums of the parts of these devices, each for its own rows."""
        apart = tuple(axis for axis in self.experts + self.width if axis in self.tokens)
        alike = tuple(axis for axis in self.experts + self.width if axis not in self.tokens)
        x = jax.lax.psum_scatter(x, apart, tiled=True) if apart else x
        return jax.lax.psum(x, alike) if alike else x


def _names(matrix: str, leaf: str) -> tuple[str, ...]:
    """Names of the axes of a leaf."""
    expert, inputs, outputs = AXES[matrix]
    others = {"lora_a": (expert, inputs, "rank"), "lora_b": (expert, "rank", outputs), "bias": (expert, outputs)}
    return others.get(leaf, AXES[matrix])


def _split(config: DecoderConfig, leaves: dict[str, Leaves], rows: PartitionSpec) -> Split:
    """What the rules say; the width is split where no block of inputs that share a scale is cut."""
    e, kind = config.experts, config.quantization and config.quantization.kind
    units = e.width // inputs_of_scale(kind, e.width) if kind in ("int4", "nf4") else e.width
    spec = current_spec(AXES["gate"], (e.count, config.hidden_size, units))
    named = dict(zip(AXES["gate"], map(_tuple, spec), strict=True))
    sizes = jax.sharding.get_abstract_mesh().shape

    def axes(name: str, size: int) -> tuple[str, ...] | None:
        found = named.get(name, ())
        parts = 1
        for axis in found:
            parts *= sizes[axis]
        return found if found and size % parts == 0 else None

    def spec_of(matrix: str, leaf: str, value: Array) -> PartitionSpec:
        return PartitionSpec(*map(axes, _names(matrix, leaf), value.shape))

    specs = {matrix: {leaf: spec_of(matrix, leaf, value) for leaf, value in own.items()} for matrix, own in leaves.items()}
    tokens = sum(map(_tuple, rows), ()) + manual_axes()
    return Split(tokens, named["expert"] + manual_axes_of("expert", e.count), named["mlp"], specs)


def parts_of_experts(params):
    """`PartitionSpec` of each leaf, of layers apart or stacked: how a `shard_map` over rows leaves experts shared out."""
    mesh = jax.sharding.get_abstract_mesh()

    def spec(path, leaf):
        names = [getattr(key, "key", None) for key in path]
        if names[-3:-2] != ["experts"] or names[-2] not in AXES:
            return PartitionSpec()
        axes = ("layers", "expert") if any(str(name).endswith("layers") for name in names) else ("expert",)
        return partition_spec(axes, leaf.shape[: len(axes)], mesh)

    return jax.tree_util.tree_map_with_path(spec, params)


def _tuple(axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _on_device(config: DecoderConfig, split: Split, leaves, x: Array, experts: Array, weights: Array) -> Array:
    """The mixture of a device's tokens."""
    run = functools.partial(_by_all, config, split)
    if split.experts:
        # Gathered tokens and matrices are gathered again for the backward pass, not kept for it.
        run = jax.checkpoint(functools.partial(_by_own, config, split), prevent_cse=False)
    mixed = run(leaves, *(values.reshape(-1, values.shape[-1]) for values in (x, experts, weights)))
    return split.summed(mixed.astype(x.dtype)).reshape(x.shape)


def _by_all(config: DecoderConfig, split: Split, leaves, tokens: Array, experts: Array, weights: Array) -> Array:
    """What all experts give, float32 [n, D]; each token has as many rows as experts."""
    tokens, experts, weights = map(split.collected, (tokens, experts, weights))
    count, chosen = config.experts.count, experts.reshape(-1)
    order = jnp.argsort(chosen, stable=True)
    rows = _permuted(jnp.repeat(tokens, experts.shape[-1], axis=0), order)
    outputs = _mlp(config, leaves, rows, jnp.bincount(chosen, length=count).astype(jnp.int32), split)
    outputs = _permuted(outputs, jnp.argsort(order))
    return jnp.einsum("nkd,nk->nd", outputs.reshape(*experts.shape, -1), weights, preferred_element_type=jnp.float32)


def _permuted(rows: Array, order: Array) -> Array:
    # Each row once: the gradient is a permutation too, with no sums whose order could differ from run to run.
    return rows.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _mlp(config: DecoderConfig, leaves, rows: Array, sizes: Array, split: Split = Split()) -> Array:  # noqa: B008
    """MLPs [n, D] of rows that are sorted by expert, of each of which there are `sizes` [E]."""

    def times(name: str, x: Array) -> Array:
        def run(x, own):
            multiply = grouped if uses_kernel(config.attention) else jax.lax.ragged_dot
            matmul = functools.partial(multiply, group_sizes=sizes)
            y = product(config, split.whole(name, own, config.dtype), x, leading=1, matmul=matmul)
            if "bias" not in own:
                return y
            # A product in place of rows taken by number, whose gradient would be sums in any order.
            expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(x)), side="right")
            return y + jax.nn.one_hot(expert, len(sizes), dtype=y.dtype) @ own["bias"].astype(y.dtype)

        # As in `product`: nothing that is made of a matrix is kept for the backward pass.
        return (jax.checkpoint(run, prevent_cse=False) if split.leaves else run)(x, leaves[name])

    return times("down", gated(config, times("gate", rows), times("up", rows)))


def grouped(rows: Array, kernels: Array, group_sizes: Array, *, interpret: bool = False) -> Array:
    """As `jax.lax.ragged_dot`, by a kernel for TPU: there XLA may multiply each row by the matrices of all experts.

    Args:
      rows: [n, D], those of the first expert first.
      kernels: [E, D, F].
      group_sizes: int32 [E], rows of each expert.
      interpret: whether it runs without a TPU, by the interpreter of Pallas.

    Source: https://arxiv.org/abs/2211.15841
    """
    if kernels.shape[1] % LANES or kernels.shape[2] % LANES:
        return jax.lax.ragged_dot(rows, kernels, group_sizes)
    from jax.experimental.pallas.ops.tpu.megablox import gmm

    real = (jnp.arange(len(rows)) < group_sizes.sum())[:, None]
    padded = jnp.pad(jnp.where(real, rows, 0), ((0, -len(rows) % LANES), (0, 0)))
    found = gmm(padded, kernels, group_sizes, rows.dtype, _tiles, interpret=interpret)
    return jnp.where(real, found[: len(rows)], 0)  # it leaves rows of nobody as they were in memory


def _tiles(*sizes: int) -> tuple[int, ...]:
    """Of rows, inputs and outputs: the largest that divides them, of those that fit into the memory of a core together."""
    return tuple(next(tile for tile in (512, 256, LANES) if size % tile == 0) for size in sizes)


def _by_own(config: DecoderConfig, split: Split, leaves, tokens: Array, experts: Array, weights: Array) -> Array:
    """What a device's experts give to the tokens of all that share out the experts, float32 [m, D]."""
    tokens, experts, weights = map(split.collected, (tokens, experts, weights))
    leaves = {name: split.whole(name, own, config.dtype) for name, own in leaves.items()}
    count = config.experts.count // jax.lax.axis_size(split.experts)
    own = experts.reshape(-1) - jax.lax.axis_index(split.experts) * count
    own = jnp.where((own >= 0) & (own < count), own, count)
    # Half of what there would be if all experts were chosen as often: the last block is half empty on average.
    size = min(own.size, max(LEAST_ROWS, own.size * count // config.experts.count // 2))
    places = jnp.pad(jnp.argsort(own, stable=True), (0, -own.size % size))
    ends = jnp.cumsum(jnp.bincount(own, length=count + 1)[:count]).astype(jnp.int32)
    return _in_blocks(config, size, leaves, tokens, weights, Sorted(places, ends))


class Sorted(NamedTuple):
    """Choices of tokens, those of the first expert first."""

    places: Array  # int32 [n], of each its number in `weights` [m, k]
    ends: Array  # int32 [E], behind the last one of each expert; what stands in `places` beyond is nobody's

    def block(self, number: Array, size: int) -> tuple[Array, Array, Array]:
        """Places [size] of a block, which of them are somebody's, and how many are each expert's [E]."""
        start = number * size
        places = jax.lax.dynamic_slice_in_dim(self.places, start, size)
        return places, start + jnp.arange(size) < self.ends[-1], jnp.diff(jnp.clip(self.ends - start, 0, size), prepend=0)

    def blocks(self, size: int) -> Array:
        """Number of blocks that hold something."""
        return -(-self.ends[-1] // size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_blocks(config: DecoderConfig, size: int, leaves, tokens: Array, weights: Array, chosen: Sorted) -> Array:
    """Sum over choices of weight * MLP(token), float32 [m, D], `size` choices at a time."""

    def add(number, mixed):
        places, taken, sizes = chosen.block(number, size)
        token, share = places // weights.shape[1], weights.reshape(-1)[places]
        return mixed.at[token].add(_weighted(config, leaves, tokens[token], share, taken, sizes))

    return jax.lax.fori_loop(0, chosen.blocks(size), add, jnp.zeros(tokens.shape, jnp.float32))


def _weighted(config: DecoderConfig, leaves, rows: Array, share: Array, taken: Array, sizes: Array) -> Array:
    return jnp.where(taken[:, None], share[:, None] * _mlp(config, leaves, rows, sizes).astype(jnp.float32), 0.0)


def _forward_rule(config, size, leaves, tokens, weights, chosen):
    return _in_blocks(config, size, leaves, tokens, weights, chosen), (leaves, tokens, weights, chosen)


def _backward_rule(config, size, residuals, cotangent):
    leaves, tokens, weights, chosen = residuals
    trained = {name: {leaf: x for leaf, x in own.items() if leaf != "codes"} for name, own in leaves.items()}

    def add(number, sums):
        of_leaves, of_tokens, of_weights = sums
        places, taken, sizes = chosen.block(number, size)
        token = places // weights.shape[1]

        def value(trained, rows, share):
            joined = {name: {**own, **trained[name]} for name, own in leaves.items()}
            return _weighted(config, joined, rows, share, taken, sizes)

        _, pull = jax.vjp(value, trained, tokens[token], weights.reshape(-1)[places])
        more, of_rows, of_share = pull(cotangent[token])
        of_rows = jnp.where(taken[:, None], of_rows.astype(jnp.float32), 0.0)
        of_leaves = jax.tree.map(lambda x, y: x + y.astype(x.dtype), of_leaves, more)
        return of_leaves, of_tokens.at[token].add(of_rows), of_weights.at[places].add(jnp.where(taken, of_share, 0.0))

    wide = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), trained)
    start = (wide, jnp.zeros(tokens.shape, jnp.float32), jnp.zeros(weights.size, weights.dtype))
    of_leaves, of_tokens, of_weights = jax.lax.fori_loop(0, chosen.blocks(size), add, start)
    of_leaves = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), of_leaves, trained)
    of_leaves = {name: {leaf: of_leaves[name].get(leaf) for leaf in own} for name, own in leaves.items()}
    return of_leaves, of_tokens.astype(tokens.dtype), of_weights.reshape(weights.shape), None


_in_blocks.defvjp(_forward_rule, _backward_rule)
