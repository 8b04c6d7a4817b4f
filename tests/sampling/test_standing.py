"""The standing engine: whoever comes, and whenever, a sample is that of `generate`."""

import numpy as np
import pytest
from rollouts.test_requests import NETWORK, PARAMS, TOKENIZER

from jaxrl_llm.sampling import RUNNING, generate
from jaxrl_llm.sampling.standing import Asked, admit, advance, give_up, go_on, keep, standing

PROMPTS = [TOKENIZER.encode(text) for text in ("1+2=", "3", "45-6=", "7+8+9+1+2+3+4=5-6", "0=")]
LIMITS = (30, 5, 90, 12, 40)


def engine(slots):
    return standing(
        NETWORK.without_params(), PARAMS["policy"], slots=slots, vocab_size=TOKENIZER.vocab_size, stop_ids=TOKENIZER.stop_ids
    )


def alone(number, **options):
    options = {"max_new_tokens": LIMITS[number], "stop_ids": TOKENIZER.stop_ids, "seed": number, "uids": [0]} | options
    found = generate(NETWORK, PARAMS["policy"], [PROMPTS[number]], **options)
    return found.tokens[0, : found.length[0]].tolist(), found.tempered_logp[0, : found.length[0]], int(found.finish_reason[0])


def asked(number, **options):
    return Asked(PROMPTS[number], LIMITS[number], (number, 0, 0), **options)


def taken(own, waiting, columns):
    """Tokens, log-probabilities and reasons of requests by number; one comes each time, if there is a slot."""
    found, running = {}, {}
    while waiting or running:
        if waiting and not own.busy.all():
            number = waiting.pop(0)
            (slot,) = admit(own, [asked(number)])
            running[slot] = number
            found[number] = [], [], RUNNING
        for drawn in advance(own, columns):
            tokens, logp, _ = found[running[drawn.slot]]
            found[running[drawn.slot]] = tokens + drawn.tokens, logp + drawn.numbers[1].tolist(), drawn.reason
            if drawn.reason != RUNNING:
                del running[drawn.slot]
    return found


@pytest.mark.parametrize(("slots", "columns"), [(2, 7), (3, 16)])
def test_samples_are_those_of_generate_whoever_else_is_there(slots, columns):
    own = engine(slots)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        for number, (tokens, logp, reason) in taken(own, list(order), columns).items():
            ids, expected, why = alone(number)
            assert (tokens, reason) == (ids, why)
            np.testing.assert_allclose(logp, expected, atol=2e-5)
        assert not own.busy.any() and advance(own) == []


def test_slots_that_are_given_up_take_others():
    own = engine(1)
    admit(own, [asked(max(range(5), key=lambda number: len(alone(number)[0])))])
    advance(own, 1)
    with pytest.raises(ValueError, match="0 idle slots"):
        admit(own, [asked(0)])
    give_up(own, 0)
    assert admit(own, [asked(3, temperature=0.0)]) == [0]
    tokens = []
    while own.busy.any():
        tokens += [token for drawn in advance(own) for token in drawn.tokens]
    assert tokens == alone(3, temperature=0.0)[0]
    with pytest.raises(ValueError, match="top_p is 2"):
        admit(own, [asked(0, top_p=2.0)])
    assert not own.busy.any()


REPLIES = ([], TOKENIZER.encode("+1="), TOKENIZER.encode("12;" * 9))


def in_turns(own, numbers, network=NETWORK.without_params()):
    """Three turns of each number, of at most seven tokens: tokens and log-probabilities of the policy, by number."""
    slots = dict(zip(admit(own, [Asked(PROMPTS[number], 7, (3, 4, number)) for number in numbers]), numbers, strict=True))
    found, turn = {number: [] for number in numbers}, dict.fromkeys(numbers, 0)
    said, logp = {number: [] for number in numbers}, {number: [] for number in numbers}
    while own.busy.any():
        for drawn in advance(own, 5, leaving=1):
            number = slots[drawn.slot]
            said[number] += drawn.tokens
            logp[number] += drawn.numbers[0].tolist()
            if drawn.reason == RUNNING:
                continue
            found[number].append((said[number], logp[number]))
            turn[number] += 1
            if turn[number] < 3:
                keep(own, {drawn.slot: len(said[number])})
                new = [said[number][-1], *REPLIES[(turn[number] + number) % 3]]
                said[number], logp[number] = [], []
                go_on(own, {drawn.slot: Asked(new, 7, (3, 4, number))})
    return found


def check_turns(found, network, params):
    """They are those of `generate` behind the whole text."""
    options = {"max_new_tokens": 7, "stop_ids": TOKENIZER.stop_ids, "seed": 3, "step": 4}
    for number, turns in found.items():
        text = list(PROMPTS[number])
        for place, (tokens, logp) in enumerate(turns):
            expected = generate(network, params, [text], uids=[number], **options)
            assert tokens == expected.tokens[0, : expected.length[0]].tolist()
            np.testing.assert_allclose(logp, expected.logp[0, : len(tokens)], atol=3e-5)
            text += [*tokens, *REPLIES[(place + 1 + number) % 3]]


def test_turns_go_on_behind_what_their_slots_hold():
    own = engine(4)
    check_turns(in_turns(own, [0, 3, 1]), NETWORK, PARAMS["policy"])
    read = own.tokens_read
    assert check_turns(in_turns(own, [4, 2]), NETWORK, PARAMS["policy"]) is None and own.tokens_read > read
