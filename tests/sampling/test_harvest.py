"""Parameters that change while they sample: what was drawn and read before stays, and others draw the rest."""

import collections
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.networks import from_apply
from jaxrl_llm.networks.past import Sight
from jaxrl_llm.sampling import LENGTH, STOP, Changing, generate, harvest

VOCAB = 61
LIMITS = [3, 150, 1, 90, 20, 7, 64, 2, 33, 110]


def changing(column, older, newer):
    """With a list of the columns that were asked for."""
    asked = []

    def given(column):
        asked.append(column)
        return newer if column else older

    return Changing(column, given), asked


def in_turn(tables, column, slots, stop_ids):
    """What `slots` slots draw, one column after the other, of best tokens by a table of bigrams: texts and first tokens."""
    waiting, texts, older = collections.deque(range(len(LIMITS))), [[] for _ in LIMITS], [0] * len(LIMITS)
    at_work, columns = [waiting.popleft() for _ in range(slots)], 0
    while any(request is not None for request in at_work):
        table = tables[int(columns >= column)]
        for slot, request in enumerate(at_work):
            if request is None:
                continue
            before = texts[request][-1] if texts[request] else request + 1
            texts[request].append(int(np.argmax(table[before])))
            older[request] += columns < column
            if len(texts[request]) == LIMITS[request] or texts[request][-1] in stop_ids:
                at_work[slot] = waiting.popleft() if waiting else None
        columns += 1
    return texts, older, columns


@pytest.mark.parametrize("column", [1, 70, 128])
@pytest.mark.parametrize("told", [False, True])
def test_columns_before_are_of_the_first_and_columns_behind_of_the_others(column, told):
    """Of a network that sees the last token alone, on slots that take one request after the other, wider and wider."""
    random = np.random.default_rng(0)
    tables = np.stack([np.eye(VOCAB, dtype=np.float32)[random.permutation(VOCAB)] for _ in range(2)])
    network = from_apply(lambda params, tokens: params[tokens])
    stop_ids, prompts = [27], [[30, number + 1] for number in range(len(LIMITS))]
    params, asked = changing(column, *map(jnp.asarray, tables))
    texts, older, columns = in_turn(tables, column, 3, stop_ids)
    seen = []
    samples = generate(
        network, params, prompts, max_new_tokens=150, limits=LIMITS, temperature=0.0, stop_ids=stop_ids, slots=3,
        finished=(lambda numbers, found: seen.extend(numbers)) if told else None,
    )  # fmt: skip
    assert columns > harvest.FIRST_WIDTH and asked.count(column) == (column < columns) and set(asked) <= {0, column}
    assert [row[:length].tolist() for row, length in zip(samples.tokens, samples.length, strict=True)] == texts
    assert samples.older.tolist() == older if column < columns else samples.older is None
    ends = [STOP if text[-1] in stop_ids else LENGTH for text in texts]
    assert samples.finish_reason.tolist() == ends and sorted(seen) == (list(range(len(LIMITS))) if told else [])


def test_parameters_of_before_are_let_go_before_the_others_come(network, params):
    held, alive = [jax.tree.map(jnp.copy, params)], []
    first = weakref.ref(held[0]["head"])

    def given(column):
        if column:
            held.clear()
            gc.collect()
            alive.append(first())
        return held[0] if held else params

    samples = generate(network, Changing(4, given), [[9, 10]], max_new_tokens=9, temperature=0.0)
    assert alive == [None] and samples.length == 9


def test_keys_and_values_stay(network, params):
    """Against steps by hand: the context and the first tokens were read by the first parameters, the rest by the others."""
    prompt, column, count = [9, 10, 11, 12], 4, 9
    newer = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    contexts, _ = network.read(params, jnp.asarray([prompt]), jnp.asarray([3]))
    step = jax.jit(lambda params, *given: network.step(params, network.each_layer(params), *given))
    tails, token, tokens, logp = network.init_tails(1, 16), prompt[-1], [], []
    for number in range(count):
        own = newer if number >= column else params
        sight = Sight(
            position=jnp.asarray([3 + number]), cell=jnp.asarray([0]), lengths=jnp.asarray([3]), start=jnp.asarray([0]),
            column=jnp.asarray(number), origin=jnp.asarray([3]), places=1,
        )  # fmt: skip
        hidden, tails, _ = step(own, jnp.asarray([token]), contexts, tails, sight)
        logits = np.asarray(network.unembed(own, hidden)[0], np.float64)
        token = int(np.argmax(logits))
        tokens.append(token)
        logp.append(logits[token] - np.log(np.exp(logits).sum()))
    options = {"max_new_tokens": count, "temperature": 0.0}
    samples = generate(network, changing(column, params, newer)[0], [prompt], **options)
    assert samples.tokens[0].tolist() == tokens and samples.older.tolist() == [column]
    np.testing.assert_allclose(samples.logp[0], logp, atol=1e-5)
    alone = generate(network, params, [prompt], **options)
    np.testing.assert_array_equal(samples.logp[0, :column], alone.logp[0, :column])
    # Not what the others would say of a text that they have read themselves.
    anew = generate(network, newer, [prompt + tokens[:column]], max_new_tokens=1, temperature=0.0)
    assert abs(anew.logp[0, 0] - samples.logp[0, column]) > 1e-3 and alone.older is None
