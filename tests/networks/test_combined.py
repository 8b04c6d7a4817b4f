"""Combined networks: what is sampled is what is scored, and both are the mixture that is written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.networks.combined import (
    allowed,
    automaton,
    behind,
    by_entropy,
    combined,
    geometric,
    guided_by,
    of_first,
    residual,
    tempered,
    walked,
    within_top,
)
from jaxrl_llm.sampling import generate

VOCABULARY = 12


def small(layers, **changes):
    return decoder(
        DecoderConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_layers=layers,
            num_heads=2,
            num_kv_heads=1,
            **changes,
        )
    )


FIRST, SECOND = small(1), small(2)


def params_of(network, seed):
    made = network.init(jax.random.key(seed))
    return {**made, "head": 20 * made["head"]}


PARAMS = {"first": params_of(FIRST, 0), "second": params_of(SECOND, 1)}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain(mix, logits, second):
    p, q = softmax(logits), softmax(second)
    if mix == "geometric":
        mixture = p**0.75 * q**0.25
    elif mix == "guided_by":
        mixture = q * (p / q) ** 1.5
    elif mix == "residual":
        mixture = p * q
    else:
        mixture = np.zeros_like(p)
        for place in np.ndindex(p.shape[:-1]):
            total = 0.0
            for token in np.argsort(-q[place], kind="stable"):
                if total >= 0.6:
                    break
                mixture[place][token], total = p[place][token], total + q[place][token]
    return mixture / mixture.sum(-1, keepdims=True)


MIXES = {
    "geometric": geometric(share=0.25),
    "guided_by": guided_by(),
    "residual": residual(),
    "within_top": within_top(mass=0.6),
}


@pytest.mark.parametrize("name", MIXES)
def test_mixtures_are_those_of_probabilities(name):
    logits, second = np.random.default_rng(0).normal(size=(2, 3, 4, VOCABULARY)).astype(np.float32) * 2
    np.testing.assert_allclose(
        softmax(np.asarray(MIXES[name](logits, second))), plain(name, logits, second), rtol=2e-4, atol=1e-6
    )


def scored(network, params, prompt, row):
    """log p of the tokens of a row by the whole text."""
    tokens = jnp.asarray([[*prompt, *row]])
    logp = jax.nn.log_softmax(network.apply(params, tokens).astype(jnp.float32))[0]
    return np.array([logp[len(prompt) - 1 + place, token] for place, token in enumerate(row)])


@pytest.mark.parametrize("name", ["geometric", "within_top"])
def test_the_sampler_says_what_the_scorer_says(name):
    network = combined(FIRST, SECOND, MIXES[name])
    assert combined(FIRST, SECOND, MIXES[name]) is network
    prompts = [[1, 2, 3], [4, 5], [1, 2, 3, 6, 7]]
    found = generate(network, PARAMS, prompts, num_samples=3, max_new_tokens=6, seed=1, slots=4, stop_ids=(0,))
    for row in range(9):
        own = found.tokens[row, : found.length[row]].tolist()
        np.testing.assert_allclose(found.logp[row, : len(own)], scored(network, PARAMS, prompts[row // 3], own), atol=2e-5)
        assert np.isfinite(found.logp[row]).all()


def test_unlike_networks_are_refused():
    with pytest.raises(ValueError, match="12 and 13 tokens"):
        combined(
            FIRST,
            decoder(DecoderConfig(vocab_size=13, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1)),
            residual(),
        )
    with pytest.raises(ValueError, match="first has parameters"):
        combined(FIRST.with_params({}), SECOND, residual())


# Behind a 9: pairs of an even token and the next odd one, then 0 to end.
TABLE = np.full((12, VOCABULARY), -1, np.int32)
TABLE[0, [2, 4, 6]] = [1, 2, 3]
for state, odd in ((1, 3), (2, 5), (3, 7)):
    TABLE[state, odd] = 4
TABLE[4, [2, 4, 6, 0]] = [1, 2, 3, 5]
TABLE[5, :] = 5


def obeys(row):
    if not row or row[-1] != 0:
        row = [*row, 0]
    pairs, end = row[:-1], row[-1]
    return end == 0 and all(a in (2, 4, 6) and b == a + 1 for a, b in zip(pairs[::2], pairs[1::2], strict=False))


def test_an_automaton_constrains_samples_and_scores_alike():
    rules = automaton(VOCABULARY)
    network = combined(FIRST, rules, allowed())
    params = {"first": PARAMS["first"], "second": {"next": behind(jnp.asarray(TABLE), 9)}}
    prompts = [[1, 3, 9], [5, 5, 5, 5, 9], [9]]
    found = generate(network, params, prompts, num_samples=4, max_new_tokens=7, seed=2, slots=3, stop_ids=(0,))
    free = generate(FIRST, PARAMS["first"], prompts, num_samples=4, max_new_tokens=7, seed=2, slots=3, stop_ids=(0,))
    rows = [found.tokens[row, : found.length[row]].tolist() for row in range(12)]
    assert all(obeys(row) for row in rows) and len(set(map(tuple, rows))) > 3
    assert not all(obeys(free.tokens[row, : free.length[row]].tolist()) for row in range(12))
    for row, own in enumerate(rows):
        np.testing.assert_allclose(found.logp[row, : len(own)], scored(network, params, prompts[row // 4], own), atol=2e-5)


def test_an_automaton_begins_anew_in_each_segment():
    rules, params = automaton(VOCABULARY), {"next": jnp.asarray(TABLE)}
    tokens, positions = jnp.asarray([[2, 3, 4, 5, 6]]), jnp.asarray([[0, 1, 0, 1, 2]])
    finite = np.isfinite(np.asarray(rules.apply(params, tokens, positions)))[0]
    expected = [[3], [0, 2, 4, 6], [5], [0, 2, 4, 6], [7]]
    assert [np.flatnonzero(row).tolist() for row in finite] == expected


def waits(table, marker, tokens):
    """The state of the table that runs behind the marker, or None while the text waits for it, read token by token."""
    state, seen = None, []
    for token in tokens:
        if state is not None and (table[state] == state).all():  # an end, behind which it waits
            state, seen = None, []
        if state is not None:
            state, seen = (int(table[state, token]), seen) if table[state, token] >= 0 else (None, [token])
        else:
            seen = [*seen, token]
        if state is None and tuple(seen[-len(marker) :]) == marker:
            state = 0
    return state


@pytest.mark.parametrize("marker", [(9,), (9, 8), (9, 9, 8)])
def test_an_automaton_waits_for_a_marker_of_several_tokens(marker):
    table = np.asarray(behind(TABLE, *marker))
    random, reached = np.random.default_rng(0), set()
    for _ in range(300):
        tokens = random.choice([0, 2, 3, 4, 5, 8, 9, 9], size=8).tolist() + [*marker] * random.integers(2)
        tokens += random.choice([0, 2, 3, 9], size=random.integers(5)).tolist()
        state, expected = walked(table, tokens), waits(TABLE, marker, tokens)
        reached.add(expected)
        assert state < len(marker) if expected is None else state == len(marker) + expected
    assert reached >= {None, 0, 1, 4}


def test_temperatures_follow_the_entropy_in_sampling_and_scoring():
    rule = by_entropy(strength=0.5, centre=-1.0, width=2.0)
    logits = np.random.default_rng(1).normal(size=(5, VOCABULARY)).astype(np.float32) * 3
    logits[0, 1:] = -np.inf  # a certain token
    for found, row in zip(np.asarray(rule(logits)), logits, strict=True):
        p = softmax(row.astype(np.float64))
        entropy = -sum(x * np.log(x) for x in p if x > 0)
        height = -1.0 if entropy == 0 else min(max((np.log(entropy) + 1.0) / 2.0, -1.0), 1.0)
        np.testing.assert_allclose(found, row / (1 + 0.5 * height), rtol=1e-5)
    network = tempered(FIRST, rule)
    assert tempered(FIRST, rule) is network and network.hidden is None
    found = generate(network, PARAMS["first"], [[1, 2, 3]], num_samples=3, max_new_tokens=5, seed=1, slots=4, stop_ids=(0,))
    for row in range(3):
        own = found.tokens[row, : found.length[row]].tolist()
        np.testing.assert_allclose(found.logp[row, : len(own)], scored(network, PARAMS["first"], [1, 2, 3], own), atol=2e-5)


def test_the_first_part_of_the_parameters_is_a_network_by_itself():
    network, tokens = of_first(FIRST), jnp.asarray([[1, 2, 3]])
    np.testing.assert_array_equal(network.hidden(PARAMS, tokens), FIRST.hidden(PARAMS["first"], tokens))
    assert of_first(FIRST) is network and network.value is None and network.step is None
    assert network.init(jax.random.key(0))["first"].keys() == PARAMS["first"].keys()
