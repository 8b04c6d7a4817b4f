"""What networks of all kinds say of a forest is what they say of each sequence alone, and so are gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.tiny_policy import jit

from jaxrl_llm.data import pack, pack_forest
from jaxrl_llm.data.packing import unpack
from jaxrl_llm.networks import AdapterConfig, DecoderConfig, ExpertsConfig, decoder, from_apply
from jaxrl_llm.scoring import actor_critic_scorer, make_picker, make_scorer
from jaxrl_llm.types import Rollouts

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
EXPERTS = ExpertsConfig(count=4, per_token=2, width=8)
CONFIGS = {
    "plain": DecoderConfig(**SIZES, value_head=1),
    "windows and caps": DecoderConfig(
        **SIZES, attention_softcap=2.0, logit_softcap=3.0, sliding_window=7, layer_types=("sliding", "full")
    ),
    "experts": DecoderConfig(**SIZES, experts=EXPERTS),
    "adapter": DecoderConfig(**SIZES, adapter=AdapterConfig(pattern="attention|mlp", rank=2, alpha=4.0)),
}


def forked(prompt=60, seed=0, groups=3) -> Rollouts:
    """Prompts with five answers each, two of which part after half of it, two are equal, one is cut short, and one is empty."""
    random, rows = np.random.default_rng(seed), []
    for group in range(groups):
        start = random.integers(0, 40, prompt - group).tolist()
        half = random.integers(0, 40, 9).tolist()
        answers = [half + random.integers(0, 40, 5).tolist(), half + random.integers(0, 40, 8).tolist(), half[:4], []]
        rows += [(start, answer) for answer in [*answers, answers[0]]]
    width = max(len(start) + len(answer) for start, answer in rows)
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for row, (start, answer) in enumerate(rows):
        tokens[row, : len(start) + len(answer)] = start + answer
        mask[row, len(start) : len(start) + len(answer)] = 1
    return Rollouts(
        tokens=tokens, mask=mask, length=np.array([len(start) + len(answer) for start, answer in rows], np.int32),
        rewards=np.zeros((len(rows), 1), np.float32), group=np.arange(len(rows), dtype=np.int32) // 5,
        weight=random.normal(size=mask.shape).astype(np.float32) * mask,
    )  # fmt: skip


def both_ways(scorer, params, rollouts, names, width=320):
    """Statistics [N, T, ...] at the actions, and the gradient of a weighted sum of them all, for sequences and a forest."""
    found = []
    for batch in (pack(rollouts, rollouts.tokens.shape[1]), pack_forest(rollouts, width)):

        def loss(params, batch=batch):
            scores = scorer(params, batch)
            values = {name: getattr(scores, name) for name in names}
            return sum(jnp.sum(batch.weight * value) for value in values.values() if value.ndim == 2), values

        gradient, values = jit(jax.grad(loss, has_aux=True))(params)
        rows = {name: unpack(np.asarray(value), batch, *rollouts.tokens.shape) for name, value in values.items()}
        found.append((jax.tree.map(lambda value: value[rollouts.mask > 0], rows), gradient))
    return found


def assert_equal(one, other):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), one[0], other[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * largest), one[1], other[1])


@functools.cache
def params_of(name):
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape),
        decoder(CONFIGS[name]).init(jax.random.key(0)),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_forest_is_scored_as_its_sequences_are(name):
    """In rows of 320 columns, five blocks."""
    network, rollouts = decoder(CONFIGS[name]), forked()
    needs = {"entropy", "hidden"} | ({"value"} if name == "plain" else {"router_logits"} if name == "experts" else set())
    one, other = both_ways(make_scorer(network, needs), params_of(name), rollouts, ("logp", *sorted(needs)))
    assert_equal(one, other)
    batch = pack_forest(rollouts, 320)
    assert int((batch.forest.reach > 0).sum()) < 0.4 * rollouts.length[rollouts.mask.any(axis=1)].sum()


def test_routes_are_replayed_in_a_forest():
    network, rollouts = decoder(CONFIGS["experts"]), forked()
    random = np.random.default_rng(3)
    # Experts that hang on the token and its place, so that equal beginnings have equal ones.
    table = np.stack([random.permutation(4)[:2] for _ in range(40 * 2)]).reshape(40, 2, 2).astype(np.int32)
    routed = rollouts.replace(extras={"routes": table[rollouts.tokens]})
    scorer = make_scorer(network, replay_routes=True)
    one, other = both_ways(scorer, params_of("experts"), routed, ("logp",))
    assert_equal(one, other)
    free = both_ways(make_scorer(network), params_of("experts"), rollouts, ("logp",))[1]
    assert np.abs(free[0]["logp"] - other[0]["logp"]).max() > 1e-3


def test_critics_and_candidates_read_the_forest_too():
    network, rollouts, params = decoder(CONFIGS["plain"]), forked(), params_of("plain")
    critic = actor_critic_scorer(make_scorer(network), network)
    one, other = both_ways(critic, {"policy": params, "critic": params}, rollouts, ("logp", "value"))
    assert_equal(one, other)
    pick = make_picker(network, lambda logp, tokens, keys: jax.lax.top_k(logp, 3)[1])
    ids = [
        unpack(np.asarray(jit(pick)(params, batch, jax.random.key(0))), batch, *rollouts.tokens.shape)[rollouts.mask > 0]
        for batch in (pack(rollouts, rollouts.tokens.shape[1]), pack_forest(rollouts, 320))
    ]
    np.testing.assert_array_equal(*ids)


def test_a_network_that_takes_segments_alone_refuses_a_forest():
    network = from_apply(lambda params, tokens, positions, segments: jax.nn.one_hot(tokens, 40))
    with pytest.raises(ValueError, match="this network takes segments alone; lay rollouts out by data.pack"):
        make_scorer(network)({}, pack_forest(forked()))
