"""Rewards and facts that networks of the run give: judges, likelihoods of answers, hidden states."""

import dataclasses
import json

import numpy as np
import pytest
from training.tiny_runs import assert_a_fault_changes_nothing, failing_at, finish, finished, tiny_config

from jaxrl_llm.rollouts import Collection, Request, asking, likelihoods
from jaxrl_llm.training import loop, reinforcement
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.run import open_run
from jaxrl_llm.types import Rollouts

JUDGE = {"template": "{prompt}{completion}=", "pattern": "([0-9])", "max_tokens": 6}


@dataclasses.dataclass
class Listening:
    """An `Io` whose policy says what a rule makes of each question."""

    rule: object
    asked: list = dataclasses.field(default_factory=list)


def collection_of(texts, groups, rewards, answers=None):
    zeros = np.zeros((len(texts), 2), np.int32)
    rows = Rollouts(
        tokens=zeros, length=np.full(len(texts), 2), mask=zeros.astype(np.float32), group=np.array(groups, np.int32),
        rewards=np.array(rewards, np.float32)[:, None],
    )  # fmt: skip
    records = [{"prompt": "q", "completion": text, "length": 1} for text in texts]
    requests = [Request("q", {"prompt": "q", "answer": answer}) for answer in answers or ["x"] * len(texts)]
    return Collection(rows, records, requests, np.ones(len(texts), np.int32))


def judged(monkeypatch, rule, collection, **options):
    asked = []

    def said(most, temperature, io, by, questions):
        asked.extend(questions)
        return list(map(rule, questions))

    monkeypatch.setattr(asking, "_said", said)
    return asking.policy_judge(**options)(None, collection), asked


def longer(question):
    first, second = (part.split("\n")[1] for part in question.split("Answer ")[1:3])
    return "Better: " + ("A" if len(first) > len(second) else "B" if len(first) < len(second) else "C")


def test_pairs_are_those_of_a_group_and_anchors_are_answers(monkeypatch):
    rows = collection_of(["a", "bbb", "cc", "d", "eeee"], [0, 1, 0, 1, 0], np.zeros(5), ["aa"] * 5)
    told, asked = judged(monkeypatch, longer, rows, scope="pair")
    assert told.values == [0.0, 1.0, 0.5, 0.0, 1.0] and len(asked) == 6 + 2
    assert [len(own) for own in told.notes] == [2, 1, 2, 1, 2]
    told, asked = judged(monkeypatch, longer, rows, scope="anchor")
    assert told.values == [0.0, 1.0, 0.5, 0.0, 1.0] and len(asked) == 10


def test_steps_are_scored_where_all_fail(monkeypatch):
    texts = ["one\n\ntwo\n\nthree", "one\ntwo", "one\ntwo", "alone"]
    rows = collection_of(texts, [0, 0, 1, 1], [0.0, 0.0, 1.0, 0.0])

    def rule(question):
        return "Steps: " + ", ".join("-1" if "two" in part.split("\n")[1] else "1" for part in question.split("Step ")[1:])

    told, asked = judged(monkeypatch, rule, rows, scope="steps", where="failed")
    assert told.values == [1 / 3, 0.5, 0.0, 0.0] and len(asked) == 2 and told.notes[2] is None
    spans, _ = judged(monkeypatch, rule, rows, scope="spans")
    assert spans.values[0] == [[0.0, 3.0, 1.0], [5.0, 8.0, -1.0], [10.0, 15.0, 1.0]]
    assert spans.values[3] == [[0.0, 5.0, 1.0]]
    assert judged(monkeypatch, lambda _: "Steps: 1", rows, scope="steps")[0].values == [None, None, None, 1.0]
    right, asked = judged(monkeypatch, lambda _: "Score: 0.5", rows, where="right")
    assert right.values == [0.0, 0.0, 0.5, 0.0] and len(asked) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "crowd"}, "scope is 'crowd'"),
        ({"labels": ("A",)}, "labels is"),
        ({"scope": "group", "labels": ("A", "B")}, "labels is"),
        ({"scope": "pair", "where": "right"}, "where is 'right'"),
        ({"pattern": "x"}, "no group in brackets"),
    ],
)
def test_impossible_judges_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        asking.policy_judge(**options)


def judging(by, **options):
    config = tiny_config("grpo", kl_coefficient=0.0)
    config.rewards.names = ("training.tiny_rewards:shortness", "policy_judge")
    config.rewards.options = {"policy_judge": JUDGE | {"by": by} | options}
    return config


@pytest.mark.parametrize("by", ["policy", "reference", "folder"])
def test_policies_of_a_run_judge_its_rows(by, tmp_path):
    folder = str(finished("grpo").workdir) if by == "folder" else by
    done = finish(judging(folder), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "completions/step_000001.jsonl").read_text().splitlines()]
    assert all(len(line["policy_judge"]) == 1 for line in lines)
    found = [line["rewards"][1] for line in lines]
    assert any(value is not None for value in found)
    for line, value in zip(lines, found, strict=True):
        digits = [letter for letter in line["policy_judge"][0] if letter.isdigit()]
        assert value == (float(digits[-1]) if digits else None)
    assert np.isfinite(done.metrics[-1]["loss"])


def test_a_judge_that_never_answers_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match="the reward 'policy_judge' is missing for all"):
        config = judging("policy", pattern="(x)")
        config.rewards.names = ("policy_judge",)
        loop.train(config, tmp_path)


def test_what_evaluations_cannot_ask_is_refused():
    config = tiny_config("grpo")
    config.rewards.names = ("gold_likelihood",)
    with pytest.raises(ValueError, match=r"config\.rewards\.names\[0\] is 'gold_likelihood', which scores rows"):
        check_config(config)
    config.evaluation.reward = "arithmetic"
    check_config(config)
    config.rewards.options = {"gold_likelihood": {"by": "teacher"}}
    with pytest.raises(ValueError, match=r"set config\.teacher\.directory"):
        check_config(config)


def test_likelihoods_and_states_are_those_of_the_network(tmp_path):
    """Against the network itself on rows that are laid out by hand."""
    config = tiny_config("evol_rl")
    config.rewards.names = ("gold_likelihood",)
    config.rewards.options = {"gold_likelihood": {"statistic": "sum_logp"}, "hidden_states": {"pool": "mean"}}
    config.rewards.facts = {"embedding": "hidden_states"}
    config.evaluation.reward = "arithmetic"
    config.rl.steps = 1
    with open_run(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        annotators = reinforcement.policy_annotators(run, None)
        statistics = reinforcement.annotate.make_statistics(run, "evol_rl", annotators, width=0, parts=0)
        io = reinforcement.strategy_io(
            run, state, None, 0, statistics=lambda rows, who, names: statistics(state, 0, rows, who, names)
        )
        collection, _, _ = run.method.strategy.run(io, (), 2)
        tokenizer, rows = run.tokenizer, collection.rollouts
        network, params = run.network, run.network.params
        for row, request in enumerate(collection.requests):
            begin, end = int(collection.prompt_length[row]), int(rows.length[row])
            ids = rows.tokens[row, :end].tolist()
            hidden = network.hidden(params, np.array([ids]), None, np.ones((1, end), np.int32))
            expected = np.asarray(hidden)[0, begin:end].mean(axis=0)
            np.testing.assert_allclose(rows.extras["embedding"][row], expected, atol=1e-5)
            ids = ids[:-1] if ids[-1] in tokenizer.stop_ids else ids
            gold = tokenizer.encode(str(request.example["answer"]))
            whole = np.array([ids + gold])
            logits = np.asarray(network.apply(params, whole, None, np.ones(whole.shape, np.int32)), np.float64)[0]
            logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            total = sum(logp[len(ids) + place - 1, token] for place, token in enumerate(gold))
            assert collection.records[row]["rewards"][0] == pytest.approx(total, abs=1e-4)


def test_statistics_of_gold_answers():
    logp = np.log(np.array([0.5, 0.25]))
    found = {name: float(function(logp)) for name, function in likelihoods.STATISTICS.items()}
    expected = {"sum_logp": np.log(0.125), "mean_logp": np.log(0.125) / 2, "probability": 0.125, "mean_probability": 0.375}
    assert found == pytest.approx(expected | {"perplexity": 8**0.5})


@pytest.mark.slow
def test_a_reasoning_ends_where_it_is_said_to(tmp_path):
    config = tiny_config("grpo", kl_coefficient=0.0)
    config.rewards.names = ("training.tiny_rewards:shortness", "gold_likelihood")
    options = {"behind": "=", "lead": ";", "statistic": "mean_probability", "against": "difference"}
    config.rewards.options = {"gold_likelihood": options}
    finish(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "completions/step_000001.jsonl").read_text().splitlines()]
    for line in lines:
        assert (line["rewards"][1] is None) == ("=" not in line["completion"])
        assert line["rewards"][1] is None or 0 <= line["rewards"][1] <= 1


@pytest.mark.slow
def test_a_judge_says_the_same_when_a_run_goes_on(tmp_path, monkeypatch):
    config = judging("reference", temperature=1.0)
    config.evaluation.reward = "policy_judge"
    config.checkpoint.every = 1
    faulty = failing_at(3, asking._said)  # of the second step, behind the first measurement
    assert_a_fault_changes_nothing(config, tmp_path, monkeypatch, asking, "_said", faulty)


@pytest.mark.slow
def test_labels_are_compared_by_their_probabilities(tmp_path):
    config = judging("reference", labels=("1", "2"))
    finish(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "completions/step_000001.jsonl").read_text().splitlines()]
    assert all(0 < line["rewards"][1] < 1 for line in lines)


def test_texts_are_contrasted_as_the_formula_says():
    random = np.random.default_rng(0)
    rows, near, far = random.normal(size=(3, 5, 4))
    group = np.array([0, 1, 0, 1, 0])
    near, far = near[group], far[group]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, near, far)]
    found = likelihoods.contrast(*unit, group, 0.2)
    rows, near, far = unit
    for i in range(5):
        others = [rows[i] @ rows[j] for j in range(5) if group[j] == group[i] and j != i]
        foreign = [max(rows[j] @ near[i] for j in range(5) if group[j] == g) for g in {0, 1} - {group[i]}]
        expected = rows[i] @ near[i] - far[i] @ near[i] + 0.2 * np.mean(others) - 0.2 * np.mean(foreign)
        assert found[i] == pytest.approx(expected)


@pytest.mark.slow
def test_turns_gain_what_they_add_to_the_likelihood(tmp_path):
    config = tiny_config("igpo", kl_coefficient=0.0)
    config.rewards.facts = {"token_rewards": "information_gain"}
    config.rewards.options = {"information_gain": {"statistic": "sum_logp"}, "gold_likelihood": {"statistic": "sum_logp"}}
    config.rewards.names = ("gold_likelihood",)
    config.evaluation.reward = "arithmetic"
    config.environment.update(name="training.tiny_environments:twice", turn_tokens=4)
    config.rl.update(max_new_tokens=16, prompts=2, row_tokens=0, steps=1)
    with open_run(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        annotators = reinforcement.policy_annotators(run, None)
        statistics = reinforcement.annotate.make_statistics(run, "igpo", annotators, width=0, parts=0)
        io = reinforcement.strategy_io(run, state, None, 0, statistics=lambda *call: statistics(state, 0, *call))
        collection, _, _ = run.method.strategy.run(io, (), 2)
        gold = [run.tokenizer.encode(str(request.example["answer"])) for request in collection.requests]
        prompts = [own[:start] for own, start in zip(collection.rollouts.tokens, collection.prompt_length, strict=True)]
        bare = list(zip(prompts, gold, strict=True))
        begun = [logp.sum() for logp in likelihoods.logp_behind(io, "policy", bare)]
    for row, record in enumerate(collection.records):
        gains = collection.rollouts.token_rewards[row]
        assert np.count_nonzero(gains) == record["turns"] == 2 and not (gains * (1 - collection.rollouts.mask[row])).any()
        # The gains add up to what all turns together have added, but for a token that ends the last one.
        if collection.rollouts.tokens[row, collection.rollouts.length[row] - 1] not in run.tokenizer.stop_ids:
            assert gains.sum() == pytest.approx(record["rewards"][0] - begun[row], abs=1e-4)


@pytest.mark.slow
def test_contrasts_and_log_ratios_run(tmp_path):
    config = tiny_config("grpo", kl_coefficient=0.0)
    config.rewards.names = ("text_contrast", "log_ratio")
    options = {"by": "reference", "template": "{prompt}{answer}", "against": "policy"}
    config.rewards.options = {"text_contrast": {"query": "answer", "negative": "answer"}, "log_ratio": options}
    config.evaluation.reward = "arithmetic"
    finish(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "completions/step_000001.jsonl").read_text().splitlines()]
    # Of equal texts there is no contrast but that of groups; the first reference is the policy, behind another prompt.
    assert any(line["rewards"][1] != 0 for line in lines) and all(np.isfinite(line["rewards"]).all() for line in lines)
