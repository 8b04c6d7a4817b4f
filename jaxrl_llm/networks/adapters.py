"""Adapters over a frozen network: laid on, taken off, merged into the matrices and taken out of them again.

Example:
  >>> network = decoder(DecoderConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_layers=1, num_heads=1))
  >>> params = network.init(jax.random.key(0))
  >>> adapter = AdapterConfig(r"attention\\.(query|value)", rank=2, alpha=4.0)
  >>> adapted, params = add_adapter(network, params, adapter, jax.random.key(1))
  >>> trained, frozen = split_params(params, ADAPTER)  # for `update(state, batch, frozen)`, whose state has `trained`
  >>> reference, its_params = remove_adapter(adapted, params)  # the same arrays: a reference policy for nothing
  >>> its_params["embedding"] is params["embedding"]
  True
"""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxrl_llm.networks.config import AdapterConfig, DecoderConfig
from jaxrl_llm.networks.matrices import (
    ADAPTER_LEAVES, Matrix, base_lengths, each_layer, is_adapted, is_quantized, leaves_of, matrices, merged, unmerged,
    with_kernels,
)  # fmt: skip
from jaxrl_llm.networks.modules import draw_change
from jaxrl_llm.networks.network import Network, decoder
from jaxrl_llm.networks.trees import Params, join_params, split_params

ADAPTER = rf"\b({'|'.join(ADAPTER_LEAVES)})$"  # found in the paths of adapters' leaves and in no others


def add_adapter(network: Network, params: Params, adapter: AdapterConfig, key: jax.Array) -> tuple[Network, Params]:
    """The network with an adapter that changes nothing yet, and its parameters; those of `params` are shared.

    As PEFT has it, A is uniform within 1 / sqrt(inputs) and B is zero, except over the embedding, where A is zero and B
    normal; DoRA's magnitudes are the lengths of the base's columns. New leaves are float32. Where embedding and head are
    tied, each may have an adapter and neither sees that of the other.

    Raises ValueError: the pattern is found in no matrix, DoRA is asked of experts, or there is an adapter already.
    """
    adapted = with_adapter(network, adapter)
    fresh = _fresh(adapted, key)
    if adapter.kind == "dora":
        for matrix in _adapted(adapted.config):
            own = functools.reduce(dict.__getitem__, matrix.path, fresh)
            length = each_layer(base_lengths, network.config, matrix, leaves_of(params, matrix))
            own["magnitude"] = length.reshape(own["magnitude"].shape)
    return adapted, join_params(fresh, params)


def with_adapter(network: Network, adapter: AdapterConfig) -> Network:
    """The network with an adapter, without parameters; ValueError as `add_adapter`."""
    if network.config.adapter is not None:
        raise ValueError(f"adapter={network.config.adapter} lies over this network already; merge or remove it first")
    return decoder(dataclasses.replace(network.config, adapter=adapter))


def remove_adapter(network: Network, params: Params) -> tuple[Network, Params]:
    """The network without its adapter, and its parameters: the same arrays."""
    leaves = flax.traverse_util.flatten_dict(params)
    base = {path: leaf for path, leaf in leaves.items() if path[-1] not in ADAPTER_LEAVES}
    return decoder(dataclasses.replace(network.config, adapter=None)), flax.traverse_util.unflatten_dict(base)


def merge_adapter(network: Network, params: Params) -> tuple[Network, Params]:
    """A plain network whose matrices have the adapter's change in them; what the adapter does not touch is shared.

    Matrices that were quantised are decoded. Where embedding and head are tied and one of them has an adapter, they are
    tied no more: the two tables differ.
    """
    config = network.config
    untied = config.tie_embeddings and (is_adapted(config, "embedding") or is_adapted(config, "head"))
    tied = config.tie_embeddings and not untied
    plain = decoder(dataclasses.replace(config, adapter=None, quantization=None, tie_embeddings=tied))
    changed = _adapted(config)
    for matrix in matrices(config):
        coded = matrix.in_layers and is_quantized(config, matrix.name)
        if matrix not in changed and (coded or (untied and matrix.name == "head")):
            changed.append(matrix)
    return plain, with_kernels(params, merged, config, changed, _shapes(plain))


def unmerge_adapter(params: Params, network: Network, adapter: Params) -> Params:
    """Parameters of the adapted `network` from those that `merge_adapter` made of them: kernels less their changes.

    Rounding remains: a base that is kept is exact, and costs no second copy while the adapter is on.

    Args:
      params: of the merged network.
      network: the adapted one.
      adapter: the leaves of its adapter, `split_params(..., ADAPTER)[0]`.

    Raises ValueError: the adapter is DoRA, or the base was quantised: merging forgets the lengths or the codes.
    """
    config = network.config
    if config.adapter.kind == "dora" or config.quantization is not None:
        what = "adapter.kind='dora'" if config.adapter.kind == "dora" else f"quantization={config.quantization}"
        raise ValueError(f"{what} cannot be unmerged, as merging forgets part of the base; keep the base instead")
    return with_kernels(join_params(adapter, params), unmerged, config, _adapted(config), _shapes(network))


def _adapted(config: DecoderConfig) -> list[Matrix]:
    return [matrix for matrix in matrices(config) if is_adapted(config, matrix.name)]


def _shapes(network: Network) -> Params:
    return jax.eval_shape(network.init, jax.random.key(0))


def _fresh(adapted: Network, key: jax.Array) -> Params:
    """Leaves of a new adapter; magnitudes are zero."""
    leaves = flax.traverse_util.flatten_dict(split_params(_shapes(adapted), ADAPTER)[0])
    fresh = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    for number, matrix in enumerate(_adapted(adapted.config)):
        for name, draw in draw_change(matrix.name, matrix.fan_in).items():
            path = (*matrix.path, name)
            fresh[path] = draw(jax.random.fold_in(key, number), leaves[path].shape, leaves[path].dtype)
    return flax.traverse_util.unflatten_dict(fresh)
