"""Episodes: what is sampled in each turn, what stands where in the rows, and how they end."""

import dataclasses
import functools
import json
import pickle
import zlib

import jax
import numpy as np
import pytest
from data.tiny_tokenizers import write_huggingface
from rollouts.test_requests import LIMIT, TOKENIZER, answers, io, sampled

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.environments import Environment, Transition
from jaxrl_llm.environments.base import read_transition, resetting, stepping
from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.rewards import NAMED
from jaxrl_llm.rollouts import Request, fork, grouped
from jaxrl_llm.rollouts.episodes import Played

LONG = 24


def played(environment, **settings):
    """An environment that is asked here, by the wire that workers write on; what it raises is a fault."""

    def each(call, *columns):
        found = []
        for values in zip(*columns, strict=True):
            try:
                (text,) = call(*([value] for value in values))
            except RuntimeError as error:
                found.append(str(error))
            else:
                found.append(read_transition(json.loads(json.dumps(text))))
        return found

    def step(states, said):
        found = each(lambda said, state: stepping(environment)(completions=said, state=state), said, states)
        return lambda: found

    reset = functools.partial(each, resetting(environment))
    return Played(reset, step, environment.tools, environment.stop, environment.roles, **settings)


def count_begin(example, seed):
    return {"turns": 0, "seed": seed}, None


def count_step(state, text):
    """Three turns; each reply is the number of the turn behind a sign, each reward the number of characters."""
    state = state | {"turns": state["turns"] + 1}
    if text.startswith(state.get("raises", "none")):
        raise RuntimeError("broken")
    facts = {"calls": int(state["turns"] == 2), "first_call": 1, "letters": len(text)}
    return Transition(state, f"+{state['turns']}", float(len(text)), state["turns"] == 3, facts)


COUNTING = Environment(count_begin, count_step)


def environment_rewards(prompts, completions, columns, groups):
    return np.array(
        [[np.nan if x is None else x] for x in NAMED["environment"](prompts, completions, columns["environment_reward"])]
    )


def player(environment, tokens=LONG, **changes):
    sampling = {"max_new_tokens": tokens, "temperature": 1.0, "stop_ids": TOKENIZER.stop_ids}
    settings = {"sampling": sampling, "rewards": environment_rewards, "environment": environment}
    return io(**(settings | changes))


def by_hand(prompt, uid, turns, most):
    """Tokens of an episode of `COUNTING`, who said them (-1 the environment), and what was said in each turn."""
    ids, whose, said = TOKENIZER.encode(prompt), [], []
    start = len(ids)
    for turn in range(turns):
        (new,) = sampled(ids, [uid], max_new_tokens=most)
        ids, whose = ids + new, whose + [turn] * len(new)
        said.append(TOKENIZER.decode(new[:-1] if new[-1] == TOKENIZER.eos_id else new, skip_special_tokens=False))
        if turn < turns - 1:
            reply = TOKENIZER.encode(f"+{turn + 1}")
            ids, whose = ids + reply, whose + [-1 - turn] * len(reply)
    return ids[start:], whose, said


def test_turns_follow_each_other_as_by_hand():
    requests = [Request("1+2=", {"prompt": "1+2="}, 5, group=0, samples=2), Request("3-1=", {"prompt": "3-1="}, 9, group=4)]
    found = player(played(COUNTING, turn_tokens=4)).sample(requests)
    rollouts, said = found.rollouts, answers(found)
    for row, (prompt, uid) in enumerate((("1+2=", 0), ("1+2=", 1), ("3-1=", 2))):
        ids, whose, texts = by_hand(prompt, uid, 3, 4)
        start = int(found.prompt_length[row])
        own = slice(start, start + len(ids))
        assert said[row] == ids
        assert rollouts.mask[row, own].tolist() == [float(who >= 0) for who in whose]
        # What the environment says belongs to the turn that reads it.
        assert rollouts.turn[row, own].tolist() == [who if who >= 0 else -who for who in whose]
        last = [max(place for place, who in enumerate(whose) if who == turn) for turn in range(3)]
        expected = np.zeros(len(ids))
        expected[last[:2]] = [len(text) for text in texts[:2]]
        assert rollouts.token_rewards[row, own].tolist() == expected.tolist() and not rollouts.token_rewards[row, :start].any()
        assert rollouts.rewards[row].tolist() == [len(texts[2])]
        assert found.records[row]["turn_rewards"] == [len(text) for text in texts]
        assert (found.records[row]["turns"], found.records[row]["ended"]) == (3, "done")
        # The call begins with the second character of the second turn, behind the actions of the first.
        assert rollouts.extras["first_call"][row] == whose.count(0) + 1 and rollouts.extras["calls"][row] == 1
        assert rollouts.extras["letters"][row] == len(texts[2])
        seen = [zlib.crc32(json.dumps(text).encode()) >> 1 for text in (prompt, "+1", "+2")]
        ends = [0, start + last[0] + 1, start + last[1] + 1, start + last[2] + 1]
        for begin, end, state in zip(ends[:-1], ends[1:], seen, strict=True):
            assert (rollouts.extras["state"][row, begin:end] == state).all()
    assert rollouts.group.tolist() == [0, 0, 1] and rollouts.extras["role"].tolist() == [0, 0, 0]
    assert (rollouts.behavior_logp[rollouts.mask == 0] == 0).all()


def test_slots_and_company_do_not_change_an_episode():
    requests = [Request(f"{digit}+2=", {"prompt": f"{digit}+2="}, digit, group=digit) for digit in range(4)]
    environment = played(COUNTING, turn_tokens=4)
    together, source = player(environment).sample(requests), player(environment)
    source.sampling["slots"] = 1
    alone = source.sample(requests)
    assert answers(together) == answers(alone)
    np.testing.assert_allclose(together.rollouts.behavior_logp, alone.rollouts.behavior_logp, atol=1e-5)
    late = player(environment)
    late.sampled = 3
    assert answers(late.sample(requests[3:])) == answers(together)[3:]


def test_rows_end_where_there_is_no_room_or_no_turn_left():
    request = Request("1+2=", {"prompt": "1+2="}, 5)
    cut = player(played(COUNTING, turn_tokens=4, turns=2)).sample([request])
    assert cut.records[0]["ended"] == "turns" and cut.records[0]["turns"] == 2
    assert cut.rollouts.rewards[0].tolist() == [cut.records[0]["turn_rewards"][1]]
    full = player(played(COUNTING), LIMIT).sample([dataclasses.replace(request, limit=6)])
    assert full.records[0]["ended"] in ("length", "done") and full.records[0]["length"] <= 6


def test_a_fault_ends_its_row_alone():
    firsts = [by_hand("1+2=", uid, 1, 4)[2][0][:1] for uid in range(4)]
    broken = firsts[0]
    environment = Environment(lambda example, seed: ({"turns": 0, "raises": broken}, None), count_step)
    found = player(played(environment, turn_tokens=4)).sample([Request("1+2=", {"prompt": "1+2="}, 5, samples=4)])
    for row, record in enumerate(found.records):
        failed = record["ended"] == "failed"
        assert failed == (found.rollouts.valid[row] == 0) == np.isnan(found.rollouts.rewards[row]).all()
        assert not failed or record["fault"] == "broken"
    assert found.records[0]["ended"] == "failed"


def test_a_reply_that_cannot_be_encoded_ends_its_row():
    environment = Environment(count_begin, lambda state, text: Transition(state, "what?"))
    found = player(played(environment, turn_tokens=4)).sample([Request("1+2=", {"prompt": "1+2="}, 5, samples=2)])
    assert found.rollouts.valid.tolist() == [0, 0] and "not in the alphabet" in found.records[0]["fault"]
    assert found.records[0]["turns"] == 1 and found.rollouts.mask[0].sum() > 0


def test_prompts_that_nobody_can_read_cost_their_rows():
    for prompt, words in (("1" * 9, "9 tokens, more than max_prompt_tokens = 8"), ("what?", "not in the alphabet")):
        environment = Environment(lambda example, seed, prompt=prompt: ({"turns": 0}, prompt), count_step)
        found = player(played(environment)).sample([Request("1+2=", {"prompt": "1+2="}, 5)])
        assert found.rollouts.valid.tolist() == [0] and words in found.records[0]["fault"]


def test_an_environment_that_does_not_begin_costs_its_rows():
    def begin(example, seed):
        raise RuntimeError("no world")

    source = player(played(Environment(begin, count_step)))
    found = source.sample([Request("1+2=", {"prompt": "1+2="}, 5, samples=2)])
    assert found.rollouts.valid.tolist() == [0, 0] and found.records[0]["fault"] == "no world"
    with pytest.raises(ValueError, match="example 5: no world"):
        source.sample([Request("", {}, 5)])
    with pytest.raises(ValueError, match="given completions"):
        source.sample([Request("1", {"completion": "2"}, by="given")])


def test_equal_examples_begin_equally_in_every_step():
    seeds = []

    def begin(example, seed):
        seeds.append(seed)
        return {"turns": 2}, None

    environment = played(Environment(begin, count_step), turn_tokens=2)
    for step in (4, 5):
        player(environment, step=step).sample([Request("1", {"prompt": "1"}, number) for number in (7, 8)])
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]


def cards_begin(example, seed):
    return ("left", "right"), "1=", 0


def cards_step(state, text):
    """Role 0 speaks, then role 1, then role 0 again; each reads what the other said."""
    said = (*state, text)
    if len(said) == 5:
        return Transition(said, reward=0.5, done=True, outcome=(2.0, -2.0))
    return Transition(said, f"2{text}=" if len(said) == 3 else f";{text}", 0.25, role=1 if len(said) == 3 else 0)


def test_roles_read_what_they_are_told_and_share_an_outcome():
    environment = played(Environment(cards_begin, cards_step, roles=2), turn_tokens=2)
    found = player(environment).sample([Request("9", {"prompt": "9"}, 3, group=6, samples=2)])
    assert found.rollouts.extras["role"].tolist() == [0, 1, 0, 1]
    assert found.rollouts.group.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found.rollouts.rewards[:, 0], [2.5, -1.75, 2.5, -1.75])
    for episode in (0, 2):
        first, second = answers(found)[episode : episode + 2]
        texts = [TOKENIZER.decode(sampled(TOKENIZER.encode("1="), [episode], max_new_tokens=2)[0])]
        texts += [TOKENIZER.decode(sampled(TOKENIZER.encode(f"2{texts[0]}="), [episode + 1], max_new_tokens=2)[0])]
        assert TOKENIZER.decode(second) == texts[1]
        assert TOKENIZER.decode(first).startswith(f"{texts[0]};{texts[1]}")
        assert found.records[episode]["turns"] == 2 and found.records[episode + 1]["turns"] == 1
    opposed = player(played(Environment(cards_begin, cards_step, roles=2), turn_tokens=2, by=("", "reference")))
    kept = opposed.sample([Request("9", {"prompt": "9"}, 3, samples=2)])
    assert kept.rollouts.extras["role"].tolist() == [0, 0] and kept.rollouts.source.tolist() == [0, 0]


def test_an_environment_may_end_turns_by_a_text():
    stopping = Environment(count_begin, lambda state, text: Transition(state, "+", done=len(text) < 2), stop=("1", "2", "3"))
    found = player(played(stopping, turns=4), tokens=LONG).sample([Request("1+2=", {"prompt": "1+2="}, 5, samples=4)])
    for row, record in enumerate(found.records):
        ids, mask = answers(found)[row], found.rollouts.mask[row, found.prompt_length[row] : found.rollouts.length[row]]
        said = [TOKENIZER.decode([token]) for token, own in zip(ids, mask, strict=True) if own]
        # A turn ends with the first of the texts: as many stand in it as there are turns, or its end was another.
        assert sum(text in "123" and text != "" for text in said) <= record["turns"]
    assert any(record["turns"] > 1 for record in found.records)


def test_a_fork_goes_on_with_the_state_of_its_turn():
    source = player(played(COUNTING, turn_tokens=4))
    found = source.sample([Request("1+2=", {"prompt": "1+2="}, 5)])
    turns, start = found.requests[0].episode, int(found.prompt_length[0])
    within = fork(found, 0, start + turns[1].begin + 1)
    assert [turn.begin for turn in within.episode] == [turn.begin for turn in turns[:2]]
    assert pickle.loads(within.episode[1].state)["turns"] == 1 and within.episode[0] == turns[0]
    # Behind the end of a turn the reply follows, which is what is forked from.
    behind = fork(found, 0, start + turns[0].end)
    assert len(behind.prefix.tokens) == turns[1].begin and len(behind.episode) == 2
    again = source.sample([within, behind])
    assert [record["turns"] for record in again.records] == [3, 3]
    assert again.records[0]["turn_rewards"][0] == found.records[0]["turn_rewards"][0]
    head = answers(found)[0][: turns[1].begin + 1]
    assert answers(again)[0][: len(head)] == head and answers(again)[1][: len(head) - 1] == head[:-1]
    # An unchanged row of noise goes on as it did: the fork of row 0 by its own number gives the row again.
    same = player(played(COUNTING, turn_tokens=4)).sample([behind])
    assert answers(same) == answers(found)


def test_strategies_play_without_knowing():
    examples = [{"prompt": f"{digit}="} for digit in range(6)]

    def drawing(cursor, count, weights):
        return examples[cursor : cursor + count], list(range(cursor, cursor + count)), cursor + count

    source = player(played(COUNTING, turn_tokens=3), drawing=drawing, cursor=0)
    strategy = grouped(samples=2)
    found, _, _ = strategy.run(source, strategy.init(), 2)
    assert found.rollouts.group.tolist() == [0, 0, 1, 1] and [record["turns"] for record in found.records] == [3] * 4


CHATTY = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def chat_begin(example, seed):
    return 0, [{"role": "user", "content": "the cat"}]


def chat_step(state, text):
    return Transition(state + 1, [{"role": "tool", "content": "on the mat"}], done=state == 1)


def test_chats_go_on_from_the_ids_that_were_sampled(tmp_path):
    tokenizer = dataclasses.replace(load_tokenizer(write_huggingface(tmp_path)), chat_template=CHATTY)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    network = decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **sizes))
    params = network.init(jax.random.key(0))
    sampling = {"max_new_tokens": 80, "temperature": 1.0, "stop_ids": tokenizer.stop_ids}
    source = player(
        played(Environment(chat_begin, chat_step), turn_tokens=5), tokenizer=tokenizer, sampling=sampling, max_prompt_tokens=40,
        policies={"policy": lambda: (network, params)},
    )  # fmt: skip
    found = source.sample([Request("", {}, 1)])
    ids = np.array(answers(found)[0])
    mask = found.rollouts.mask[0, found.prompt_length[0] : found.rollouts.length[0]]
    told = tokenizer.decode(ids[mask == 0], skip_special_tokens=False)
    ended = ids[:5][mask[:5] > 0][-1] in tokenizer.stop_ids
    assert told == ("" if ended else "<|im_end|>") + "\n<|im_start|>tool\non the mat<|im_end|>\n<|im_start|>assistant\n"
    assert found.records[0]["turns"] == 2
