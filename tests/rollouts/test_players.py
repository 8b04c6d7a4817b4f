"""Whoever speaks in episodes: when rows wait and go on, what they read, and what that leaves as it is."""

import functools
import itertools
import time
from concurrent import futures

import jax
import numpy as np
from rollouts.test_episodes import COUNTING, LONG, count_begin, played, player
from rollouts.test_requests import NETWORK, PARAMS, TOKENIZER, answers

from jaxrl_llm.environments import Environment, Transition
from jaxrl_llm.networks import DecoderConfig, ExpertsConfig, decoder
from jaxrl_llm.rollouts import Request, players
from jaxrl_llm.sampling import engine, turns


def sleeping(environment, **settings):
    """The environment, asked by a thread, which takes another time for each batch."""
    own, thread, naps = (
        played(environment, **settings),
        futures.ThreadPoolExecutor(1),
        itertools.cycle((0.0, 0.06, 0.002, 0.02)),
    )

    def step(states, said):
        def asleep(seconds):
            time.sleep(seconds)
            return own.step(states, said)()

        return thread.submit(asleep, next(naps)).result

    return own._replace(step=step)


def assert_same(one, other, bits=True):
    assert answers(one) == answers(other) and one.records == other.records
    close = np.testing.assert_array_equal if bits else functools.partial(np.testing.assert_allclose, atol=1e-5)
    close(one.rollouts.behavior_logp, other.rollouts.behavior_logp)


# Turns of unlike lengths; of twelve rows five are played at a time.
RAGGED = [Request(f"{digit}+2=", {"prompt": f"{digit}+2="}, digit, group=digit, samples=3) for digit in range(4)]


def ragged(environment, **settings):
    source = player(environment, tokens=2 * LONG, **settings)
    source.sampling["slots"] = 5
    return source.sample(RAGGED)


def test_how_long_an_environment_takes_changes_no_bit():
    """Who comes back when is decided by tokens; who is there with others, in which slot and when, by nothing but rounding."""
    soon = ragged(played(COUNTING, turn_tokens=9))
    assert len({record["length"] for record in soon.records}) > 4
    assert_same(ragged(sleeping(COUNTING, turn_tokens=9)), soon)
    for overlap in (0, 1, 200):
        assert_same(ragged(sleeping(COUNTING, turn_tokens=9, overlap=overlap)), soon, bits=False)
    alone = [player(played(COUNTING, turn_tokens=9), tokens=2 * LONG) for _ in range(4)]
    for number, (source, request) in enumerate(zip(alone, RAGGED, strict=True)):
        source.sampled = 3 * number
        assert answers(source.sample([request])) == answers(soon)[3 * number : 3 * number + 3]


def test_others_speak_while_somebody_waits():
    """An environment that answers only once it is waited for: by then others have drawn as many tokens as `overlap` says."""
    own, drawn, waits = played(COUNTING, turn_tokens=9), [], []
    source = player(own._replace(step=None), tokens=2 * LONG)

    def step(states, said):
        begun, find = source.sampled_tokens, own.step(states, said)
        return lambda: waits.append(len(said)) or drawn.append(source.sampled_tokens - begun) or find()

    source.environment = own._replace(step=step, overlap=4)
    source.sample(RAGGED)
    assert sum(waits) == 12 * 3 and max(drawn) > 4 and len(waits) > 3


def test_a_turn_reads_what_is_new_and_more_turns_make_no_more_programs(monkeypatch):
    """Prompts once for all samples; then the token that was said last, and the reply but for its last one."""
    engines, made = [], players.standing
    monkeypatch.setattr(players, "standing", lambda *a, **k: engines.append(made(*a, **k)) or engines[-1])
    endless = Environment(count_begin, lambda state, text: Transition(state, "+1+"))

    def programs():
        return [one._cache_size() for one in (turns.placed, turns.kept, turns.extended, engine.run, engine.widened)]

    found, counts = [], []
    for most in (4, 7):
        found.append(player(played(endless, turn_tokens=4, turns=most), tokens=60).sample(RAGGED))
        counts.append(programs())
    assert [record["turns"] for record in found[1].records] == [7] * 12 and counts[0] == counts[1]
    # Four prompts of four tokens each, and replies of three tokens.
    assert [one.tokens_read for one in engines] == [4 * 3 + 12 * 3 * 3, 4 * 3 + 12 * 6 * 3]
    # Few rows are read at a time, or many.
    monkeypatch.setattr(turns, "ROWS", 2)
    again = player(played(endless, turn_tokens=4, turns=4), tokens=60).sample(RAGGED)
    assert_same(again, found[0], bits=False)


def test_newer_parameters_go_on_within_episodes():
    """From the column on in which they come; what those of before have read stays."""
    older, newer = ({"policy": lambda who=who: (NETWORK, PARAMS[who])} for who in ("policy", "reference"))
    source = player(played(COUNTING, turn_tokens=6), tokens=60, policies=older)
    source.in_flight = 9, lambda: {"policies": newer, "version": 5}
    found, alone = source.sample(RAGGED[:1]), player(played(COUNTING, turn_tokens=6), tokens=60).sample(RAGGED[:1])
    rollouts, versions = found.rollouts, []
    for row, start in enumerate(found.prompt_length):
        own = rollouts.version[row, start : rollouts.length[row]]
        versions.append(own[rollouts.mask[row, start : rollouts.length[row]] > 0].tolist())
        assert versions[-1] == sorted(versions[-1]) and {4, 5} == set(versions[-1])
        assert answers(found)[row][: versions[-1].count(4)] == answers(alone)[row][: versions[-1].count(4)]
    assert source.now == 5 and max(own.count(4) for own in versions) <= 9 and answers(found) != answers(alone)


def test_experts_are_told_of_all_tokens_that_were_read():
    sizes = {"vocab_size": TOKENIZER.vocab_size, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2}
    network = decoder(DecoderConfig(**sizes, num_kv_heads=1, experts=ExpertsConfig(count=4, per_token=2, width=8)))
    params = jax.tree.map(lambda leaf: 3 * leaf, network.init(jax.random.key(0)))
    source = player(played(COUNTING, turn_tokens=5), policies={"policy": lambda: (network, params)})
    source.sampling["record_routes"] = True
    rollouts = source.sample(RAGGED[:2]).rollouts
    _, routing = jax.jit(network.routed)(params, rollouts.tokens)
    expected = np.moveaxis(np.asarray(routing.experts), 0, 2)
    for row, length in enumerate(rollouts.length):
        np.testing.assert_array_equal(rollouts.extras["routes"][row, : length - 1], expected[row, : length - 1])
        assert (rollouts.extras["routes"][row, length - 1 :] == -1).all()
