"""Networks that learn beside the policy: a second player, a verifier, a reward model."""

import functools
import json

import jax
import numpy as np
import pytest
from training.tiny_runs import assert_a_fault_changes_nothing, failing_at, finish, opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm.rollouts import requests_for
from jaxrl_llm.training import annotate, company, modules, reinforcement
from jaxrl_llm.training.config import check_config, default_config
from jaxrl_llm.training.policies import convert, load_policy


def duel(**module):
    """Kuhn poker between the policy and an opponent that learns too."""
    config = tiny_config("dr_grpo")
    config.tokenizer = "characters:JQK12:pb"
    config.task.source, config.task.options, config.task.test_options = "numbered", {"size": 50, "prompt": "1"}, {"size": 4}
    config.task.max_prompt_tokens = 6
    config.rl.update(max_new_tokens=4, row_tokens=0)
    config.environment.update(name="kuhn_poker", turn_tokens=1, by=("policy", "opponent"))
    config.rewards.names = ("environment",)
    config.modules = {"opponent": {"method": "grpo", "options": {"kl_coefficient": 0.1}} | module}
    return config


def written_about(method, strategy, **options):
    """A policy about whose answers somebody else writes."""
    config = tiny_config(method, kl_coefficient=0.0)
    config.task.max_prompt_tokens, config.rl.row_tokens = 20, 0
    config.method.strategy = strategy
    config.method.strategy_options = {"template": "{prompt}{completion}#", "threshold": 0.1} | options
    return config


def taught(**module):
    """A policy with a verifier of its steps."""
    config = written_about("rl_tango", "verified", separator="+", step="[+-]", final="[0-9]")
    config.modules = {"verifier": {"method": "tango_verifier", "options": {"kl_coefficient": 0.0}} | module}
    return config


def modelled(**module):
    """A policy whose answers train a reward model."""
    config = written_about("cooper", "spoiled")
    config.evaluation.success = 0.1
    config.modules = {"judge": {"method": "reward_model", "reward": config.rewards.names[0]} | module}
    config.rewards.names, config.rewards.weights = (*config.rewards.names, "learned_reward"), (0.0, 1.0)
    return config


def leaves(tree):
    return jax.tree.leaves(jax.device_get(tree))


def largest_change(one, other):
    return max(np.abs(a - b).max() for a, b in zip(leaves(one), leaves(other), strict=True))


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("duel")
    return finish(duel(optimizer={"learning_rate": 2e-2}), folder)


def test_both_players_learn_from_their_own_rows(run_of_two):
    for record in run_of_two.metrics:
        assert record["opponent/gradient_norm"] > 0 and record["opponent/skipped"] == 0
        # Log-probabilities that the opponent's sampler and learner agree upon: the rows are indeed its own.
        assert record["opponent/logp_gap"] < 1e-4 and record["logp_gap"] < 1e-4
        # Chips that one player loses to the other; rows of wrong moves lose two, and the other gets them.
        assert record["opponent/reward_missing"] == 0 and "opponent/reward/environment" in record
    policy, opponent = (load_policy(run_of_two.workdir / place)[0].params for place in (".", "modules/opponent"))
    with opened(run_of_two.config, run_of_two.workdir) as run:
        first = run.network.params
        assert run.modules["opponent"].network.params is None
        assert 1e-3 < largest_change(first, policy) < largest_change(first, opponent)
    told = (run_of_two.workdir / "completions" / "step_000001.jsonl").read_text().splitlines()
    writers = [json.loads(line).get("by", "policy") for line in told]
    assert set(writers) == {"policy", "opponent"} and writers.count("policy") == 16


def test_a_module_begins_as_the_policy_and_keeps_its_reference(tmp_path):
    with opened(duel(), tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        own = state.modules["opponent"]
        jax.tree.map(np.testing.assert_array_equal, own.params, state.params)
        pairs = zip(jax.tree.leaves(own.params), jax.tree.leaves(state.params), strict=True)
        assert all(one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer() for one, other in pairs)
        assert company.needs_reference(run) and not run.method.needs_reference


@pytest.mark.slow
def test_a_module_begins_with_a_folder_of_its_own(run_of_two, tmp_path):
    config = duel(directory=str(run_of_two.workdir / "modules" / "opponent"), every=2, first=1)
    config.rl.prompts = 16
    records = finish(config, tmp_path).metrics
    assert "opponent/loss" not in records[0] and records[1]["opponent/reference_kl"] == 0
    begun = load_policy(run_of_two.workdir / "modules" / "opponent")[0].params
    assert largest_change(begun, load_policy(tmp_path / "modules" / "opponent")[0].params) > 1e-4
    assert convert(tmp_path / "modules" / "opponent", tmp_path / "alone", to="orbax") == []
    assert (tmp_path / "alone" / "network.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("config", [duel, taught, modelled])
def test_modules_survive_a_fault(config, tmp_path, monkeypatch):
    config = config()
    config.rl.steps, config.checkpoint.every = 4, 2
    faulty = failing_at(4, reinforcement.scale_weights)
    assert_a_fault_changes_nothing(config, tmp_path, monkeypatch, reinforcement, "scale_weights", faulty)


def test_a_verifier_learns_what_it_says(tmp_path):
    records = finish(taught(), tmp_path).metrics
    for record in records:
        assert 0 <= record["verifier/true"] <= 1 and record["verifier/gradient_norm"] > 0
        assert record["verifier/logp_gap"] < 1e-4
    # What the strategy measured of the verdicts is what the verifier was rewarded for.
    assert records[0]["verifier/reward"] == pytest.approx(records[0]["verifier/true"] + 0.1 * records[0]["verifier/complete"])


def test_a_reward_model_learns_from_pairs(tmp_path):
    records = finish(modelled(), tmp_path).metrics
    learned = [record for record in records if "judge/loss" in record]
    assert learned and all(record["judge/gradient_norm"] > 0 for record in learned)
    assert learned[0]["judge/loss"] == pytest.approx(np.log(2.0), rel=1e-5)  # its head begins with zeros
    network, _ = load_policy(tmp_path / "modules" / "judge")
    assert network.config.value_head == 1 and np.abs(network.params["value_head"]).max() > 0
    # The policy is rewarded by what the model says: nothing as long as its head is zero.
    assert records[0]["reward"] == 0 == records[0]["reward/learned_reward"] and records[1]["reward/learned_reward"] != 0


def test_what_a_learning_reward_model_says_is_its_value_at_the_last_token(tmp_path):
    with opened(modelled(), tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        judge = jax.tree.map(
            lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), state.modules["judge"].params
        )
        state = state.replace(modules={"judge": state.modules["judge"].replace(params=judge)})
        annotators = reinforcement.policy_annotators(run, run.network.params)
        said = annotate.make_statistics(run, "cooper", annotators, width=0, parts=0)
        asked = functools.partial(said, state, 0)
        io = reinforcement.strategy_io(run, state, run.network.params, 0, statistics=asked)
        found = io.sample(requests_for(*io.draw(2), samples=2))
        network = run.modules["judge"].network
        for row, length in enumerate(found.rollouts.length):
            values = network.value(judge, network.hidden(judge, found.rollouts.tokens[row : row + 1, :length]))
            np.testing.assert_allclose(found.records[row]["rewards"][1], values[0, -1], rtol=1e-4)


def test_pairs_are_right_and_wrong_answers_to_one_prompt():
    def row(prompt, text, reward, by=None):
        return {"prompt_id": prompt, "completion": text, "rewards": [None, reward]} | ({"by": by} if by else {})

    records = [
        row(3, "a", 0.0), row(3, "b", 1.0), row(3, "c", 0.0, "reference"), row(3, "d", 1.0, "reference"),
        row(4, "e", 1.0), row(4, "f", None), row(5, "g", 0.5), row(5, "h", 2.0),
    ]  # fmt: skip
    source = {number: {"prompt": f"p{number}"} for number in (3, 4, 5)}
    pairs, numbers = modules.made_pairs(records, [0, 0, 0, 0, 1, 1, 2, 2], 1, 1.0, source)
    assert numbers == [3, 5]
    assert pairs == [
        {"prompt": "p3", "chosen": "b", "rejected": "c"}, {"prompt": "p5", "chosen": "h", "rejected": "g"},
    ]  # fmt: skip


@pytest.mark.parametrize("changes, fault", [
    ({"opponent": {"method": "grop"}}, "method 'grop' is unknown"),
    ({"opponent": {"methd": "grpo"}}, "a key of config.modules.opponent is 'methd'"),
    ({"opponent": {"every": 0}}, "config.modules.opponent.every is 0; it must be a whole number from 1"),
    ({"opponent": {"optimizer": {"rate": 1.0}}}, "a key of config.modules.opponent.optimizer is 'rate'"),
    ({"opponent": {"method": "sft"}}, "samples nothing"),
    ({"opponent": {"reward": "environment"}}, "config.modules.opponent.reward would change nothing"),
    ({"opponent": {"method": "tango_verifier"}}, "right"),
    ({"policy": {}}, "config.modules.policy: the name is taken"),
    ({"second": {}}, "config.modules.second would learn nothing: nobody asks it"),
    ({"judge": {"method": "reward_model"}}, "config.modules.judge.reward is ''"),
])  # fmt: skip
def test_what_cannot_be_a_module_is_refused(changes, fault):
    config = duel()
    config.modules = changes
    with pytest.raises(ValueError, match=fault):
        check_config(config)


def test_whoever_is_asked_must_be_there(tmp_path):
    config = duel()
    config.modules = {}
    with pytest.raises(ValueError, match="opponent"):
        finish(config, tmp_path)


def test_no_module_is_the_default():
    assert default_config().modules.to_dict() == {}
