"""Networks whose matrices are kept as codes: made, undone, and compared with what they were made from."""

import dataclasses
import functools
from typing import NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.codes import encode
from jaxrl_llm.networks.config import DecoderConfig, QuantizationConfig
from jaxrl_llm.networks.matrices import Leaves, dense, is_quantized, kernel_path, matrices, with_kernels
from jaxrl_llm.networks.network import Network, decoder
from jaxrl_llm.networks.trees import Params


class QuantizationGap(NamedTuple):
    """How far a network is from the one that it approximates, in nats a token."""

    mean: float  # of the distances of the tokens' log-probabilities
    largest: float  # of them
    kl: float  # mean of KL(exact || approximate) over the tokens' distributions


def quantize(network: Network, params: Params, kind: str, pattern: str = "") -> tuple[Network, Params]:
    """The network with the kernels of layers as codes, which only a frozen base can have; other arrays are shared.

    Embedding, output head, norms, biases and routers stay as they are. An adapter stays, too, and may be added later.

    Args:
      network: plain or adapted.
      params: its parameters.
      kind: "int8", "int4" or "nf4".
      pattern: as in `QuantizationConfig`.

    Raises:
      ValueError: the pattern is found in no matrix of layers, inputs are no multiple of a block, or it is quantised already.
    """
    if network.config.quantization is not None:
        raise ValueError(f"this network has quantization={network.config.quantization} already; dequantize it first")
    own = QuantizationConfig(kind, pattern)
    quantized = decoder(dataclasses.replace(network.config, quantization=own))
    shapes = flax.traverse_util.flatten_dict(jax.eval_shape(quantized.init, jax.random.key(0)))
    leaves = flax.traverse_util.flatten_dict(params)
    for matrix in matrices(network.config):
        if matrix.in_layers and is_quantized(quantized.config, matrix.name):
            kernel = {"kernel": leaves.pop(kernel_path(matrix))}
            coded = _encoded(kind, network.config, matrix.inputs, matrix.leading, kernel)
            for name, made in zip(("codes", "scales"), coded, strict=True):
                leaves[*matrix.path, name] = made.reshape(shapes[*matrix.path, name].shape)
    return quantized, flax.traverse_util.unflatten_dict(leaves)


def dequantize(network: Network, params: Params) -> tuple[Network, Params]:
    """The network with kernels in place of codes; they are what the codes stand for, not what they were made from."""
    config = network.config
    plain = decoder(dataclasses.replace(config, quantization=None))
    coded = [matrix for matrix in matrices(config) if matrix.in_layers and is_quantized(config, matrix.name)]
    shapes = jax.eval_shape(plain.init, jax.random.key(0))
    return plain, with_kernels(params, dense, config, coded, shapes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _encoded(kind: str, config: DecoderConfig, inputs: int, leading: int, leaves: Leaves):
    return jax.lax.map(lambda own: encode(kind, dense(config, own, inputs, leading - 1)), leaves)


def quantization_gap(
    network: Network, params: Params, other: Network, its_params: Params, tokens: jax.Array, segments: jax.Array | None = None
) -> dict[str, jax.Array]:
    """How far `other`, for instance a quantised copy, is from `network` on texts.

    Args:
      network: the exact one.
      params: its parameters.
      other: the approximate one.
      its_params: its parameters.
      tokens: int [B, T].
      segments: int [B, T] as of `Network`; by default each row is one sequence.

    Returns: A `QuantizationGap` over the tokens that follow another one of their sequence.
    """
    tokens = jnp.asarray(tokens)
    segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments)
    counted, distance, kl = _gaps(network.without_params(), other.without_params(), params, its_params, tokens, segments)
    count = jnp.maximum(counted.sum(), 1)
    return QuantizationGap(float(distance.sum() / count), float(distance.max()), float(kl.sum() / count))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gaps(network: Network, other: Network, params: Params, its_params: Params, tokens, segments):
    """Which tokens count, distances of their log-probabilities and KL of their distributions, [B, T - 1] each."""

    def row(inputs):
        text, segment = inputs
        counted = (segment[1:] == segment[:-1]) & (segment[1:] > 0)
        both = ((network, params), (other, its_params))
        exact, rough = (_log_probabilities(network, params, text, segment) for network, params in both)
        taken = jnp.take_along_axis(exact - rough, text[1:, None], axis=-1)[:, 0]
        kl = jnp.sum(jnp.exp(exact) * (exact - rough), axis=-1)
        return counted, jnp.where(counted, jnp.abs(taken), 0.0), jnp.where(counted, kl, 0.0)

    return jax.lax.map(row, (tokens, segments))


def _log_probabilities(network: Network, params: Params, text, segment):
    """Of all words after each token but the last, [T - 1, V], with positions that begin anew in each segment."""
    index = jnp.arange(len(text))
    begins = jnp.concatenate([jnp.ones(1, bool), segment[1:] != segment[:-1]])
    positions = index - jax.lax.cummax(jnp.where(begins, index, 0))
    return jax.nn.log_softmax(network.apply(params, text[None], positions[None], segment[None])[0, :-1])
