"""The standing engine: whoever comes, and whenever, a sample is that of `generate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts.test_requests import NETWORK, PARAMS, TOKENIZER

from jaxrl_llm.distributed import for_sampling, sampling_mesh, sharded
from jaxrl_llm.networks import DecoderConfig, ExpertsConfig, decoder, from_apply
from jaxrl_llm.networks.combined import allowed, automaton, combined
from jaxrl_llm.networks.config import DeltaConfig, LatentConfig
from jaxrl_llm.sampling import RUNNING, generate
from jaxrl_llm.sampling import standing as module
from jaxrl_llm.sampling.cacheless import Cacheless
from jaxrl_llm.sampling.standing import Asked, admit, advance, give_up, go_on, keep, standing

PROMPTS = [TOKENIZER.encode(text) for text in ("1+2=", "3", "45-6=", "7+8+9+1+2+3+4=5-6", "0=")]
LIMITS = (30, 5, 90, 12, 40)


def engine(slots):
    sizes = {"slots": slots, "vocab_size": TOKENIZER.vocab_size, "context": 300}
    return standing(NETWORK.without_params(), PARAMS["policy"], stop_ids=TOKENIZER.stop_ids, **sizes)


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
VOCAB = TOKENIZER.vocab_size
SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


def in_turns(own, numbers):
    """Three turns of each number, of at most seven tokens: their texts with log-probabilities and experts, by number."""
    slots = dict(zip(admit(own, [Asked(PROMPTS[number], 7, (3, 4, number)) for number in numbers]), numbers, strict=True))
    found, parts = {number: [] for number in numbers}, {number: [] for number in numbers}
    while own.busy.any():
        for drawn in advance(own, 5, leaving=1):
            number = slots[drawn.slot]
            parts[number].append(drawn)
            if drawn.reason == RUNNING:
                continue
            said = [token for part in parts[number] for token in part.tokens]
            logp = np.concatenate([part.numbers[0] for part in parts[number]])
            found[number].append((said, logp, [part.routes for part in parts[number]]))
            parts[number].clear()
            if len(found[number]) < 3:
                keep(own, {drawn.slot: len(said)})
                new = [said[-1], *REPLIES[(len(found[number]) + number) % 3]]
                go_on(own, {drawn.slot: Asked(new, 7, (3, 4, number))})
    return found


def check_turns(found, network, params, **options):
    """They are those of `generate` behind the whole text."""
    options = {"max_new_tokens": 7, "stop_ids": TOKENIZER.stop_ids, "seed": 3, "step": 4} | options
    for number, turns in found.items():
        text, experts = list(PROMPTS[number]), []
        for place, (tokens, logp, routes) in enumerate(turns):
            expected = generate(network, params, [text], uids=[number], **options)
            assert tokens == expected.tokens[0, : expected.length[0]].tolist()
            np.testing.assert_allclose(logp, expected.logp[0, : len(tokens)], atol=2e-4)
            experts += routes
            if expected.routes is not None:
                known = np.concatenate([expected.prompt_routes[0, : len(text)], expected.routes[0, : len(tokens) - 1]])
                np.testing.assert_array_equal(np.concatenate(experts), known)
            text += [*tokens, *REPLIES[(place + 1 + number) % 3]]


def test_turns_go_on_behind_what_their_slots_hold():
    own = engine(4)
    found = in_turns(own, [0, 3, 1])
    check_turns(found, NETWORK, PARAMS["policy"])
    # Prompts but for their last tokens, then what was said last and all but the last token of the reply.
    replies = [REPLIES[(turn + number) % 3] for number in found for turn in (1, 2)]
    assert own.tokens_read == sum(len(PROMPTS[number]) - 1 for number in found) + sum(map(len, replies))
    before = own.tokens_read
    check_turns(in_turns(own, [4, 2, 1]), NETWORK, PARAMS["policy"])
    assert own.tokens_read > before


def kinds_of(kind):
    """A network of that kind, with parameters."""
    if kind == "cacheless":
        return Cacheless(NETWORK.apply), PARAMS["policy"]
    options = {
        "windows": {"sliding_window": 5, "layer_types": ("sliding", "full"), "attention_softcap": 3.0},
        "experts": {"experts": ExpertsConfig(count=4, per_token=2, width=8)},
        "sinks": {
            "sinks": True,
            "num_layers": 3,
            "sliding_window": 4,
            "reusing_layers": 1,
            "per_layer_width": 6,
            "per_layer_vocab": VOCAB,
        },
        "latent": {"latent": LatentConfig(rank=6, query_rank=5, plain_dim=4, rotary_dim=4, value_dim=3), "num_kv_heads": 4},
        "states": {
            "delta": DeltaConfig(key_heads=2, value_heads=4, key_dim=4, value_dim=6),
            "layer_types": ("delta", "full"),
            "attention_gate": True,
        },
    }
    network = decoder(DecoderConfig(**SIZES | options.get(kind, {})))
    # Logs of decays that are thrice as large make sums in which rounding shows.
    params = jax.tree.map(lambda leaf: leaf if kind == "states" else 3 * leaf, network.init(jax.random.key(1)))
    if kind != "automaton":
        return network, params
    # A number of digits is even: the automaton has to know all that came before.
    table = np.tile(np.arange(2, dtype=np.int32)[:, None], (1, VOCAB))
    digits = TOKENIZER.encode("0123456789")
    table[:, digits] = [[1], [0]]
    table[1, TOKENIZER.encode("+")] = -2
    both = {"first": params, "second": {"next": jnp.asarray(table)}}
    return combined(network, automaton(VOCAB), allowed()), both


@pytest.mark.parametrize("kind", ["windows", "experts", "automaton", "cacheless", "sinks", "latent", "states"])
def test_turns_of_other_networks(kind):
    network, params = kinds_of(kind)
    routed = kind == "experts"
    own = standing(network, params, slots=2, vocab_size=VOCAB, context=40, stop_ids=TOKENIZER.stop_ids, record_routes=routed)
    plain = from_apply(NETWORK.apply) if kind == "cacheless" else network
    check_turns(in_turns(own, [0, 3]), plain, params, record_routes=routed)


@pytest.mark.parametrize(("kind", "tensor"), [("dense", 1), ("dense", 2), ("experts", 1)])
def test_turns_on_a_mesh(kind, tensor, monkeypatch):
    """Eight devices: each has slots of its own, or two share the heads of some. Contexts become wider."""
    monkeypatch.setattr(module, "FIRST_CONTEXT", 16)
    network, params = kinds_of(kind)
    mesh = sampling_mesh(np.array(jax.devices()), tensor, 2 if kind == "experts" else 1)
    with sharded(mesh):
        copy = for_sampling(network, params, mesh)
        own = standing(network, copy, slots=9, vocab_size=VOCAB, context=60, stop_ids=TOKENIZER.stop_ids)
        assert len(own.busy) == (16 if tensor == 1 else 12)
        found = in_turns(own, [0, 3, 1, 2, 4])
    check_turns(found, network, params)


def test_requests_may_forbid_tokens_each_for_itself():
    own, mask = engine(2), np.arange(VOCAB) < 5
    admit(own, [asked(0), asked(1, mask=mask)])
    drawn = {one.slot: one.tokens for one in advance(own, 4)}
    expected = [alone(number, **({"logit_mask": mask} if number else {}))[0][:4] for number in (0, 1)]
    assert [drawn[0], drawn[1]] == expected and max(drawn[1]) < 5
    give_up(own, 1)
    admit(own, [asked(2)], slots=[1])
    assert {one.slot: one.tokens for one in advance(own, 4)}[1] == alone(2)[0][:4]
    with pytest.raises(ValueError, match="3 requests for"):
        admit(own, [asked(0), asked(1), asked(2)])
