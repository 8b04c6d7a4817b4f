"""Problems of reasoning-gym, and what their generators think of the answers."""

import pickle

import pytest
from reasoning_gym.factory import DATASETS

from jaxrl_llm import data, rewards
from jaxrl_llm.data.reasoning_gym import generate

COMPOSITE = [{"name": "chain_sum", "weight": 1.0, "config": {}}, {"name": "word_ladder", "weight": 1.0, "config": {}}]


def score(example, completion):
    columns = {name: [example[name]] for name in ("entry", "generator", "answer")}
    return rewards.reasoning_gym_score([example["prompt"]], [completion], **columns)[0]


def test_examples_and_scores():
    source = data.reasoning_gym_source("chain_sum", 4, 7, min_terms=2, max_terms=2)
    assert len(source) == 4 and len({example["prompt"] for example in source}) == 4
    for example in source:
        assert example["entry"]["metadata"]["num_terms"] == 2
        assert score(example, example["answer"]) == 1.0
        assert score(example, f"hm <answer>0</answer> no <answer> {example['answer']} </answer>.") == 1.0
        assert score(example, "no idea") == 0.0


def test_options_reach_the_score():
    example = data.reasoning_gym_source("puzzle24", 1, 3, max_value=6)[0]
    assert example["generator"] == {"name": "puzzle24", "config": {"max_value": 6}}
    assert score(example, example["answer"]) == 1.0


def test_several_generators():
    source = data.reasoning_gym_source("composite", 8, 1, datasets=COMPOSITE)
    assert {example["entry"]["metadata"]["source_dataset"] for example in source} == {"chain_sum", "word_ladder"}
    assert all(score(example, example["answer"]) == 1.0 for example in source)


def test_problems_do_not_depend_on_the_hash_seed(monkeypatch):
    runs = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        runs.append([example["prompt"] for example in data.reasoning_gym_source("ransom_note", 5, 1)])
    assert runs[0] == runs[1]


def test_every_generator_gives_problems_that_its_score_accepts():
    names = sorted(set(DATASETS) - {"composite"})
    assert len(names) >= 100
    for name in names:
        (entry,) = generate(name, {"size": 1, "seed": 1})
        example = {"prompt": entry["question"], "entry": entry, "generator": {"name": name, "config": {}}}
        assert isinstance(example["prompt"], str) and pickle.dumps(example), name
        answer = entry["answer"]
        assert answer is None or score({**example, "answer": answer}, answer) == 1.0, name


def test_errors():
    with pytest.raises(ValueError, match="'no_such_generator'.*not registered"):
        data.reasoning_gym_source("no_such_generator", 1, 0)
    with pytest.raises(ValueError, match="'chain_sum' with {'terms': 3}.*'terms'"):
        data.reasoning_gym_source("chain_sum", 1, 0, terms=3)
