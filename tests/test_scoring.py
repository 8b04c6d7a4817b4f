"""Per-token statistics against their oracle, their shifts at the edges of sequences, and their memory."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import statistics as oracle
from oracles.tiny_policy import jit

from jaxrl_llm.head import token_statistics
from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.objectives import sampled, top
from jaxrl_llm.scoring import actor_critic_scorer, make_picker, make_scorer
from jaxrl_llm.types import Batch

NEEDS = frozenset({"entropy", "mean_logp"})
B, T, D, V = 2, 5, 6, 13
CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, value_head=True
)


def inputs(scale=1.0):
    random = np.random.default_rng(3)
    hidden = (scale * random.normal(size=(B, T, D))).astype(np.float32)
    return hidden, random.normal(size=(V, D)).astype(np.float32), random.integers(0, V, (B, T)).astype(np.int32)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunks", [(3, 5), (10, 13), (4, 1), (1, 100)])
def test_token_statistics_and_gradients(temperature, chunks):
    """Chunks that do not divide tokens or vocabulary, chunks of one, and chunks larger than everything."""
    hidden, matrix, targets = inputs()
    values, by_hidden, by_matrix = oracle.token_statistics(hidden.reshape(-1, D), matrix, targets.ravel(), temperature)
    random = np.random.default_rng(4)
    cotangents = {name: random.normal(size=(B, T)).astype(np.float32) for name in values}

    def run(hidden, matrix):
        token_chunk, vocabulary_chunk = chunks
        found = token_statistics(
            hidden, matrix, targets, temperature, NEEDS, token_chunk=token_chunk, vocabulary_chunk=vocabulary_chunk
        )
        return sum(jnp.sum(cotangents[name] * found[name]) for name in values), found

    (_, found), gradients = jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(hidden, matrix)
    for name, expected in values.items():
        np.testing.assert_allclose(found[name].ravel(), expected, rtol=1e-5, atol=2e-6, err_msg=name)
    expected_hidden = sum(cotangents[name].reshape(-1, 1) * by_hidden[name] for name in values)
    expected_matrix = sum(np.tensordot(cotangents[name].ravel(), by_matrix[name], 1) for name in values)
    np.testing.assert_allclose(gradients[0].reshape(-1, D), expected_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], expected_matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"entropy"}), frozenset({"mean_logp"})])
def test_each_statistic_alone_equals_all_together(needs):
    hidden, matrix, targets = inputs()

    def total(needs):
        return lambda hidden: jnp.sum(token_statistics(hidden, matrix, targets, 1.0, needs, vocabulary_chunk=5)["logp"])

    together = token_statistics(hidden, matrix, targets, 1.0, NEEDS, vocabulary_chunk=5)
    alone = token_statistics(hidden, matrix, targets, 1.0, needs, vocabulary_chunk=5)
    assert set(alone) == {"logp"} | needs
    for name in alone:
        np.testing.assert_allclose(alone[name], together[name], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(total(needs))(hidden), jax.grad(total(NEEDS))(hidden), rtol=1e-5, atol=1e-6)


def test_extreme_logits_stay_finite():
    hidden, matrix, targets = inputs(scale=1e4)

    def run(hidden, matrix):
        found = token_statistics(hidden, matrix, targets, 1.0, NEEDS, vocabulary_chunk=5)
        return sum(jnp.sum(value) for value in found.values()), found

    (_, found), gradients = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(hidden, matrix)
    assert all(np.isfinite(value).all() for value in (*found.values(), *gradients))
    assert (found["entropy"] > -1e-2).all()


def packed_batch() -> Batch:
    """Two rows: sequences of 3, 4 tokens and padding; one sequence of 8."""
    segment = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1] * 8], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0], list(range(8))], np.int32)
    tokens = np.random.default_rng(5).integers(0, 32, (2, 8)).astype(np.int32)
    return Batch(tokens=tokens, mask=(segment > 0).astype(np.float32), segment=segment, positions=positions)


@pytest.fixture(scope="module")
def network():
    built = decoder(CONFIG)
    return built.with_params(random_params(built, 0))


def random_params(network, seed: int):
    """Nothing is left at 0, where a fresh value head starts."""
    random = np.random.default_rng(seed)
    params = network.init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32), params)


def test_bare_apply_equals_chunked_network(network):
    batch, params = packed_batch(), network.params
    chunked, bare = (make_scorer(policy, NEEDS, temperature=0.7) for policy in (network, network.apply))

    def run(score):
        def total(params):
            scores = score(params, batch)
            return jnp.sum(scores.logp * 0.3 + scores.entropy + 2 * scores.mean_logp), scores

        return jit(jax.grad(total, has_aux=True))(params)

    (gradients, scores), (bare_gradients, bare_scores) = run(chunked), run(bare)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), scores, bare_scores)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + np.abs(b).max())), gradients, bare_gradients
    )


def test_first_tokens_and_padding_have_no_logp(network):
    batch = packed_batch()
    scores = jit(make_scorer(network, NEEDS | {"value", "hidden"}))(network.params, batch)
    first = np.array([[1, 0, 0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]], bool)
    for name in ("logp", "entropy", "mean_logp", "value"):
        values = np.asarray(getattr(scores, name))
        assert not values[first].any(), name
        assert (values[~first] != 0).all(), name
    assert not np.asarray(scores.hidden)[first].any() and np.asarray(scores.hidden)[~first].any(axis=-1).all()


def test_position_t_describes_token_t(network):
    batch = packed_batch()
    inputs_of_row = (network.params, batch.tokens[1:], batch.positions[1:], batch.segment[1:])
    logits = jit(network.apply)(*inputs_of_row)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))[0]
    expected = [0.0] + [log_probabilities[t - 1, batch.tokens[1, t]] for t in range(1, 8)]
    scores = jit(make_scorer(network, NEEDS | {"value", "hidden"}))(network.params, batch)
    np.testing.assert_allclose(scores.logp[1], expected, rtol=1e-5, atol=1e-5)
    hidden = jit(network.hidden)(*inputs_of_row)
    np.testing.assert_allclose(scores.value[1, 1:], network.value(network.params, hidden)[0, :-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.hidden[1, 1:], hidden[0, :-1], rtol=1e-5, atol=1e-5)


def test_packed_equals_unpacked(network):
    batch = packed_batch()
    score = jit(make_scorer(network, {"entropy", "value"}))
    packed = score(network.params, batch)
    for row, span in ((0, slice(0, 3)), (0, slice(3, 7)), (1, slice(0, 8))):
        length = span.stop - span.start
        tokens = np.zeros((1, 8), np.int32)
        tokens[0, :length] = batch.tokens[row, span]
        segment = (np.arange(8) < length)[None].astype(np.int32)
        alone = score(network.params, Batch(tokens=tokens, mask=segment.astype(np.float32), segment=segment))
        for name in ("logp", "entropy", "value"):
            np.testing.assert_allclose(getattr(packed, name)[row, span], getattr(alone, name)[0, :length], rtol=1e-4, atol=1e-5)


def test_actor_critic_scorer_takes_values_from_the_critic(network):
    batch = packed_batch()
    params = {"policy": network.params, "critic": random_params(network, 1)}
    joint = actor_critic_scorer(make_scorer(network), network)

    def total(params):
        scores = joint(params, batch)
        return scores.value.sum(), scores

    gradient, scores = jit(jax.grad(total, has_aux=True))(params)
    alone = jit(make_scorer(network, {"value"}))
    np.testing.assert_allclose(scores.logp, alone(params["policy"], batch).logp, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.value, alone(params["critic"], batch).value, rtol=1e-5, atol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["policy"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["critic"]))


def test_masked_logits_have_finite_gradients():
    """A bare apply may forbid tokens by logits of -inf; the entropy is that of the others."""
    batch = Batch(tokens=np.array([[0, 1, 3, 1]]), mask=np.ones((1, 4), np.float32))

    def apply(params, tokens, positions, segments):
        logits = params[tokens]
        return jnp.where(jnp.arange(4) == 2, -jnp.inf, logits)

    def total(params):
        scores = make_scorer(apply, {"entropy"})(params, batch)
        return scores.logp.sum() + scores.entropy.sum(), scores

    gradient, scores = jax.grad(total, has_aux=True)(jnp.zeros((4, 4)))
    np.testing.assert_allclose(scores.entropy, [[0, np.log(3), np.log(3), np.log(3)]], rtol=1e-6)
    assert np.isfinite(gradient).all() and gradient.any()


def test_bfloat16_is_scored_in_float32():
    hidden, matrix, targets = inputs()
    found = token_statistics(jnp.bfloat16(hidden), jnp.bfloat16(matrix), targets, 1.0, NEEDS)
    expected = token_statistics(
        jnp.bfloat16(hidden).astype(jnp.float32), jnp.bfloat16(matrix).astype(jnp.float32), targets, 1.0, NEEDS
    )
    for name in found:
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_bfloat16_gradients_do_not_depend_on_the_number_of_token_chunks():
    """256 equal tokens, in one chunk or in 256: the matrix's gradient must not be added up in bfloat16."""
    hidden, matrix, _ = inputs()
    tokens, targets = jnp.bfloat16(np.tile(hidden[:1, :1], (1, 256, 1))), np.full((1, 256), 3)

    def gradient(chunk):
        total = lambda matrix: token_statistics(tokens, matrix, targets, token_chunk=chunk)["logp"].mean()  # noqa: E731
        return np.float32(jit(jax.grad(total))(jnp.bfloat16(matrix)))

    np.testing.assert_allclose(gradient(1), gradient(256), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(("options", "message"), [
    ({"needs": ("entropi",)}, "entropi.*known are"),
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"needs": ("value",)}, "value.*bare apply"),
])  # fmt: skip
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make_scorer(lambda params, tokens, positions, segments: None, **options)


def test_memory_of_scored_logp_is_a_fraction_of_the_logits():
    """B=8, T=1024, V=151936, D=1024: temporaries of value and gradient stay below 15% of the float32 logits."""
    rows, width, vocabulary, depth = 8, 1024, 151936, 1024
    policy = types.SimpleNamespace(
        hidden=lambda params, tokens, positions, segments: params["hidden"], unembedding=lambda params: params["matrix"]
    )

    def loss(params, tokens):
        return make_scorer(policy)(params, Batch(tokens=tokens, mask=jnp.ones(tokens.shape))).logp.sum()

    params = {
        "hidden": jax.ShapeDtypeStruct((rows, width, depth), jnp.float32),
        "matrix": jax.ShapeDtypeStruct((vocabulary, depth), jnp.float32),
    }
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, jax.ShapeDtypeStruct((rows, width), jnp.int32)).compile()
    logits = 4 * rows * width * vocabulary
    share = compiled.memory_analysis().temp_size_in_bytes / logits
    print(f"temporaries: {100 * share:.1f}% of the logits")
    assert share < 0.15


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_capped_logits_in_values_and_gradients(temperature):
    """The chunked rule with a cap, against softmax of capped logits differentiated by jax."""
    random = np.random.default_rng(4)
    hidden, matrix = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((2, 5, 8), (23, 8)))
    targets, names = random.integers(0, 23, (2, 5)), ("logp", "entropy", "mean_logp")
    shares = jnp.asarray(random.normal(size=(3, 2, 5)), jnp.float32)

    def plain(hidden, matrix):
        logp = jax.nn.log_softmax(2.0 * jnp.tanh(hidden @ matrix.T / 2.0) / temperature)
        taken = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
        return jnp.stack([taken, -(jnp.exp(logp) * logp).sum(-1), logp.mean(-1)])

    def chunked(hidden, matrix):
        chunks = {"token_chunk": 4, "vocabulary_chunk": 7}
        needs = frozenset(names[1:])
        found = token_statistics(hidden, matrix, targets, temperature, needs, softcap=2.0, **chunks)
        return jnp.stack([found[name] for name in names])

    np.testing.assert_allclose(chunked(hidden, matrix), plain(hidden, matrix), atol=1e-5)
    expected, found = (jax.grad(lambda *x, f=f: (shares * f(*x)).sum(), (0, 1))(hidden, matrix) for f in (plain, chunked))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_the_cap_of_a_network_reaches_its_scores():
    capped = decoder(dataclasses.replace(CONFIG, logit_softcap=0.5))
    params = jax.tree.map(lambda leaf: 3 * leaf, capped.init(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 7))
    batch = Batch(tokens=tokens, mask=np.ones(tokens.shape, np.float32))
    logp = jax.nn.log_softmax(capped.apply(params, tokens))[:, :-1]
    expected = np.take_along_axis(np.asarray(logp), tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(make_scorer(capped)(params, batch).logp[:, 1:], expected, atol=1e-5)
    assert np.ptp(capped.apply(params, tokens)) <= 1.0


DENSE = frozenset({"candidate_logp", "log_collision", "top_entropy:0.4"})


def with_candidates(batch: Batch) -> Batch:
    ids = np.random.default_rng(6).integers(-1, 32, (*batch.tokens.shape, 4)).astype(np.int32)
    return dataclasses.replace(batch, extras={"candidates": ids})


def test_dense_statistics(network, monkeypatch):
    """Against loops in float64, one token at a time in the chunked path; and the gradients of both paths."""
    monkeypatch.setattr("jaxrl_llm.dense.LOGITS", 100)  # chunks of one token of each row, and of several
    batch = with_candidates(packed_batch())
    both = [make_scorer(policy, DENSE, temperature=0.7) for policy in (network, network.apply)]

    def run(score):
        def total(params):
            scores = score(params, batch)
            known = jnp.where(batch.extras["candidates"] >= 0, scores.candidate_logp, 0.0)
            return jnp.sum(known) + 2 * jnp.sum(scores.log_collision) - jnp.sum(scores.top_entropy), scores

        return jit(jax.grad(total, has_aux=True))(network.params)

    (gradients, scores), (bare_gradients, _) = run(both[0]), run(both[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + np.abs(b).max())), gradients, bare_gradients
    )
    logits = np.asarray(jit(network.apply)(network.params, batch.tokens, batch.positions, batch.segment), np.float64) / 0.7
    for b, t in np.ndindex(*batch.tokens.shape):
        if batch.segment[b, t] == 0 or batch.positions[b, t] == 0:
            assert not scores.log_collision[b, t] and not scores.top_entropy[b, t] and not scores.candidate_logp[b, t].any()
            continue
        logp = logits[b, t - 1] - np.log(np.exp(logits[b, t - 1]).sum())
        np.testing.assert_allclose(scores.log_collision[b, t], np.log(np.exp(2 * logp).sum()), rtol=1e-4, atol=1e-5)
        kept = np.sort(logp)[int(0.4 * len(logp)) :]
        share = np.exp(kept) / np.exp(kept).sum()
        np.testing.assert_allclose(scores.top_entropy[b, t], -(share * np.log(share)).sum(), rtol=1e-4)
        for found, number in zip(scores.candidate_logp[b, t], batch.extras["candidates"][b, t], strict=True):
            assert found == -np.inf if number < 0 else abs(found - logp[number]) < 1e-4


def test_candidates_are_picked_alike_for_any_packing(network):
    batch, key = packed_batch(), jax.random.key(3)
    rollout = np.array([[4, 4, 4, 7, 7, 7, 7, 0], [2] * 8], np.int32)
    batch = dataclasses.replace(batch, rollout=rollout)
    for pick in (sampled(count=5), top(count=3)):
        packed = jit(make_picker(network, pick))(network.params, batch, key)
        bare = jit(make_picker(network.apply, pick))(network.params, batch, key)
        np.testing.assert_array_equal(packed, bare)
        part = Batch(tokens=batch.tokens[:1, 3:7], mask=np.ones((1, 4), np.float32), rollout=rollout[:1, 3:7])
        alone = jit(make_picker(network, pick))(network.params, part, key)
        np.testing.assert_array_equal(alone[0, 1:], packed[0, 4:7])


def test_dense_statistics_without_candidates(network):
    with_them = with_candidates(packed_batch())
    both = [
        jit(make_scorer(network, {"log_collision", "top_entropy:0.4"}))(network.params, batch)
        for batch in (packed_batch(), with_them)
    ]
    np.testing.assert_array_equal(both[0].top_entropy, both[1].top_entropy)
    assert both[0].log_collision.any()
    with pytest.raises(ValueError, match="candidate_logp needs batch.extras\\['candidates'\\]"):
        make_scorer(network, DENSE)(network.params, packed_batch())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_largest_logp_is_that_of_the_likeliest_token_and_has_no_gradient(network, temperature):
    batch = packed_batch()
    logits = np.asarray(network.apply(network.params, batch.tokens, batch.positions, batch.segment), np.float64) / temperature
    expected = np.roll((logits - np.logaddexp.reduce(logits, -1, keepdims=True)).max(-1), 1, axis=1)
    for policy in (network, network.apply):
        score = make_scorer(policy, {"max_logp"}, temperature=temperature)
        found, slope = jit(jax.value_and_grad(lambda params, score=score: score(params, batch).max_logp.sum()))(network.params)
        largest = np.asarray(score(network.params, batch).max_logp)
        np.testing.assert_allclose(largest, np.where(largest == 0, 0.0, expected), atol=1e-5)
        assert (largest < 0).sum() == 12 and np.isfinite(found)
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slope))


def test_values_of_bare_functions():
    """What a function expects after reading a token is the value of the state before the next one."""
    batch = Batch(tokens=np.array([[1, 2, 3], [4, 5, 0]]), mask=np.ones((2, 3)), segment=np.array([[1, 1, 2], [1, 1, 0]]))

    def value(params, tokens, positions, segments):
        return params["scale"] * tokens

    def logits(params, tokens, positions, segments):
        return jnp.zeros((*tokens.shape, 8))

    expected = [[0.0, 2.0, 0.0], [0.0, 8.0, 0.0]]
    shared = make_scorer(logits, {"value"}, value=value)({"scale": 2.0}, batch)
    apart = actor_critic_scorer(make_scorer(logits), value)({"policy": {}, "critic": {"scale": 2.0}}, batch)
    assert shared.value.tolist() == apart.value.tolist() == expected
    with pytest.raises(ValueError, match="bare function gives 'value' alone"):
        actor_critic_scorer(make_scorer(logits), value, {"value_outputs"})
    with pytest.raises(ValueError, match=r"values of shape \(2, 3, 1\)"):
        wide = actor_critic_scorer(make_scorer(logits), lambda params, tokens, *rest: tokens[..., None])
        wide({"policy": {}, "critic": {}}, batch)
