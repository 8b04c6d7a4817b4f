"""The matrices of a decoder, which may be kept as codes and may have adapters.

The leaves of a matrix are a dict: "kernel", or "codes" and "scales" where it is quantised; with an adapter "lora_a",
"lora_b" and, for DoRA, "magnitude" too. Kernels may have `leading` axes (layers, experts), then come `inputs` axes that
are contracted, and then those of the outputs; A has the former and a rank, B a rank and the latter, and the magnitude has
one number for each output. The embedding table and the output head are leaves at the top of the parameters, and their
adapters lie beside them under "embedding_adapter" and "head_adapter".
"""

import functools
import math
import re
from typing import NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.codes import BLOCK, decode
from jaxrl_llm.networks.config import AdapterConfig, DecoderConfig, LayerShape

Array = jax.Array
Leaves = dict[str, Array]
FEW_ROWS = 64  # up to which the rows of a product stand on the right of the matrix
ADAPTER_LEAVES = ("lora_a", "lora_b", "magnitude")


class Matrix(NamedTuple):
    """A matrix of the network, stacked over the layers that have it."""

    name: str  # what patterns are searched in, such as "attention.query"
    path: tuple[str, ...]  # of the dict that has its adapter's leaves; in layers its kernel is there too
    leading: int  # axes of the kernel that count layers and experts
    inputs: int  # axes of the kernel that are contracted
    fan_in: int  # product of their sizes

    @property
    def in_layers(self) -> bool:
        """Whether it is a matrix of layers, not the embedding table or the output head."""
        return self.leading > 0


def matrices(config: DecoderConfig) -> list[Matrix]:
    """Every matrix that may be adapted; those of layers may be quantised too. The router is none of them."""
    e, width, found = config.experts, config.hidden_size, []
    for shape in config.stacks:
        mixer = "delta" if shape.mixer == "delta" else "attention"
        sizes = {f"{mixer}.{name}": own for name, own in _mixer(config, shape).items()}
        if shape.width is not None:
            sizes |= _mlp("mlp", width, shape.width)
            if not config.gated_mlp:
                sizes.pop("mlp.gate")
        if shape.sparse and e.shared_width:
            sizes |= _mlp("experts.shared", width, e.shared_width)
        if config.per_layer_width:
            sizes |= {"per_layer_gate": (1, width), "per_layer_output": (1, config.per_layer_width)}
        found += _of_layers(shape.stack, sizes)
        if shape.sparse:
            found += _of_layers(shape.stack, _mlp("experts", width, e.width), leading=2)
    found.append(Matrix("embedding", ("embedding_adapter",), 0, 1, config.vocab_size))
    return found + ([Matrix("head", ("head_adapter",), 0, 1, width)] if config.language_head else [])


def _mixer(config: DecoderConfig, shape: LayerShape) -> dict[str, tuple[int, int]]:
    """Contracted axes and their size of each matrix that mixes tokens."""
    width, latent = config.hidden_size, config.latent
    if shape.mixer == "delta":
        inputs = ("query", "key", "value", "strength", "decay", "gate")
        return dict.fromkeys(inputs, (1, width)) | {"output": (2, config.delta.value_heads * config.delta.value_dim)}
    if shape.mixer == "attention":
        inputs = {"own": ("query", "key", "value"), "keys": ("query", "key"), "lent": ("query",)}[shape.values]
        return dict.fromkeys(inputs, (1, width)) | {"output": (2, config.num_heads * shape.head_dim)}
    sizes = {"query": (1, width)}
    if latent.query_rank is not None:
        sizes = {"query_down": (1, width), "query_up": (1, latent.query_rank)}
    sizes |= {"latent_down": (1, width), "latent_up": (1, latent.rank)}
    return sizes | {"output": (2, config.num_heads * latent.value_dim)}


def _mlp(name: str, width: int, inner: int) -> dict[str, tuple[int, int]]:
    return {f"{name}.gate": (1, width), f"{name}.up": (1, width), f"{name}.down": (1, inner)}


def _of_layers(stack: str, sizes: dict[str, tuple[int, int]], leading: int = 1) -> list[Matrix]:
    return [Matrix(name, (stack, *name.split(".")), leading, *size) for name, size in sizes.items()]


def is_adapted(config: DecoderConfig, name: str) -> bool:
    """Whether the matrix called `name` has an adapter."""
    return config.adapter is not None and re.search(config.adapter.pattern, name) is not None


def is_quantized(config: DecoderConfig, name: str) -> bool:
    """Whether the matrix of layers called `name` is kept as codes."""
    return config.quantization is not None and re.search(config.quantization.pattern, name) is not None


def check_matrices(config: DecoderConfig) -> None:
    """Raises ValueError where the adapter or the quantisation fits no matrix, or one that it cannot work on."""
    found = matrices(config)
    if config.adapter is not None:
        adapted = _matched("adapter", config.adapter.pattern, found)
        experts = [matrix.name for matrix in adapted if matrix.leading > 1]
        if experts and config.adapter.kind == "dora":
            raise ValueError(f"adapter.kind='dora' does not work on {experts[0]}; use 'rslora' there, or another pattern")
    if config.quantization is not None:
        kind, pattern = config.quantization.kind, config.quantization.pattern
        for matrix in _matched("quantization", pattern, [matrix for matrix in found if matrix.in_layers]):
            if kind != "int8" and matrix.fan_in % BLOCK:
                raise ValueError(
                    f"quantization.kind={kind!r} needs inputs in blocks of {BLOCK}; {matrix.name} has {matrix.fan_in}: use "
                    "'int8', or a pattern without it"
                )


def _matched(field: str, pattern: str, found: list[Matrix]) -> list[Matrix]:
    matched = [matrix for matrix in found if re.search(pattern, matrix.name)]
    if not matched:
        names = ", ".join(dict.fromkeys(matrix.name for matrix in found))
        raise ValueError(f"{field}.pattern={pattern!r} is found in none of the matrices; they are {names}")
    return matched


def flat(leaf: Array, inputs: int = 1, leading: int = 0) -> Array:
    """[*leading, *inputs, *outputs] -> [*leading, I, O]."""
    ends = leading + inputs
    return leaf.reshape(*leaf.shape[:leading], math.prod(leaf.shape[leading:ends]), math.prod(leaf.shape[ends:]))


def dense(config: DecoderConfig, leaves: Leaves, inputs: int = 1, leading: int = 0) -> Array:
    """The kernel without its adapter, [*leading, I, O]; float32 where it was quantised."""
    if "kernel" in leaves:
        return flat(leaves["kernel"], inputs, leading)
    codes, scales = (flat(leaves[name], 1, leading) for name in ("codes", "scales"))
    return decode(config.quantization.kind, codes, scales)


def change(adapter: AdapterConfig, leaves: Leaves, inputs: int = 1, leading: int = 0) -> Array:
    """scale A B, float32 [*leading, I, O]."""
    a, b = flat(leaves["lora_a"], inputs, leading), flat(leaves["lora_b"], 1, leading)
    return adapter.scale * jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32))


def lengths(matrix: Array) -> Array:
    """Euclidean length of each column of [..., I, O], float32 [..., O]."""
    return jnp.sqrt(jnp.sum(jnp.square(matrix.astype(jnp.float32)), axis=-2))


def gains(adapter: AdapterConfig, leaves: Leaves, matrix: Array, inputs: int = 1) -> Array:
    """What DoRA multiplies each output by, float32 [O]: its magnitude over the length of the column of W + scale A B.

    The length counts as a constant in gradients, as section 4.3 of https://arxiv.org/abs/2402.09353 has it.
    """
    changed = matrix.astype(jnp.float32) + change(adapter, leaves, inputs)
    length = jax.lax.stop_gradient(lengths(changed))
    return leaves["magnitude"].reshape(-1) / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)


def times(rows: Array, matrix: Array, dtype=None) -> Array:
    """Rows [..., n, I] times a matrix [..., I, O], in `dtype`, by default theirs.

    On a CPU XLA packs what stands on the right anew for every product, and where a decoding step has few rows, packing the
    matrix costs more than multiplying by it. So there the rows stand on the right; barriers keep XLA from turning that round.
    """
    if rows.ndim > 2 or matrix.ndim > 2 or len(rows) > FEW_ROWS or rows.dtype != jnp.float32:
        return jnp.matmul(rows, matrix, preferred_element_type=dtype)
    return jax.lax.platform_dependent(rows, matrix, cpu=_matrix_first, default=jnp.matmul)


def _matrix_first(rows: Array, matrix: Array) -> Array:
    apart = jax.lax.optimization_barrier
    return apart(jnp.matmul(apart(matrix.T), apart(rows.T))).T


def product(config: DecoderConfig, leaves: Leaves, x: Array, inputs: int = 1, leading: int = 0, matmul=times) -> Array:
    """Rows [n, I] times the matrix with its adapter, [n, O], in the dtype of the computation.

    `matmul` multiplies rows with a matrix [*leading, I, O]. The backward pass decodes, casts and reshapes the kernel anew:
    otherwise the scan over layers would keep such a copy of every kernel for it.
    """

    def base(x, stored):
        return matmul(x, dense(config, stored, inputs, leading).astype(config.dtype))

    stored = {name: leaf for name, leaf in leaves.items() if name not in ADAPTER_LEAVES}
    y = jax.checkpoint(base, prevent_cse=False)(x, stored)
    if "lora_a" not in leaves:
        return y
    a, b = flat(leaves["lora_a"], inputs, leading), flat(leaves["lora_b"], 1, leading)
    y = y + config.adapter.scale * matmul(matmul(x, a.astype(config.dtype)), b.astype(config.dtype))
    if "magnitude" not in leaves:
        return y
    return y * gains(config.adapter, leaves, dense(config, stored, inputs), inputs).astype(config.dtype)


def merged(config: DecoderConfig, leaves: Leaves, inputs: int = 1, leading: int = 0) -> Array:
    """The matrix with its adapter, where it has one, float32 [*leading, I, O]."""
    matrix = dense(config, leaves, inputs, leading).astype(jnp.float32)
    if "lora_a" not in leaves:
        return matrix
    whole = matrix + change(config.adapter, leaves, inputs, leading)
    return whole if "magnitude" not in leaves else whole * gains(config.adapter, leaves, matrix, inputs)


def unmerged(config: DecoderConfig, leaves: Leaves, inputs: int = 1, leading: int = 0) -> Array:
    """The base, float32 [*leading, I, O], where the kernel has the change of "lora" or "rslora" in it."""
    matrix = dense(config, leaves, inputs, leading).astype(jnp.float32)
    return matrix - change(config.adapter, leaves, inputs, leading)


def base_lengths(config: DecoderConfig, leaves: Leaves, inputs: int = 1, leading: int = 0) -> Array:
    """Lengths of the columns of the matrix without its adapter, float32 [*leading, O]."""
    return lengths(dense(config, leaves, inputs, leading))


# ---- leaves in the parameters of a whole network


def kernel_path(matrix: Matrix) -> tuple[str, ...]:
    """Where the kernel of a matrix is in the parameters, unless it is quantised or tied."""
    return (*matrix.path, "kernel") if matrix.in_layers else (matrix.name,)


def leaves_of(params, matrix: Matrix) -> Leaves:
    """The leaves of a matrix, those of all layers together."""
    own = params
    for name in matrix.path:
        own = own.get(name, {})
    if matrix.name == "embedding":
        return {**own, "kernel": params["embedding"]}
    if matrix.name == "head":
        return {**own, "kernel": params.get("head", params["embedding"]).T}
    return {name: leaf for name, leaf in own.items() if name != "bias"}


def each_layer(function, config: DecoderConfig, matrix: Matrix, leaves: Leaves, dtype: str = "float32"):
    """`function(config, leaves, inputs, leading)` of a matrix, one layer after the other, so that little is wide at a time."""
    return _each_layer(function, config, matrix.inputs, matrix.leading, dtype, leaves)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _each_layer(function, config: DecoderConfig, inputs: int, leading: int, dtype: str, leaves: Leaves):
    if not leading:
        return function(config, leaves, inputs, 0).astype(dtype)
    return jax.lax.map(lambda own: function(config, own, inputs, leading - 1).astype(dtype), leaves)


def with_kernels(params, function, config: DecoderConfig, chosen: list[Matrix], shapes):
    """`params` in the structure of `shapes`: kernels of the chosen matrices by `function` of `each_layer`, others shared."""
    shapes, leaves = (flax.traverse_util.flatten_dict(tree) for tree in (shapes, params))
    for matrix in chosen:
        path = kernel_path(matrix)
        if path in shapes:
            made = each_layer(function, config, matrix, leaves_of(params, matrix), config.param_dtype)
            leaves[path] = (made.T if matrix.name == "head" else made).reshape(shapes[path].shape)
    return flax.traverse_util.unflatten_dict({path: leaves[path] for path in shapes})
