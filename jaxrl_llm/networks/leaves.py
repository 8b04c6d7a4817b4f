"""How modules make the leaves of their matrices; `matrices` says what the leaves are and what they compute."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.codes import codes_shape, encode
from jaxrl_llm.networks.config import DecoderConfig
from jaxrl_llm.networks.matrices import Leaves, dense, flat, is_adapted, is_quantized, lengths

Array = jax.Array


def named(initializer, *axes: str | None):
    """Initializer of a parameter whose axes have these names; "embed" is the residual stream's width in parameters only."""
    return nn.with_logical_partitioning(initializer, axes)


def make_leaves(
    module: nn.Module, initializer, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int = 1, leading: int = 0
) -> Leaves:
    """Leaves of the matrix that `module` is, called by its path within a layer.

    Args:
      module: has a `config` and is at work (in a compact method).
      initializer, shape: of the kernel.
      axes: names of its axes.
      inputs: axes that are contracted.
      leading: axes before them.
    """
    c, name = module.config, ".".join(module.path[1:])
    if is_quantized(c, name):
        leaves = _make_codes(module, initializer, shape, axes, inputs, leading)
    else:
        leaves = {"kernel": module.param("kernel", named(initializer, *axes), shape, c.param_dtype)}
    if not is_adapted(c, name):
        return leaves

    def length() -> Array:
        return lengths(dense(c, leaves, inputs, leading))

    return leaves | make_adapter(module, name, shape, axes, length, inputs, leading)


def _make_codes(module: nn.Module, initializer, shape, axes, inputs: int, leading: int) -> Leaves:
    kind = module.config.quantization.kind
    ends = leading + inputs
    rows = codes_shape(kind, math.prod(shape[leading:ends]))

    # Codes and scales come from one kernel; outside of `init` nothing is drawn.
    key = module.make_rng("params") if module.is_initializing() else jax.random.key(0)

    def make(index: int, name: str) -> Array:
        def start(_):
            encoded = encode(kind, flat(initializer(key, shape, jnp.float32), inputs, leading))
            return encoded[index].reshape(*shape[:leading], rows[index], *shape[ends:])

        return module.param(name, named(start, *axes[: leading + 1], *axes[ends:]))

    return {"codes": make(0, "codes"), "scales": make(1, "scales")}


def draw_change(name: str, fan_in: int) -> dict[str, Callable]:
    """Initializers of A and B over the matrix called `name`, as PEFT has them: one of the two is zero."""
    if name == "embedding":
        return {"lora_a": nn.initializers.zeros, "lora_b": nn.initializers.normal(1.0)}
    bound = fan_in**-0.5
    uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    return {"lora_a": uniform, "lora_b": nn.initializers.zeros}


def make_adapter(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    length: Callable[[], Array],
    inputs: int = 1,
    leading: int = 0,
) -> Leaves:
    """Leaves of an adapter that changes nothing yet, float32, over the kernel of a matrix.

    Args:
      module: has a `config` and is at work.
      name: of the matrix.
      shape: of the kernel.
      axes: names of its axes.
      length: gives the lengths of the kernel's columns.
      inputs: axes that are contracted.
      leading: axes before them.
    """
    adapter, ends = module.config.adapter, leading + inputs
    draw = draw_change(name, math.prod(shape[leading:ends]))
    shape_a, axes_a = (*shape[:ends], adapter.rank), (*axes[:ends], "rank")
    shape_b, axes_b = (*shape[:leading], adapter.rank, *shape[ends:]), (*axes[:leading], "rank", *axes[ends:])
    leaves = {
        "lora_a": module.param("lora_a", named(draw["lora_a"], *axes_a), shape_a, "float32"),
        "lora_b": module.param("lora_b", named(draw["lora_b"], *axes_b), shape_b, "float32"),
    }
    if adapter.kind != "dora":
        return leaves
    start = named(lambda key: length().reshape(shape[ends:]), *axes[ends:])
    return leaves | {"magnitude": module.param("magnitude", start)}


class VocabularyAdapter(nn.Module):
    """Leaves of the adapter of the embedding table [V, D], or of the head, whose matrix is [D, V]."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, table: Array) -> Leaves:
        name, sizes = self.name.removesuffix("_adapter"), {"vocab": self.config.vocab_size, "embed": self.config.hidden_size}
        axes, matrix = (("vocab", "embed"), table) if name == "embedding" else (("embed", "vocab"), table.T)
        return make_adapter(self, name, tuple(sizes[axis] for axis in axes), axes, lambda: lengths(matrix))
