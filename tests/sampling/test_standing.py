"""The standing engine: whoever comes, and whenever, a sample is that of `generate`."""

import numpy as np
import pytest
from rollouts.test_requests import NETWORK, PARAMS, TOKENIZER

from jaxrl_llm.sampling import RUNNING, generate
from jaxrl_llm.sampling.standing import Asked, admit, advance, give_up, standing

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
    return Asked(PROMPTS[number], LIMITS[number], seed=number, **options)


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
            found[running[drawn.slot]] = tokens + drawn.tokens, logp + drawn.logp, drawn.reason
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
