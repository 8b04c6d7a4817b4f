"""Requests answered by a small network: what is sampled, what is learned of it, and what stays out."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from jaxrl_llm.data import character_tokenizer
from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.networks.combined import combined, geometric
from jaxrl_llm.rollouts import Io, Request, informative_groups, make_prefix, requests_for
from jaxrl_llm.sampling import generate

TOKENIZER = character_tokenizer("0123456789+-=;")
NETWORK = decoder(
    DecoderConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1
    )
)
LIMIT, PROMPT = 8, 8


def params(seed=0):
    made = NETWORK.init(jax.random.key(seed))
    return {**made, "head": 20 * made["head"]}


PARAMS = {"policy": params(), "reference": params(1)}


def length_reward(prompts, completions, columns, groups):
    return np.array([[float(length)] for length in columns["completion_length"]])


def io(**changes):
    settings = {
        "tokenizer": TOKENIZER,
        "policies": {who: lambda who=who: (NETWORK, PARAMS[who]) for who in PARAMS},
        "sampling": {"max_new_tokens": LIMIT, "temperature": 1.0, "stop_ids": TOKENIZER.stop_ids},
        "max_prompt_tokens": PROMPT,
        "seed": 3,
        "step": 4,
        "rewards": length_reward,
    }
    return Io(**(settings | changes))


def answers(collection):
    rollouts = collection.rollouts
    return [rollouts.tokens[row, start : rollouts.length[row]].tolist() for row, start in enumerate(collection.prompt_length)]


def sampled(prompt, uids, who="policy", **options):
    """What `generate` says behind a prompt, as lists."""
    options = {"max_new_tokens": LIMIT, "stop_ids": TOKENIZER.stop_ids, "seed": 3, "step": 4} | options
    found = generate(NETWORK, PARAMS[who], [prompt], num_samples=len(uids), uids=uids, **options)
    return [row[:length].tolist() for row, length in zip(found.tokens, found.length, strict=True)]


def test_requests_are_answered_in_their_order_by_whom_they_ask():
    prompts = ["1+2=", "3+4=", "5="]
    requests = [
        Request(prompts[0], {"prompt": prompts[0]}, 7, group=2, samples=2),
        Request(prompts[1], {"prompt": prompts[1]}, 8, group=0, samples=1, by="reference"),
        Request(prompts[2], {"prompt": prompts[2], "completion": "5"}, 9, group=1, samples=2, by="given"),
        Request(prompts[1], {"prompt": prompts[1]}, 8, group=0, samples=3, temperature=0.0),
    ]
    asked = io()
    collection = asked.sample(requests)
    ids = [TOKENIZER.encode(prompt) for prompt in prompts]
    given = [TOKENIZER.encode("5") + [TOKENIZER.eos_id]] * 2
    greedy = sampled(ids[1], [5], temperature=0.0) * 3
    assert answers(collection) == sampled(ids[0], [0, 1]) + sampled(ids[1], [2], "reference") + given + greedy
    assert asked.sampled_tokens == sum(map(len, answers(collection))) - 2 * len(given[0])
    rollouts = collection.rollouts
    np.testing.assert_array_equal(rollouts.prompt_id, [7, 7, 8, 9, 9, 8, 8, 8])
    # Groups 2, 0 and 1, in order of appearance.
    np.testing.assert_array_equal(rollouts.group, [0, 0, 1, 2, 2, 1, 1, 1])
    np.testing.assert_array_equal(rollouts.source, [0, 0, 1, 1, 1, 0, 0, 0])
    assert rollouts.behavior_logp[2].any() and not rollouts.behavior_logp[3:5].any()
    np.testing.assert_array_equal(rollouts.rewards[:, 0], rollouts.mask.sum(axis=1))
    assert [record["prompt"] for record in collection.records][3:6] == ["5=", "5=", "3+4="]


def test_no_two_samples_of_a_step_share_their_noise():
    asked = io()
    requests = requests_for([{"prompt": "1+2="}], [0], samples=4)
    first, second = answers(asked.sample(requests)), answers(asked.sample(requests))
    assert first != second and asked.sampled == 8
    assert first + second == sampled(TOKENIZER.encode("1+2="), range(8))


def test_a_prefix_stands_in_the_row_and_is_gone_on_from():
    prompt, prefix = TOKENIZER.encode("1+2="), TOKENIZER.encode("12;")
    made = make_prefix(prefix, logp=[-1.0, 0.0, -3.0], mask=[1, 0, 1], version=[2, 0, 3], turn=[0, 1, 1])
    asked = io()
    collection = asked.sample([Request("1+2=", samples=2, prefix=made), Request(prompt)])
    rollouts, new = collection.rollouts, sampled(prompt + prefix, [0, 1], max_new_tokens=LIMIT - 3)
    assert answers(collection) == [prefix + new[0], prefix + new[1], *sampled(prompt, [2])]
    assert asked.sampled_tokens == sum(map(len, answers(collection))) - 2 * len(prefix)
    start = len(prompt)
    np.testing.assert_array_equal(rollouts.mask[0, :12], [0] * start + [1, 0, 1] + [1] * len(new[0]) + [0] * (5 - len(new[0])))
    np.testing.assert_array_equal(rollouts.behavior_logp[0, start : start + 3], [-1, 0, -3])
    np.testing.assert_array_equal(rollouts.version[0, start : start + 4], [2, 0, 3, 4])
    np.testing.assert_array_equal(rollouts.turn[0, start : start + 4], [0, 1, 1, 1])
    assert rollouts.turn[2].max() == 0
    record = collection.records[0]
    assert record["completion"].startswith("12;") and record["length"] == 3 + len(new[0])


def test_a_fork_of_a_row_that_is_complete_leaves_no_room():
    full = make_prefix([1] * LIMIT)
    with pytest.raises(ValueError, match="the prefix of prompt 5 has 8 tokens and leaves no room in max_new_tokens = 8"):
        io().sample([Request("1+2=", prompt_id=5, prefix=full)])


def test_the_learner_may_read_another_prompt_than_the_sampler():
    collection = io().sample([Request("12345=", samples=2, learned_prompt="1="), Request("1=")])
    hint, plain = TOKENIZER.encode("12345="), TOKENIZER.encode("1=")
    expected = sampled(hint, [0, 1])
    assert answers(collection)[:2] == expected
    rollouts = collection.rollouts
    for row, answer in enumerate(expected):
        assert rollouts.tokens[row, : rollouts.length[row]].tolist() == plain + answer
        np.testing.assert_array_equal(np.flatnonzero(rollouts.mask[row]), len(plain) + np.arange(len(answer)))


def test_limits_stops_and_masks_are_those_of_each_request():
    vocabulary = TOKENIZER.vocab_size
    only = np.zeros(vocabulary, bool)
    only[TOKENIZER.encode("7")[0]] = True
    asked = io(sampling={"max_new_tokens": LIMIT, "temperature": 1.0, "detokenize": TOKENIZER.decode})
    requests = [
        Request("1+2=", limit=3),
        Request("1+2=", mask=only, samples=2),
        Request("1+2=", mask=only, stop=("777",)),
        Request("1+2=", samples=2),
    ]
    collection = asked.sample(requests)
    lengths, texts = collection.rollouts.mask.sum(axis=1), [record["completion"] for record in collection.records]
    np.testing.assert_array_equal(lengths, [3, LIMIT, LIMIT, 3, LIMIT, LIMIT])
    assert texts[1:4] == ["7" * LIMIT, "7" * LIMIT, "777"]
    assert [record["finish_reason"] for record in collection.records] == ["length"] * 3 + ["stop"] + ["length"] * 2
    assert answers(collection)[4:] == sampled(TOKENIZER.encode("1+2="), [4, 5], stop_ids=())


def test_the_entropies_of_the_sampler_are_kept_where_they_are_wanted():
    requests = requests_for([{"prompt": "1+2="}], [0], samples=2)
    assert "behavior_entropy" not in io().sample(requests).rollouts.extras
    rollouts = io(keeps_entropy=True).sample(requests).rollouts
    logp = np.asarray(jax.nn.log_softmax(jax.jit(NETWORK.apply)(PARAMS["policy"], rollouts.tokens)), np.float64)
    expected = np.roll(-(np.exp(logp) * logp).sum(axis=-1), 1, axis=1) * rollouts.mask
    np.testing.assert_allclose(rollouts.extras["behavior_entropy"], expected, atol=2e-5)


def test_rewards_come_when_they_are_asked_for():
    asked = io()
    collection = asked.sample(requests_for([{"prompt": "1+2="}], [0], samples=2), rewarded=False)
    assert np.isnan(collection.rollouts.rewards).all() and collection.records[0]["rewards"] is None
    assert not len(informative_groups(collection.rollouts))
    rewarded = asked.reward(collection)
    np.testing.assert_array_equal(rewarded.rollouts.rewards[:, 0], collection.rollouts.mask.sum(axis=1))
    assert [record["rewards"] for record in rewarded.records] == rewarded.rollouts.rewards.tolist()


def test_a_view_scores_the_answers_behind_another_prompt():
    seen = []

    def statistics(rollouts, by, names):
        seen.append((by, names))
        logits = jax.nn.log_softmax(jax.jit(NETWORK.apply)(PARAMS[by], rollouts.tokens))
        taken = np.take_along_axis(np.asarray(logits)[:, :-1], rollouts.tokens[:, 1:, None], axis=-1)[..., 0]
        return {"logp": np.pad(taken, ((0, 0), (1, 0))) * (np.arange(rollouts.tokens.shape[1]) < rollouts.length[:, None])}

    asked = io(statistics=statistics)
    collection = asked.sample([Request("1=", samples=2), Request("1+2=", samples=1)])
    plain = asked.score(collection, "policy")["logp"]
    mask = collection.rollouts.mask > 0
    np.testing.assert_allclose(plain[mask], collection.rollouts.behavior_logp[mask], atol=2e-5)
    viewed = asked.score(collection, "policy", view=lambda request: "12345=")["logp"]
    ids = TOKENIZER.encode("12345=")
    for row, answer in enumerate(answers(collection)):
        text = np.array([ids + answer])
        logits = np.asarray(jax.nn.log_softmax(NETWORK.apply(PARAMS["policy"], text)))[0]
        expected = [logits[len(ids) + place - 1, token] for place, token in enumerate(answer)]
        np.testing.assert_allclose(viewed[row][mask[row]], expected, atol=2e-5)
        assert not viewed[row][~mask[row]].any()
    assert seen == [("policy", ("logp",))] * 2


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (lambda: Request("1=", samples=0), "Request.samples is 0; it must be at least 1"),
        (lambda: Request("1=", limit=0), "Request.limit is 0; it must be at least 1"),
        (lambda: Request("1=", stop="ab"), "Request.stop is 'ab'; give a tuple of texts"),
        (lambda: Request("1=", by="given", temperature=0.0), "Request.temperature would change nothing: by='given'"),
        (lambda: Request("1=", by="given", stop=("a",)), "Request.stop would change nothing: by='given'"),
        (lambda: Request("1=", by="teacher"), r"Request.by is 'teacher', and this run has \['given', 'policy', 'reference'\]"),
        (lambda: Request("1" * 9, prompt_id=3), "prompt 3 has 9 tokens, more than max_prompt_tokens = 8"),
        (lambda: Request("1=", learned_prompt="1" * 9), "prompt 0 has 9 tokens, more than max_prompt_tokens = 8"),
        (lambda: Request("1=", {"completion": "1" * 9}, 4, by="given"), "the completion of example 4 has 10 tokens"),
    ],
)
def test_impossible_requests_are_refused(request_of, message):
    with pytest.raises(ValueError, match=message):
        io().sample([request_of()])


def test_what_an_io_does_not_have_is_named():
    alone = io(rewards=None)
    collection = alone.sample([Request("1=")], rewarded=False)
    asking = {
        "drawing": lambda: alone.draw(1),
        "rewards": lambda: alone.reward(collection),
        "statistics": lambda: alone.score(collection, "policy"),
    }
    for name, ask in asking.items():
        with pytest.raises(ValueError, match=rf"Io.{name} is None, and this asks for it; give Io\({name}=...\)"):
            ask()
    with pytest.raises(ValueError, match="requests is empty"):
        alone.sample([])
    with pytest.raises(ValueError, match="prompt 7: a prompt is empty"):
        alone.sample(requests_for([{"question": "1+2="}], [7]))


def test_masks_of_the_run_and_of_a_request_both_hold():
    vocabulary = np.arange(TOKENIZER.vocab_size)
    asked = io(sampling={"max_new_tokens": LIMIT, "logit_mask": vocabulary % 2 == 0})
    rollouts = asked.sample([Request("1+2=", mask=vocabulary < 5), Request("1+2=", samples=2)], rewarded=False).rollouts
    tokens = [set(rollouts.tokens[row][rollouts.mask[row] > 0].tolist()) for row in range(3)]
    assert tokens[0] <= {0, 2, 4} and max(tokens[1] | tokens[2]) > 4 and not any(token % 2 for row in tokens for token in row)
    with pytest.raises(ValueError, match="Request.mask has the shapes"):
        asked.sample([Request("1+2=", mask=vocabulary < 5), Request("1+2=", mask=np.ones(3, bool))])


def test_a_prefix_with_numbers_for_other_tokens_is_refused():
    with pytest.raises(ValueError):
        make_prefix([1, 2, 3], logp=[0.0, 0.0])
    made = make_prefix([1, 2, 3])
    with pytest.raises(ValueError, match=r"Prefix.mask has shape \(2,\)"):
        type(made)(made.tokens, made.logp, made.mask[:2], made.version, made.turn)


def test_rows_are_rewarded_while_others_are_sampled_and_nothing_else_changes():
    """Fewer slots than rows, so that some rows are over before others begin."""
    examples = [{"prompt": "1+2=", "answer": "3"}, {"prompt": "3="}]
    requests = [
        *requests_for(examples, [0, 1], samples=9),
        Request("5=", prompt_id=2, group=2, prefix=make_prefix([3, 4])),
        Request("1+2=", {"completion": "3;"}, by="given"),
    ]
    plain = io(sampling={"max_new_tokens": 64, "temperature": 1.0, "stop_ids": TOKENIZER.stop_ids, "slots": 4})
    expected, told = plain.sample(requests), {}

    @contextlib.contextmanager
    def ahead():
        def submit(rows, *asked):
            told[len(told)] = (list(rows), asked)

        def score(*asked):
            told["rest"] = asked
            return length_reward(*asked)

        yield submit, score

    found = dataclasses.replace(plain, ahead=ahead, sampled=0).sample(requests)
    assert found.records == expected.records
    jax.tree.map(np.testing.assert_array_equal, found.rollouts, expected.rollouts)
    prompts, completions, columns, _ = told.pop("rest")
    rows = [row for own, _ in told.values() for row in own]
    # The given row is not sampled.
    assert sorted(rows) == list(range(19)) and len(told) > 1
    for own, asked in told.values():
        whole = (prompts, completions, *columns.values())
        assert [*asked[:2], *asked[2].values()] == [[column[row] for row in own] for column in whole]
        assert asked[2].keys() == columns.keys()


def test_a_mixture_of_two_policies_answers():
    mix = geometric(share=0.5)
    found = io().sample([Request("1+2=", samples=3, beside="reference", mix=mix), Request("1+2=", group=1, samples=2)])
    both = combined(NETWORK, NETWORK, mix)
    params = {"first": PARAMS["policy"], "second": PARAMS["reference"]}
    again = generate(
        both, params, [TOKENIZER.encode("1+2=")], num_samples=3, uids=[0, 1, 2], max_new_tokens=LIMIT, seed=3, step=4,
        stop_ids=TOKENIZER.stop_ids,
    )  # fmt: skip
    assert answers(found)[:3] == [row[:length].tolist() for row, length in zip(again.tokens, again.length, strict=True)]
    np.testing.assert_array_equal(found.rollouts.source, [1, 1, 1, 0, 0])
    start, end = found.prompt_length[0], found.rollouts.length[0]
    np.testing.assert_allclose(found.rollouts.behavior_logp[0, start:end], again.tempered_logp[0, : end - start], atol=1e-6)
    assert answers(found)[3:] == sampled(TOKENIZER.encode("1+2="), [3, 4])
    with pytest.raises(ValueError, match="give both, or neither"):
        Request("1", mix=mix)


def test_newer_parameters_go_on_in_the_first_call_that_is_long_enough():
    newer, asked = {"policy": lambda: (NETWORK, PARAMS["reference"])}, []

    def renewed():
        asked.append("newer")
        return {"policies": newer, "version": 5, "statistics": None}

    made = io(in_flight=(3, renewed))
    requests = [Request("1+2=", {"prompt": "1+2="}, 7, group=0, samples=2, limit=limit) for limit in (2, LIMIT, LIMIT)]
    reference = dataclasses.replace(requests[1], by="reference")
    short, _, long, later = (made.sample([request]) for request in [requests[0], reference, *requests[1:]])
    ids = TOKENIZER.encode("1+2=")
    assert answers(short) == sampled(ids, [0, 1], limits=[2]) and asked == ["newer"] and made.now == 5
    assert answers(later) == sampled(ids, [6, 7], "reference")
    versions = [
        [one.rollouts.version[row, start : one.rollouts.length[row]].tolist() for row, start in enumerate(one.prompt_length)]
        for one in (short, long, later)
    ]
    assert versions[0] == [[4] * len(own) for own in answers(short)] and versions[2] == [
        [5] * len(own) for own in answers(later)
    ]
    assert versions[1] == [[4] * min(len(own), 3) + [5] * max(len(own) - 3, 0) for own in answers(long)]
    alone = sampled(ids, [4, 5])
    assert [own[:3] for own in answers(long)] == [own[:3] for own in alone] and answers(long) != alone
    # Where none is long enough nobody waits for newer ones.
    made = io(in_flight=(3, renewed))
    made.sample([requests[0]])
    assert asked == ["newer"] and made.now == 4
