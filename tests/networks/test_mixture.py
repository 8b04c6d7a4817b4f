"""The mixture on meshes is that of one device, whatever tokens choose: in one block or many, of plain and coded matrices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrl_llm.distributed import make_mesh, sharded
from jaxrl_llm.networks import AdapterConfig, DecoderConfig, ExpertsConfig, QuantizationConfig, mixture
from jaxrl_llm.networks.codes import encode

pytestmark = pytest.mark.slow

ROWS, COLUMNS, COUNT, WIDTH, INNER, CHOSEN = 8, 6, 8, 128, 128, 2
CONFIG = DecoderConfig(
    vocab_size=8,
    hidden_size=WIDTH,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    experts=ExpertsConfig(count=COUNT, per_token=CHOSEN, width=INNER),
)
SHAPES = {"gate": (WIDTH, INNER), "up": (WIDTH, INNER), "down": (INNER, WIDTH)}
MESHES = [{"expert": 8}, {"fsdp": 2, "expert": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]
CHOICES = {
    "spread": np.argsort(np.random.default_rng(0).random((ROWS, COLUMNS, COUNT)))[..., :CHOSEN].astype(np.int32),
    "all the same": np.broadcast_to(np.int32([3, 5]), (ROWS, COLUMNS, CHOSEN)),
    "one twice, as replayed routes may have it": np.broadcast_to(np.int32([0, 0]), (ROWS, COLUMNS, CHOSEN)),
}


def leaves_of(config):
    """Leaves of the three matrices: kernels, or codes, and adapters where the configuration has them."""
    random, found = np.random.default_rng(1), {}
    for name, (inputs, outputs) in SHAPES.items():
        kernel = jnp.asarray(random.normal(size=(COUNT, inputs, outputs)) * inputs**-0.5, jnp.float32)
        own = {"kernel": kernel}
        if config.quantization:
            own = dict(zip(("codes", "scales"), encode(config.quantization.kind, kernel), strict=True))
        if config.adapter:
            own["lora_a"] = jnp.asarray(random.normal(size=(COUNT, inputs, 2)) * 0.1, jnp.float32)
            own["lora_b"] = jnp.asarray(random.normal(size=(COUNT, 2, outputs)), jnp.float32)
        if name != "down":  # whose bias is added behind the mixture
            own["bias"] = jnp.asarray(random.normal(size=(COUNT, outputs)), jnp.float32)
        found[name] = own
    return found


def inputs():
    random = np.random.default_rng(2)
    return jnp.float32(random.normal(size=(ROWS, COLUMNS, WIDTH))), jnp.float32(random.random((ROWS, COLUMNS, CHOSEN)))


def program(config):
    """Gradients of what is trained, of tokens and of weights, with the mixture."""

    def value(trained, x, weights, fixed, experts):
        leaves = {name: {**fixed[name], **trained[name]} for name in fixed}
        mixed = mixture.mixture(config, leaves, x, experts, weights)
        return jnp.sum(jnp.sin(mixed)), mixed

    return jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))


ALONE = functools.lru_cache(program)


def check(config, sizes, names):
    x, weights = inputs()
    leaves, trains = leaves_of(config), (lambda leaf: leaf != "codes" if not config.adapter else leaf.startswith("lora"))
    trained = {name: {leaf: v for leaf, v in own.items() if trains(leaf)} for name, own in leaves.items()}
    on_mesh = program(config)
    for name in names:
        given = trained, x, weights, leaves, CHOICES[name]
        expected, mixed = ALONE(config)(*given)
        with sharded(make_mesh(**sizes)):
            found, again = on_mesh(*given)
        np.testing.assert_allclose(again, mixed, rtol=1e-5, atol=1e-5, err_msg=name)
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        jax.tree.map(lambda a, b, c=largest: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * c), found, expected)


@pytest.mark.parametrize("rows", [4, 512])
@pytest.mark.parametrize("sizes", MESHES)
def test_no_choice_of_tokens_is_another_on_a_mesh(sizes, rows, monkeypatch):
    """Blocks of at least 4 rows: up to 24 of them where all tokens choose one expert; of 512 all that there may be."""
    monkeypatch.setattr(mixture, "LEAST_ROWS", rows)
    check(CONFIG, sizes, CHOICES)


@pytest.mark.parametrize("kind", ["int8", "nf4", None])
def test_codes_and_adapters(kind, monkeypatch):
    """Of nf4, width 128 is two blocks, so that tensor=2 may cut it, and of residual streams fsdp=2 too."""
    monkeypatch.setattr(mixture, "LEAST_ROWS", 16)
    coded = kind and QuantizationConfig(kind=kind, pattern="experts")
    config = dataclasses.replace(CONFIG, quantization=coded, adapter=AdapterConfig("experts", rank=2, alpha=2.0))
    check(config, MESHES[1], ["spread"])
    if kind != "int8":
        check(config, MESHES[2], ["spread"])


def test_no_block_of_codes_is_cut():
    """Four blocks would have to be cut for tensor=8, so that each device has the whole width."""
    config = dataclasses.replace(CONFIG, quantization=QuantizationConfig(kind="int4", pattern="experts"))
    with sharded(make_mesh(tensor=8)):
        split = mixture._split(config, leaves_of(config), PartitionSpec())
        assert split.width == () and split.leaves["down"]["codes"] == PartitionSpec(None, None, None)
        split = mixture._split(CONFIG, leaves_of(CONFIG), PartitionSpec())
    assert split.width == ("tensor",) and split.leaves["down"]["kernel"] == PartitionSpec(None, ("tensor",), None)


@pytest.mark.parametrize("sizes", [(60, 0, 200, 37), (0, 0, 0, 300), (128, 128, 44, 0), (0, 0, 0, 0)])
def test_the_grouped_product_of_tpus_is_that_of_a_loop(sizes):
    """In the interpreter of Pallas, value and gradient; rows behind the last expert's give nothing and get nothing."""
    random = np.random.default_rng(0)
    rows, kernels, cotangent = (random.normal(size=shape) for shape in ((300, 256), (4, 256, 128), (300, 128)))
    of_row = np.repeat(np.arange(5), [*sizes, 300 - sum(sizes)])
    expected, of_rows, of_kernels = np.zeros((300, 128)), np.zeros_like(rows), np.zeros_like(kernels)
    for row, expert in enumerate(of_row):
        if expert < 4:
            expected[row] = rows[row] @ kernels[expert]
            of_rows[row] = kernels[expert] @ cotangent[row]
            of_kernels[expert] += np.outer(rows[row], cotangent[row])
    run = functools.partial(mixture.grouped, group_sizes=jnp.int32(sizes), interpret=True)
    found, pull = jax.vjp(run, *(jnp.asarray(x, jnp.float32) for x in (rows, kernels)))
    for one, other in zip((found, *pull(jnp.asarray(cotangent, jnp.float32))), (expected, of_rows, of_kernels), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
