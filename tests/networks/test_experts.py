"""Mixtures of experts against plain loops; routes recorded by the sampler and replayed by the learner."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import experts as oracle
from oracles.cases import modest
from oracles.tiny_policy import jit

from jaxrl_llm import distributed
from jaxrl_llm.data.packing import pack
from jaxrl_llm.networks import DecoderConfig, ExpertsConfig, decoder
from jaxrl_llm.networks.experts import choose
from jaxrl_llm.objectives import load_balancing, negative_log_likelihood, objective, router_z
from jaxrl_llm.rollouts import make_rollouts
from jaxrl_llm.sampling import generate
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import make_gradient
from jaxrl_llm.types import Batch, Scores

pytestmark = pytest.mark.slow

CONFIG = DecoderConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    experts=ExpertsConfig(count=8, per_token=2, width=12, shared_width=8, dense_layers=1, normalize=True),
)
NETWORK = decoder(CONFIG)
ROUTED = jit(NETWORK.routed)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (4, 12))
ROUTERS = {
    "softmax": {},
    "normalized": {"normalize": True},
    "deepseek": {"score": "sigmoid", "groups": 4, "top_groups": 2, "normalize": True, "scale": 2.5},
}


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    start = NETWORK.init(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.2 * random.normal(size=leaf.shape).astype(np.float32), start)


@pytest.mark.parametrize("name", sorted(ROUTERS))
@modest
@given(seed=st.integers(0, 2**32 - 1), biased=st.booleans(), k=st.integers(1, 3))
def test_choices_are_those_of_plain_loops(name, seed, biased, k):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(5, 8)).astype(np.float32)
    bias = random.normal(size=8).astype(np.float32) if biased else None
    forced = np.where(random.random((5, k)) < 0.3, random.integers(0, 8, (5, k)), -1)
    config = ExpertsConfig(count=8, per_token=k, width=1, **ROUTERS[name])
    experts, weights = choose(config, jnp.asarray(logits), bias, jnp.asarray(forced))
    for token in range(5):
        expected = oracle.choose(logits[token], k, bias=bias, forced=forced[token], **ROUTERS[name])
        np.testing.assert_array_equal(experts[token], expected[0])
        np.testing.assert_allclose(weights[token], expected[1], rtol=1e-5)


def test_weights_stay_finite_where_all_scores_vanish():
    config = ExpertsConfig(count=4, per_token=2, width=1, score="sigmoid", normalize=True)
    value, gradient = jax.value_and_grad(lambda logits: choose(config, logits)[1].sum())(jnp.full((1, 4), -200.0))
    assert value == 0 and np.isfinite(gradient).all()


def test_no_token_is_dropped_and_each_expert_does_its_own(params):
    """The first layer with experts, taken out of the network, by loops over tokens and experts."""
    hidden, routing = ROUTED(params, TOKENS)
    np.testing.assert_allclose(hidden, NETWORK.hidden(params, TOKENS), atol=1e-5)
    assert routing.experts.shape == (2, 4, 12, 2) and routing.logits.shape == (2, 4, 12, 8)
    from jaxrl_llm.networks.experts import Experts

    own = jax.tree.map(lambda leaf: leaf[0], params["sparse_layers"]["experts"])
    x = np.random.default_rng(2).normal(size=(3, 5, 16)).astype(np.float32)
    # So that one expert gets nearly all tokens: capacity would drop most of them.
    own["router"] = own["router"].at[:, 3].add(jnp.asarray(x.reshape(-1, 16).mean(axis=0)) * 20)
    found, routing = Experts(CONFIG).apply({"params": own}, x, None)
    kernels = [np.asarray(own[name]["kernel"], np.float64) for name in ("gate", "up", "down")]
    shared = [np.asarray(own["shared"][name]["kernel"], np.float64)[None] for name in ("gate", "up", "down")]
    for b, t in np.ndindex(3, 5):
        chosen, weights = oracle.choose(x[b, t] @ np.asarray(own["router"]), 2, normalize=True)
        np.testing.assert_array_equal(routing.experts[b, t], chosen)
        expected = oracle.mixture(x[b, t], chosen, weights, *kernels) + oracle.mixture(x[b, t], [0], [1.0], *shared)
        np.testing.assert_allclose(found[b, t], expected, atol=2e-4)


def test_gradients_are_those_of_all_experts_computed_for_all_tokens(params):
    from jaxrl_llm.networks.experts import Experts

    own = jax.tree.map(lambda leaf: leaf[0], params["sparse_layers"]["experts"])
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 6, 16)), jnp.float32)

    def dense(own, x):
        logits = x @ own["router"]
        experts, weights = choose(CONFIG.experts, logits.reshape(-1, 8))
        weights = (jax.nn.one_hot(experts, 8) * weights[..., None]).sum(axis=1).reshape(*x.shape[:2], 8)
        inner = jax.nn.silu(jnp.einsum("btd,edf->btef", x, own["gate"]["kernel"]))
        inner *= jnp.einsum("btd,edf->btef", x, own["up"]["kernel"])
        routed = jnp.einsum("btef,efd,bte->btd", inner, own["down"]["kernel"], weights)
        plain = {name: own["shared"][name]["kernel"] for name in ("gate", "up", "down")}
        return routed + (jax.nn.silu(x @ plain["gate"]) * (x @ plain["up"])) @ plain["down"]

    def sparse(own, x):
        return Experts(CONFIG).apply({"params": own}, x, None)[0]

    found, expected = (jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1))(own, x) for f in (sparse, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, expected)


def test_forced_routes_are_taken_and_free_ones_are_not(params):
    _, own = ROUTED(params, TOKENS)
    again, routing = ROUTED(params, TOKENS, routes=own.experts)
    np.testing.assert_array_equal(routing.experts, own.experts)
    np.testing.assert_allclose(again, NETWORK.hidden(params, TOKENS), atol=1e-5)
    other = (own.experts + 1) % 8
    half = other.at[:, :2].set(-1)
    changed, routing = ROUTED(params, TOKENS, routes=half)
    np.testing.assert_array_equal(routing.experts[:, 2:], other[:, 2:])
    np.testing.assert_allclose(changed[:2], again[:2], atol=1e-5)
    assert np.abs(changed[2:] - again[2:]).max() > 1e-2


PROMPTS = [[5, 6, 7], [1, 2, 3, 4, 5, 9, 8]]


def sampled(params, **options):
    return generate(NETWORK, params, PROMPTS, max_new_tokens=6, num_samples=2, seed=3, record_routes=True, **options)


def routed_batch(samples):
    rollouts = make_rollouts(PROMPTS, samples, np.zeros((4, 1)), [0, 1], width=16)
    weight = rollouts.mask / rollouts.mask.sum()
    return pack(rollouts.replace(weight=weight), 32)


def test_the_sampler_records_routes_and_the_learner_takes_the_same(params):
    samples = sampled(params)
    assert samples.routes.shape == (4, 6, 2, 2) and samples.prompt_routes.shape == (2, 16, 2, 2)
    for row in range(4):
        text = np.asarray([PROMPTS[row // 2] + samples.tokens[row, : samples.length[row]].tolist()])
        routes = np.moveaxis(np.asarray(ROUTED(params, np.pad(text, [(0, 0), (0, 16 - text.shape[1])]))[1].experts), 0, 2)[0]
        prompt = len(PROMPTS[row // 2])
        np.testing.assert_array_equal(samples.prompt_routes[row // 2, :prompt], routes[:prompt])
        np.testing.assert_array_equal(samples.routes[row, : samples.length[row] - 1], routes[prompt : text.shape[1] - 1])
        assert (samples.routes[row, samples.length[row] - 1 :] == -1).all()
    plain = generate(NETWORK, params, PROMPTS, max_new_tokens=6, num_samples=2, seed=3)
    assert plain.routes is None and plain.prompt_routes is None
    np.testing.assert_array_equal(plain.tokens, samples.tokens)
    # The learner's parameters moved on, so that its own routes differ; those of the sampler are kept all the same.
    batch = routed_batch(samples)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    free, replayed = (jit(make_scorer(NETWORK, replay_routes=replay)) for replay in (False, True))
    np.testing.assert_allclose(free(params, batch).logp, replayed(params, batch).logp, atol=1e-5)
    assert np.abs((free(moved, batch).logp - replayed(moved, batch).logp) * batch.mask).max() > 1e-3
    gap = np.abs((replayed(params, batch).logp - batch.behavior_logp) * batch.mask).max()
    assert gap <= 1e-4
    np.testing.assert_array_equal(sampled(params, stop_strings=["x"], detokenize=lambda ids: "").routes, samples.routes)


def test_routes_of_a_network_without_experts_are_refused():
    dense = decoder(dataclasses.replace(CONFIG, experts=None))
    with pytest.raises(ValueError, match="record_routes is True, but the network has no experts"):
        generate(dense, None, PROMPTS, max_new_tokens=2, record_routes=True)
    for wanted in ({"replay_routes": True}, {"needs": {"router_logits"}}):
        with pytest.raises(ValueError, match="but the policy has no experts"):
            make_scorer(dense, **wanted)


LOSS = objective(negative_log_likelihood(), load_balancing(experts_per_token=2, coefficient=0.3), router_z(coefficient=0.1))


def test_router_losses_are_coupled_and_declared():
    assert LOSS.coupled and LOSS.needs == {"router_logits"}
    assert not objective(router_z()).coupled


@pytest.mark.parametrize("pooled", [True, False])
@modest
@given(seed=st.integers(0, 2**32 - 1), actions=st.integers(0, 12))
def test_router_losses_against_loops(pooled, seed, actions):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(3, 4, 2, 5)).astype(np.float32)
    mask = np.zeros(12, np.float32)
    mask[random.permutation(12)[:actions]] = 1
    mask, weight = mask.reshape(3, 4), random.random((3, 4)).astype(np.float32)
    junk = np.where(mask[..., None, None] > 0, logits, np.nan)
    batch = Batch(tokens=np.zeros((3, 4), np.int32), mask=mask, weight=weight)
    scores = Scores(logp=jnp.zeros((3, 4)), router_logits=jnp.asarray(junk))
    terms = (load_balancing(experts_per_token=2, coefficient=1.0, pooled=pooled), router_z(coefficient=1.0))
    losses = [objective(term)(scores, batch)[0] for term in terms]
    if actions == 0:
        assert losses == [0, 0]
        return
    taken = (logits[mask > 0].astype(np.float64), weight[mask > 0].astype(np.float64))
    np.testing.assert_allclose(losses[0], oracle.load_balancing(*taken, 2, pooled), rtol=1e-4)
    np.testing.assert_allclose(losses[1], oracle.router_z(*taken), rtol=1e-4)


def test_load_balancing_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = np.random.default_rng(5).normal(size=(2, 6, 3, 4)).astype(np.float32)
    theirs = load_balancing_loss_func(tuple(torch.tensor(logits[:, :, layer].reshape(-1, 4)) for layer in range(3)), 4, 2)
    batch = Batch(tokens=np.zeros((2, 6), np.int32), mask=np.ones((2, 6), np.float32))
    scores = Scores(logp=jnp.zeros((2, 6)), router_logits=jnp.asarray(logits))
    ours, metrics = objective(load_balancing(experts_per_token=2, coefficient=1.0))(scores, batch)
    np.testing.assert_allclose(ours, float(theirs), rtol=1e-5)
    assert metrics["expert_load_max"] >= 1


@functools.cache
def program(micro_batches):
    return jit(make_gradient(make_scorer(NETWORK, LOSS.needs, replay_routes=True), LOSS, micro_batches))


@pytest.mark.slow
def test_no_split_changes_loss_or_gradient(params):
    batch = routed_batch(sampled(params))
    scores, expected = program(1)(params, batch)
    loss = LOSS(scores, batch)[0]
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    mesh = distributed.make_mesh(data=2, fsdp=2, tensor=2)
    wide = pack_again(batch)

    def on_mesh():
        placed = distributed.shard_params(params, NETWORK, mesh)
        with distributed.sharded(mesh):
            return program.__wrapped__(2)(placed, distributed.shard_rows(wide, mesh))

    for number, found in enumerate((program(2)(params, batch), program(1)(params, wide), on_mesh())):
        again, gradient = found
        np.testing.assert_allclose(LOSS(again, batch if number == 0 else wide)[0], loss, rtol=2e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4e-5 * largest), jax.device_get(gradient), expected)


def pack_again(batch):
    """The same rows, padded to more rows in another order."""
    order = np.r_[np.arange(len(batch.tokens))[::-1], np.zeros(-len(batch.tokens) % 8, int)]

    def moved(leaf):
        leaf = np.asarray(leaf)
        if not leaf.ndim:
            return leaf
        rows = leaf[order].copy()
        rows[len(leaf) :] = 0
        return rows

    return jax.tree.map(moved, batch)


@pytest.mark.slow
def test_a_selection_bias_is_never_trained(params):
    config = dataclasses.replace(CONFIG, experts=dataclasses.replace(CONFIG.experts, selection_bias=True))
    network = decoder(config)
    start = network.init(jax.random.key(0))
    gradient = jit(make_gradient(make_scorer(network), objective(negative_log_likelihood())))
    batch = Batch(tokens=TOKENS, mask=np.ones(TOKENS.shape, np.float32))
    experts = gradient(start, batch)[1]["sparse_layers"]["experts"]
    assert not experts["selection_bias"].any() and experts["router"].any()
