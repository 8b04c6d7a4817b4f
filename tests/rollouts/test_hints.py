"""Strategies under other prompts, with made-up samples and with real ones: what is asked, learned and read."""

import dataclasses

import numpy as np
import pytest
from rollouts.test_strategies import Source
from rollouts.texts import collection_of

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.rollouts import Request, contrasted, doubled, escalated, relabelled, self_taught, staged, steered
from jaxrl_llm.rollouts.views import View, at_home, moved_behind, seen_behind, taken_views, templated, with_view

BYTES = load_tokenizer("bytes")


class Hinted(Source):
    """Its samples are right where `table(prompt, prompt_id, sample)` says so; its examples have a solution."""

    def __init__(self, table, step=0, **columns):
        super().__init__(None)
        self.by_prompt, self.step, self.tokenizer = table, step, BYTES
        self.known = {"solution": "abcdefgh"} | columns

    def drawn(self, cursor, count, weights):
        examples, numbers, cursor = super().drawn(cursor, count, weights)
        return [example | self.known for example in examples], numbers, cursor

    def sample(self, requests, *, rewarded=True):
        prompts = iter([(request.prompt, request.prompt_id, n) for request in requests for n in range(request.samples)])
        self.table = lambda number, sample: self.by_prompt(*next(prompts))
        return super().sample(requests, rewarded=rewarded)


def step(strategy, source, prompts=2):
    return strategy.run(source, strategy.init(), prompts)[::2]


LEVELS = (("{prompt} hint {part}", "solution", 0.25), ("{prompt} hint {part}", "solution", 0.5))


def test_groups_without_a_right_answer_are_asked_with_longer_and_longer_hints():
    # Prompt 0 is solved at once, prompt 1 under the second hint, prompt 2 never.
    source = Hinted(lambda prompt, number, n: number == 0 or (number == 1 and prompt == "1 hint abcd" and n == 2))
    found, metrics = step(escalated(samples=3, levels=LEVELS), source, 3)
    asked = [[request.prompt for request in requests] for requests in source.asked]
    assert asked == [["0", "1", "2"], ["1 hint ab", "2 hint ab"], ["1 hint abcd", "2 hint abcd"]]
    assert found.rollouts.group.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert found.rollouts.rewards[:, 0].tolist() == [1, 1, 1, 0, 0, 1, 0, 0, 0]
    assert [request.prompt for request in found.requests][3:] == ["1 hint abcd"] * 3 + ["2 hint abcd"] * 3
    assert metrics["hints/asked"] == pytest.approx(2 / 3)


def test_one_row_gives_way_to_a_right_one_under_the_least_hint():
    source = Hinted(lambda prompt, number, n: "hint abcd" in prompt and number == 0)
    found, _ = step(escalated(samples=3, levels=LEVELS, replaced="one", learned="plain"), source)
    assert found.rollouts.rewards[:, 0].tolist() == [1, 0, 0, 0, 0, 0]
    assert [request.prompt for request in found.requests] == ["0 hint abcd", "0", "0", "1", "1", "1"]
    assert found.requests[0].learned_prompt == "0" and found.requests[1].learned_prompt is None
    assert all(request.samples == 1 for request in source.asked[1])
    # The hinted row has another sampler than the prompt that is learned.
    assert found.rollouts.source.tolist() == [1, 0, 0, 0, 0, 0]
    hinted, _ = step(escalated(samples=3, levels=LEVELS, replaced="one"), source)
    assert not hinted.rollouts.source.any()


def test_no_hints_in_the_warm_up_and_none_without_a_text_to_make_them_of():
    never = Hinted(lambda *_: False)
    step(escalated(levels=LEVELS, warmup_steps=1), never)
    assert len(never.asked) == 1
    with pytest.raises(ValueError, match="example 0 has no text in the column 'plan'"):
        step(escalated(levels=(("{part}", "plan", 1.0),)), Hinted(lambda *_: False))
    with pytest.raises(ValueError, match=r"escalated: replaced is 'all'; it must be one of \('group', 'one'\)"):
        escalated(replaced="all")


def test_steered_groups_hold_plain_and_guided_rows():
    source = Hinted(lambda prompt, number, n: "like" in prompt and number == 1, demonstration="so")
    found, metrics = step(steered(samples=2, guided=1, template="like {demonstration}: {prompt}", rejects_wrong=True), source)
    plain, guided = source.asked[0][:2], source.asked[0][2:]
    assert [request.prompt for request in guided] == ["like so: 0", "like so: 1"] and [r.samples for r in guided] == [1, 1]
    assert [request.learned_prompt for request in guided] == ["0", "1"] and [r.samples for r in plain] == [2, 2]
    assert found.rollouts.source.tolist() == [0, 0, 0, 0, 1, 1]
    assert found.rollouts.valid.tolist() == [1, 1, 1, 1, 0, 1]  # the guided row of prompt 0 is wrong
    assert metrics == {"hints/right": 0.5}
    hinted, _ = step(steered(samples=2, learned="hinted", template="{prompt}"), Hinted(lambda *_: False))
    assert not hinted.rollouts.source.any() and hinted.rollouts.valid.all()


def test_stages_follow_the_step_and_begin_completions():
    stages = ((10, "long {prompt}", ""), (0, "short {prompt}", "ab"))
    early, late = Hinted(lambda *_: False, step=9), Hinted(lambda *_: False, step=10)
    assert step(staged(samples=2, stages=stages), early)[1] == {"stage": 1.0}
    assert [request.prompt for request in early.asked[0]] == ["short 0", "short 1"]
    assert early.asked[0][0].prefix.tokens.tolist() == BYTES.encode("ab") and not early.asked[0][0].prefix.mask.any()
    step(staged(samples=2, stages=stages), late)
    assert late.asked[0][0].prompt == "long 0" and late.asked[0][0].prefix is None
    with pytest.raises(ValueError, match="one must begin at step 0"):
        step(staged(stages=((10, "{prompt}", ""),)), early)


def test_a_teacher_reads_another_right_answer_of_the_group():
    texts = ["aa", "bb", "cc", "dd"]

    class Told(Hinted):
        def sample(self, requests, *, rewarded=True):
            found = super().sample(requests, rewarded=rewarded)
            return dataclasses.replace(found, records=[{"completion": text} for text in texts])

    source = Told(lambda prompt, number, n: number == 0)
    found, metrics = step(self_taught(samples=2, template="{prompt}|{solution}"), source)
    rollouts, views = taken_views(found.rollouts)
    assert set(views) == {"proximal"} and not rollouts.extras
    read = [BYTES.decode(prompt) for prompt in views["proximal"].prompts]
    assert read == ["0|bb", "0|aa", "1", "1"]
    assert rollouts.valid.tolist() == [1, 1, 0, 0] and metrics == {"taught": 0.5}
    plain, _ = step(self_taught(samples=2, template="{prompt}|{solution}", untaught="plain"), Told(source.by_prompt))
    plain, again = taken_views(plain.rollouts)
    assert plain.valid.all() and again["proximal"].prompts == views["proximal"].prompts


def test_templates_say_what_is_missing():
    assert templated([{"role": "user", "content": "q"}], "{prompt}!{x}", {"x": 1}, BYTES) == [
        {"role": "user", "content": "q!1"}
    ]
    with pytest.raises(ValueError, match=r"'\{hint\}' asks for 'hint', and this prompt has \['answer'\]"):
        templated("q", "{hint}", {"answer": "1", "hint": None}, BYTES)
    with pytest.raises(ValueError, match="token ids"):
        templated([1, 2], "{prompt}", {}, BYTES)


def test_views_move_completions_and_bring_what_is_said_of_them_back():
    found = collection_of("ab", "cde")
    candidates = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    rollouts = found.rollouts.replace(extras={"candidates": candidates})
    view = View([[7, 8, 9], [7]], found.prompt_length)
    moved = seen_behind(rollouts, view)
    assert moved.tokens[0, :5].tolist() == [7, 8, 9, *BYTES.encode("ab")] and moved.length.tolist() == [5, 4]
    assert moved.mask[0, :6].tolist() == [0, 0, 0, 1, 1, 0] and moved.mask[1, :5].tolist() == [0, 1, 1, 1, 0]
    np.testing.assert_array_equal(moved.extras["candidates"][0, 3:5], candidates[0, 1:3])
    back = at_home(moved.extras["candidates"], rollouts, view)
    np.testing.assert_array_equal(back[0, 1:3], candidates[0, 1:3])
    assert not back[:, 0].any()
    kept, views = taken_views(with_view(rollouts, "teacher", view))
    assert list(kept.extras) == ["candidates"] and views["teacher"].prompts == [[7, 8, 9], [7]]


def test_rows_can_be_learned_behind_other_prompts():
    found = collection_of("ab", "cde", prompt="???")
    logp = np.where(found.rollouts.mask > 0, -1.5, 0.0)
    moved = moved_behind(found, [BYTES.encode("?"), BYTES.encode("!!")], BYTES, logp)
    assert BYTES.decode(moved.rollouts.tokens[0, :3]) == "?ab" and BYTES.decode(moved.rollouts.tokens[1, :5]) == "!!cde"
    assert moved.rollouts.length.tolist() == [3, 5] and moved.prompt_length.tolist() == [1, 2]
    assert moved.rollouts.behavior_logp[0, :4].tolist() == [0, -1.5, -1.5, 0]
    assert moved.requests[1].prompt == BYTES.encode("!!")
    with pytest.raises(ValueError, match="raise task.max_prompt_tokens"):
        moved_behind(found, ["a long prompt", "?"], BYTES, logp)


def scored(found, by, names, view=None):
    return {"logp": np.full(found.rollouts.tokens.shape, -2.0, np.float32) * found.rollouts.mask}


def test_hindsight_rows_are_right_and_stand_alone_and_doubled_rows_share_their_group():
    class Told(Hinted):
        def sample(self, requests, *, rewarded=True):
            found = collection_of("1", "22", "x=3", "4", prompt="????")
            rewards = np.array([[1], [0], [0], [0]], np.float32)
            rollouts = found.rollouts.replace(rewards=rewards, group=np.array([0, 0, 1, 1], np.int32))
            return dataclasses.replace(found, rollouts=rollouts, requests=[Request("????")] * 4)

        def score(self, *arguments, **options):
            return scored(*arguments, ("logp",))

    found, metrics = step(relabelled(samples=2, template="{achieved}"), Told(None))
    assert found.rollouts.source.tolist() == [0] * 4 + [1] * 3 and metrics["hindsight/rows"] == 0.75
    assert found.rollouts.group.tolist() == [0, 0, 1, 1, 4, 5, 6] and found.rollouts.rewards[4:, 0].tolist() == [1, 1, 1]
    texts = [BYTES.decode(row[:length]) for row, length in zip(found.rollouts.tokens, found.rollouts.length, strict=True)]
    assert [text[-len(own) :] for text, own in zip(texts[4:], ["22", "x=3", "4"], strict=True)] == ["22", "x=3", "4"]
    twice, _ = step(doubled(samples=2, template="!{prompt}"[:1]), Told(None))
    assert twice.rollouts.group.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    seen, _ = step(contrasted(samples=2, template="-"), Told(None))
    assert taken_views(seen.rollouts)[1]["proximal"].prompts[0][-1:] == BYTES.encode("-")
