"""The preference phase: a step against direct scoring, whole runs, exact resume, and every phase behind another."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from training.test_resume import assert_same_run, final_arrays, start
from training.test_resume import finish as end
from training.tiny_chat_model import write_tiny_chat_model
from training.tiny_preferences import finished_reward_model, preference_config
from training.tiny_runs import chat_model, finish, opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm import cli, data, estimators, methods, objectives, rewards
from jaxrl_llm.compose import composable
from jaxrl_llm.data import Cursor, next_indices
from jaxrl_llm.methods import base
from jaxrl_llm.objectives.groups import find_pairs, pair_statistics, pair_to_tokens, rollout_sum, two_sides
from jaxrl_llm.training import checkpoint, loop, metrics, preference
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.evaluate import evaluate_pairs
from jaxrl_llm.training.reward_functions import load_reward_model


def rewards_by_hand(run, params, pairs):
    """[P, 2]: the value head at the end token of prompt and completion, one text at a time."""
    network, result = run.network.without_params(), np.zeros((len(pairs), 2))
    score = jax.jit(lambda params, tokens: network.value(params, network.hidden(params, tokens)))
    for number, pair in enumerate(pairs):
        for side, name in enumerate(("chosen", "rejected")):
            ids = run.tokenizer.encode(pair["prompt"] + pair[name]) + [run.tokenizer.eos_id]
            padded = np.array([ids + [0] * (32 - len(ids))])  # one shape; what comes after has no influence
            result[number, side] = score(params, padded)[0, len(ids) - 1]
    return result


def begun(run, seed=7):
    """A state whose value head says something."""
    params = dict(run.network.params)
    params["value_head"] = 0.5 * jax.random.normal(jax.random.key(seed), params["value_head"].shape)
    return preference.initial_state(run, params)


def test_a_step_is_the_mean_loss_of_its_pairs(tmp_path):
    config = preference_config(center=0.1)
    config.preference.micro_batches = 3
    with opened(config, tmp_path) as run:
        state, cursor = begun(run), Cursor(0, 57)  # so that the batch crosses into the next epoch
        start = jax.tree.map(np.array, state.params)
        after, next_cursor, measured, records = preference.make_preference_step(run)(state, cursor, 0)
        indices, expected_cursor = next_indices(60, cursor, 6, config.seed)
        pairs = [run.source[int(index)] for index in indices]
        found = rewards_by_hand(run, start, pairs)
    assert next_cursor == expected_cursor and records == []
    chosen, rejected = found.T
    loss = np.log1p(np.exp(rejected - chosen)) + 0.1 * (chosen + rejected) ** 2
    assert measured["loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert measured["pair_accuracy"] == pytest.approx(np.mean(chosen > rejected))
    assert measured["pair_margin"] == pytest.approx(np.mean(chosen - rejected), rel=1e-3, abs=1e-5)
    lengths = [len(pair["prompt"] + pair[name]) + 1 for pair in pairs for name in ("chosen", "rejected")]
    assert measured["tokens"] == sum(lengths) and measured["skipped"] == 0 and measured["pairs_equal"] == 0
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(after.params), strict=True)]
    assert min(moved) > 0 and int(after.step) == 1


def test_without_logits_and_with_them_the_values_are_the_same(tmp_path):
    with opened(preference_config(), tmp_path) as run:
        state = begun(run)
        params = state.params
        batch = preference._pack(run, preference.preference_rollouts(run.tokenizer, [run.source[0]], 32), state.method_state, 0)
        bare = jax.jit(preference.make_pair_scorer(run))(params, batch)
        whole = jax.jit(preference.make_scorer(run.network.without_params(), {"value"}))(params, batch)
        np.testing.assert_allclose(bare.value, whole.value, rtol=1e-5, atol=1e-6)
        assert np.abs(bare.value).max() > 0.01 and not np.any(bare.logp)


def test_a_whole_run():
    run = finished_reward_model()
    assert [record["phase"] for record in run.metrics] == ["preference"] * 5
    assert all(metrics.defined(name) for record in run.metrics for name in record)
    assert ["evaluation/pair_accuracy" in record for record in run.metrics] == [False, True, False, True, True]
    last = run.metrics[-1]
    assert all(value is not None and np.isfinite(value) for name, value in last.items() if name != "phase")
    # The value head begins with zeros: all is a tie.
    assert run.metrics[0]["loss"] == pytest.approx(np.log(2), rel=1e-5) and run.metrics[0]["pair_accuracy"] == 0.5
    summary = json.loads((run.workdir / "summary.json").read_text())
    assert summary["measure"] == "pair_accuracy" and summary["method"] == "reward_model" and summary["steps"] == 5
    assert summary["accuracy_before"] == 0.5 and summary["accuracy_after"] == last["evaluation/pair_accuracy"]
    p = last["evaluation/pair_accuracy"]
    assert last["evaluation/pair_accuracy_error"] == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 7))


def test_a_finished_run_gives_its_summary_again():
    run = finished_reward_model()
    before = (run.workdir / "metrics.jsonl").read_bytes()
    again = loop.train(run.config, run.workdir)
    assert (run.workdir / "metrics.jsonl").read_bytes() == before
    assert all(again[name] == run.summary[name] for name in again if name != "wall_seconds")


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 4])
def test_an_interrupted_run_goes_on_exactly(call, tmp_path, monkeypatch):
    """Bit for bit: parameters, optimizer, cursor, metrics; whether the last checkpoint is that of the start or a later one."""
    config, calls = preference_config(center=0.01), 0

    def fails(tokenizer, pairs, width, numbers):
        nonlocal calls
        calls += len(pairs) == 6 and list(numbers) != [0, 1, 2, 3, 4, 5]  # not those of evaluations
        if calls == call:
            raise KeyboardInterrupt
        return rollouts(tokenizer, pairs, width, numbers)

    rollouts = preference.preference_rollouts
    monkeypatch.setattr(preference, "preference_rollouts", fails)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path)
    monkeypatch.setattr(preference, "preference_rollouts", rollouts)
    finish(config, tmp_path)
    assert_same_run(tmp_path, finished_reward_model().workdir)
    assert final_arrays(tmp_path)[2]["phase_step"] == 5


@pytest.mark.slow
def test_held_out_accuracy_is_that_of_the_rewards(tmp_path):
    """The phase, the verb `evaluate`, and the reward function see the same network."""
    run = finished_reward_model()
    reward = load_reward_model(str(run.workdir))
    with opened(run.config, tmp_path) as opened_run:
        pairs = [opened_run.test_source[index] for index in range(8)]
        params = checkpoint.restore_params(run.workdir / "checkpoints", opened_run.network.params)
        by_hand = rewards_by_hand(opened_run, params, pairs)
    prompts = [pair["prompt"] for pair in pairs]
    found = np.array([reward(prompts, [pair[name] for pair in pairs]) for name in ("chosen", "rejected")]).T
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)
    measured = evaluate_pairs(run.workdir, run.config)
    assert measured["evaluation/pair_accuracy"] == pytest.approx(np.mean(by_hand[:, 0] > by_hand[:, 1]), rel=1e-6)
    assert measured["evaluation/pair_margin"] == pytest.approx(np.mean(by_hand[:, 0] - by_hand[:, 1]), rel=1e-3, abs=1e-5)
    expected = {name: value for name, value in run.metrics[-1].items() if name.startswith("evaluation/")}
    assert measured == pytest.approx(expected, rel=1e-5)


def test_the_verb_evaluate(tmp_path, capsys):
    run = finished_reward_model()
    file = tmp_path / "config.py"
    file.write_text("from training import tiny_preferences\n\nget_config = tiny_preferences.preference_config\n")
    assert cli.main(["evaluate", str(run.workdir), f"--config={file}"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["evaluation/pair_accuracy"] == run.summary["accuracy_after"]
    assert cli.main(["evaluate", str(run.workdir), f"--config={file}", "--output=out.jsonl"]) == 2
    assert "--output=out.jsonl would stay empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_policy_is_no_reward_model(tmp_path):
    config = tiny_config("dr_grpo")
    config.sft.steps, config.rl.steps = 1, 0
    policy = finish(config, tmp_path / "policy")
    with pytest.raises(ValueError, match="holds a network without a value head; give a reward model"):
        evaluate_pairs(policy.workdir, preference_config())
    with pytest.raises(ValueError, match="value_head is 0; a reward model has a head of 1 output"):
        load_reward_model(str(policy.workdir))


@pytest.mark.slow
def test_a_policy_learns_from_a_reward_model(tmp_path):
    model = finished_reward_model()
    config = tiny_config("dr_grpo")
    config.rewards.update(names=("reward_model", "training.tiny_rewards:shortness"), model=str(model.workdir))
    config.evaluation.reward = "arithmetic"
    config.rl.steps = 1
    run = finish(config, tmp_path)
    rows = metrics.read_jsonl(run.workdir / "completions" / "step_000001.jsonl")
    reward = load_reward_model(str(model.workdir))
    expected = reward([row["prompt"] for row in rows], [row["completion"] for row in rows])
    np.testing.assert_allclose([row["rewards"][0] for row in rows], expected, rtol=1e-5, atol=1e-6)
    assert run.metrics[0]["reward/reward_model"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert np.std(expected) > 0 and run.metrics[0]["reward_missing"] == 0
    assert not (run.workdir / "reward_failures.jsonl").exists()


# ---- checkpoints of the Hub


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A checkpoint with a head of one output, as the Hub has reward models, and what it says of a conversation."""
    folder = tmp_path_factory.mktemp("classifier")
    write_tiny_chat_model(folder)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=1, pad_token_id=0, initializer_range=0.5)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    return folder, model


QUESTION = {"role": "user", "content": "What is 2+2?"}
TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hm?"}, QUESTION]


@pytest.mark.slow
def test_a_reward_model_of_the_hub(classifier):
    folder, model = classifier
    tokenizer, answers = data.load_tokenizer(folder), ["It is 4.", "5"]
    ids = [data.encode_prompt(tokenizer, TALK) + tokenizer.encode(answer) + [tokenizer.eos_id] for answer in answers]
    with torch.no_grad():
        expected = [model.score(model.model(torch.tensor([row]))[0])[0, -1, 0].item() for row in ids]
    found = load_reward_model(str(folder))([QUESTION["content"]] * 2, answers, conversation=[TALK] * 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("has_head", [True, False])
def test_training_goes_on_from_a_checkpoint(has_head, classifier, tmp_path):
    """With the head that is there, or with one of zeros; chat prompts reach a reward model whole."""
    folder = classifier[0] if has_head else chat_model()
    pairs = [[*TALK, {"role": "assistant", "content": answer}] for answer in ("It is 4.", "5")]
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"chosen": pairs[0], "rejected": pairs[1]}) + "\n")
    config = preference_config(steps=1)
    config.tokenizer, config.network.directory = "", str(folder)
    config.task.options, config.task.test_options = {"path": str(tmp_path / "pairs.jsonl")}, {}
    config.task.max_prompt_tokens = config.preference.row_tokens = 256
    config.rl.row_tokens = 0
    config.preference.batch = 2
    run = finish(config, tmp_path / "run")
    reward = load_reward_model(str(folder)) if has_head else lambda *_, **__: [0.0, 0.0]
    before = reward(["", ""], ["It is 4.", "5"], conversation=[TALK] * 2)
    assert run.metrics[0]["pair_chosen"] == pytest.approx(before[0], rel=1e-4)
    assert run.metrics[0]["pair_rejected"] == pytest.approx(before[1], rel=1e-4)
    after = load_reward_model(str(run.workdir))(["", ""], ["It is 4.", "5"], conversation=[TALK] * 2)
    assert after[0] - after[1] > before[0] - before[1]
    config.rewards.update(names=("reward_model",), model=str(run.workdir))
    with opened(config, tmp_path / "other") as opened_run:
        assert opened_run.source[0]["conversation"] == TALK


# ---- a method with a reference, and phases behind each other


@composable(annotations=("preference", "reference_logp"))
@objectives.traits(coupled=True)
def pair_log_ratios(scores, batch, *, beta=0.5):
    """-log sigmoid(beta (x_chosen - x_rejected)) of the log-ratios x to the reference."""
    pairs = find_pairs(batch)
    ratio = rollout_sum(scores.logp - batch.reference_logp, batch.mask, pairs.rollout)
    chosen, rejected = (beta * side for side in two_sides(ratio, pairs))
    return pair_to_tokens(jax.nn.softplus(rejected - chosen), pairs), pair_statistics(chosen, rejected, pairs)


@pytest.fixture
def direct():
    """A method on pairs with a reference policy, in the catalogue for one test."""

    def direct(*, beta: float = 0.5):
        """Direct preferences."""
        return None, estimators.pair_mean(), objectives.objective(pair_log_ratios(beta=beta))

    base.method(paper="- (2023)", url="https://arxiv.org/abs/2305.18290")(direct)
    yield "direct"
    base._ENTRIES.pop("direct")


def three_phases(name):
    config = preference_config(steps=2)
    config.sft.update(steps=1, batch=4, row_tokens=32)
    config.preference.method = name
    config.rl.steps = 1
    config.method.options = {"samples": 4, "kl_coefficient": 0.1}
    config.rewards.names = ("training.tiny_rewards:shortness",)
    return config


@pytest.mark.slow
def test_three_phases_with_a_reference_each(direct, tmp_path):
    assert methods.get(direct).needs_reference and not methods.get(direct).needs_value_head
    run = finish(three_phases(direct), tmp_path / "whole")
    assert [record["phase"] for record in run.metrics] == ["sft", "preference", "preference", "rl"]
    # The reference is the policy at the beginning of the phase: no ratio at first, one afterwards.
    assert run.metrics[1]["loss"] == pytest.approx(np.log(2), rel=1e-5) and run.metrics[1]["pair_margin"] == 0
    assert run.metrics[2]["loss"] < np.log(2) and abs(run.metrics[2]["pair_margin"]) > 1e-3
    assert run.metrics[3]["reference_kl"] == pytest.approx(0, abs=1e-9)
    assert "evaluation/pair_accuracy" in run.metrics[2] and "evaluation/accuracy" in run.metrics[3]
    assert run.summary["measure"] == "accuracy" and run.summary["method"] == "grpo"
    references = [tmp_path / "whole" / name for name in ("reference_preference", "reference")]
    assert all(folder.exists() for folder in references)


def test_log_ratios_are_those_to_the_reference(direct, tmp_path):
    config = preference_config(steps=2)
    config.preference.update(method=direct, micro_batches=2)
    with opened(config, tmp_path) as run:
        reference = jax.tree.map(lambda leaf: 1.2 * leaf, run.network.params)
        state = preference.initial_state(run, jax.tree.map(jnp.copy, run.network.params))
        _, _, measured, _ = preference.make_preference_step(run, reference)(state, Cursor(), 0)
        pairs = run.draw(Cursor(), 6)[0]
        apply, found = jax.jit(run.network.without_params().apply), np.zeros((6, 2))
        for number, pair in enumerate(pairs):
            for side, name in enumerate(("chosen", "rejected")):
                ids = run.tokenizer.encode(pair["prompt"] + pair[name]) + [run.tokenizer.eos_id]
                padded, first = np.array([ids + [0] * (32 - len(ids))]), len(pair["prompt"])
                for params, sign in ((run.network.params, 1), (reference, -1)):
                    logp = jax.nn.log_softmax(apply(params, padded)[0])
                    found[number, side] += sign * sum(float(logp[t - 1, ids[t]]) for t in range(first, len(ids)))
    assert measured["loss"] == pytest.approx(np.log1p(np.exp(0.5 * (found[:, 1] - found[:, 0]))).mean(), rel=1e-4)
    assert measured["pair_margin"] == pytest.approx(0.5 * (found[:, 0] - found[:, 1]).mean(), rel=1e-3)


# ---- configurations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference.steps": 0}, r"config\.sft\.steps, config\.preference\.steps and config\.rl\.steps are all 0"),
        ({"preference.batch": 0}, r"config\.preference\.batch is 0"),
        ({"preference.method": "grpo"}, r"'grpo', which learns from samples; take one of .*'reward_model'"),
        ({"preference.method": "sft"}, r"'sft', which learns from completions"),
        ({"preference.options": {"middle": 1}}, r"'reward_model' has no option 'middle'; it takes center"),
        ({"preference.optimizer.decay": "steep"}, r"config\.preference\.optimizer\.decay is 'steep'"),
        ({"rl.steps": 3}, r"config\.rl\.steps is 3 behind 'reward_model', which makes no policy"),
        ({"method.name": "reward_model"}, r"'reward_model', which samples nothing; set config\.preference\.steps"),
        ({"rewards.model": "there"}, r"config\.rewards\.model would change nothing"),
        ({"rewards.names": ("reward_model",)}, r"config\.rewards\.names has 'reward_model'; set config\.rewards\.model"),
    ],
)
def test_impossible_configurations(change, message):
    config = preference_config()
    for name, value in change.items():
        section, _, key = name.rpartition(".")
        part = config
        for step in section.split("."):
            part = part[step]
        part[key] = value
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_options_without_the_phase_are_refused():
    config = tiny_config()
    config.preference.options = {"center": 0.1}
    with pytest.raises(ValueError, match=r"config\.preference\.options would change nothing"):
        check_config(config)


def test_sources_without_pairs_are_refused_at_the_start(tmp_path):
    config = preference_config()
    config.task.source, config.task.options, config.task.test_options = "arithmetic", {"size": 9, "digits": (1, 1)}, {}
    with pytest.raises(ValueError, match="there is no 'chosen'.*take a source of preferences"), opened(config, tmp_path):
        pass
    config = preference_config()
    config.preference.row_tokens = 12
    with pytest.raises(ValueError, match="pair .* takes .* places, more than the 12 of a row"), opened(config, tmp_path):
        pass


def test_a_file_of_pairs(tmp_path):
    rows = [{"prompt": f"{n}+1=", "chosen": "1", "rejected": "0" if n % 2 else "1"} for n in range(10)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = preference_config(steps=1)
    config.task.options = {"path": str(tmp_path / "pairs.jsonl")}
    config.task.test_options = {}
    config.preference.batch = 10
    run = finish(config, tmp_path / "run")
    assert run.metrics[0]["pairs_equal"] == 0.5 and run.metrics[0]["skipped"] == 0


@pytest.mark.slow
def test_killed_in_the_middle_equals_uninterrupted(tmp_path):
    """Real processes, and SIGKILL while a checkpoint is written, and while a batch is made."""
    runner = "preference_crash_runner.py"
    cache = tmp_path / "compiled"
    code, output = end(start(tmp_path / "whole", cache, runner=runner))
    assert code == 0, output
    for kill in (("save", 2, 0.001), ("pairs", 3, 0.01)):
        code, output = end(start(tmp_path / "killed", cache, *kill, runner=runner))
        assert code == -signal.SIGKILL, f"{kill} was not reached: {output}"
    code, output = end(start(tmp_path / "killed", cache, runner=runner))
    assert code == 0, output
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_mesh_changes_nothing_but_rounding(tmp_path):
    config = preference_config(center=0.01)
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.preference.micro_batches = 2
    for mine, theirs in zip(finish(config, tmp_path).metrics, finished_reward_model().metrics, strict=True):
        for name in mine.keys() - {"phase"}:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=5e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_reward_model_on_a_mesh(tmp_path):
    config = tiny_config("dr_grpo")
    config.rewards.update(names=("reward_model", "training.tiny_rewards:shortness"), model=str(finished_reward_model().workdir))
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.rl.steps = 1
    run = finish(config, tmp_path)
    rows = metrics.read_jsonl(run.workdir / "completions" / "step_000001.jsonl")
    reward = load_reward_model(str(finished_reward_model().workdir))
    expected = reward([row["prompt"] for row in rows], [row["completion"] for row in rows])
    np.testing.assert_allclose([row["rewards"][0] for row in rows], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(reward, rewards.RewardModel)


# ---- answers that are marked one by one, gold texts, and a reference that follows


def marked_config(path, name, **options):
    """Half of the sums right and marked so, the others wrong."""
    rows = [{"prompt": f"{n}+1=", "completion": str(n + 1 + n % 2), "label": n % 2 == 0} for n in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = preference_config(steps=2, **options)
    config.preference.update(method=name, batch=4)
    config.task.options, config.task.test_options = {"path": str(path)}, {}
    return config


def policy_logp(run, params, prompt, text):
    """Sum of log-probabilities of a text and its end behind a prompt, one row at a time."""
    ids = run.tokenizer.encode(prompt + text) + [run.tokenizer.eos_id]
    logp = jax.nn.log_softmax(jax.jit(run.network.without_params().apply)(params, np.array([ids + [0] * (32 - len(ids))]))[0])
    return sum(float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))


@pytest.mark.parametrize("paired", [False, True])
def test_the_reference_point_of_kto_is_of_answers_to_other_prompts(paired, tmp_path):
    config = preference_config(steps=1) if paired else marked_config(tmp_path / "rows.jsonl", "kto")
    config.preference.update(method="kto", batch=4, options={"beta": 0.5})
    with opened(config, tmp_path / "run") as run:
        reference = jax.tree.map(lambda leaf: 1.2 * leaf, run.network.params)
        state = preference.initial_state(run, jax.tree.map(jnp.copy, run.network.params))
        _, _, measured, _ = preference.make_preference_step(run, reference)(state, Cursor(), 0)
        examples = run.draw(Cursor(), 4)[0]
        rows = [(n, side) for n, example in enumerate(examples) for side in ("chosen", "rejected") if side in example]

        def ratio(prompt, text):
            policy, other = (policy_logp(run, params, prompt, text) for params in (run.network.params, reference))
            return policy - other

        own = np.array([ratio(examples[n]["prompt"], examples[n][side]) for n, side in rows])
        others = [examples[n - 1].get(side, examples[n - 1].get("chosen", examples[n - 1].get("rejected"))) for n, side in rows]
        mismatched = [ratio(examples[n]["prompt"], text) for (n, _), text in zip(rows, others, strict=True)]
    point = max(np.mean(mismatched), 0.0)
    sign = np.array([1.0 if side == "chosen" else -1.0 for _, side in rows])
    assert measured["reward_reference_point"] == pytest.approx(point, rel=1e-3, abs=1e-5) and len(rows) == (8 if paired else 4)
    assert measured["loss"] == pytest.approx(np.mean(1 / (1 + np.exp(0.5 * sign * (own - point)))), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_a_run_on_marked_answers(name, tmp_path):
    run = finish(marked_config(tmp_path / "rows.jsonl", name), tmp_path / "run")
    assert run.summary["measure"] == "label_accuracy" and 0 <= run.summary["accuracy_after"] <= 1
    last = run.metrics[-1]
    assert last["evaluation/label_accuracy"] == run.summary["accuracy_after"] and "evaluation/pair_accuracy" not in last
    assert all(metrics.defined(name) for record in run.metrics for name in record)
    assert all(record["gradient_norm"] > 0 and record["skipped"] == 0 for record in run.metrics)


def test_methods_on_pairs_refuse_marked_answers(tmp_path):
    config = marked_config(tmp_path / "rows.jsonl", "dpo")
    with pytest.raises(ValueError, match="line 1: there is no 'rejected', only"), opened(config, tmp_path / "run"):
        pass


def test_one_prompt_has_no_answers_to_others():
    examples = [{"prompt": "1+1=", "chosen": "2"}, {"prompt": "1+1=", "rejected": "3"}]
    with pytest.raises(ValueError, match="all 2 examples of the step have the prompt '1\\+1='"):
        data.mismatched_rollouts(data.byte_tokenizer(), examples, 16)


def test_tpo_takes_three_texts(tmp_path):
    """The mean contrast of cpo, and the mean over all tokens of the gold texts."""
    pairs = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "0", "gold": f"{n + 1}={n}+1"} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    config = preference_config(steps=1)
    config.preference.update(method="tpo", batch=4, options={"beta": 0.5, "imitation": 2.0})
    config.task.options, config.task.test_options = {"path": str(tmp_path / "pairs.jsonl")}, {}
    with opened(config, tmp_path / "run") as run:
        params = run.network.params
        sides = {name: [policy_logp(run, params, pair["prompt"], pair[name]) for pair in pairs] for name in pairs[0]}
        tokens = sum(len(run.tokenizer.encode(pair["gold"])) + 1 for pair in pairs)
    measured = finish(config, tmp_path / "run").metrics[0]
    margin = 0.5 * (np.array(sides["chosen"]) - np.array(sides["rejected"]))
    expected = np.log1p(np.exp(-margin)).mean() - 2.0 * sum(sides["gold"]) / tokens
    assert measured["loss"] == pytest.approx(expected, rel=1e-4)
    del pairs[2]["gold"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    with pytest.raises(ValueError, match="line 3: there is no 'gold'"), opened(config, tmp_path / "other"):
        pass


@pytest.mark.parametrize(("name", "need"), [("xpo", "rows_of_reference"), ("inpo", "proximal_logp")])
def test_methods_whose_inputs_nobody_gives_are_refused(name, need):
    config = preference_config()
    config.preference.method = name
    with pytest.raises(ValueError, match=f"'{name}' needs '{need}'.*which this loop cannot make from pairs"):
        check_config(config)


def test_revisions_of_the_built_in_pairs_are_learned(tmp_path):
    config = preference_config(steps=2)
    config.preference.update(method="srpo", options={"beta": 0.5})
    with pytest.raises(ValueError, match="'srpo' needs 'revises'.*set config.task.revision"):
        check_config(config)
    config.task.revision, config.preference.row_tokens = "{answer};{prompt}", 64
    first, second = finish(config, tmp_path).metrics
    # At first the policy is its reference: (1 - alpha) 1 + alpha (1/4 + 1/4).
    assert first["loss"] == pytest.approx(0.75) and first["skipped"] == second["skipped"] == 0
    assert second["loss"] < first["loss"] and 0.5 < second["pair_accuracy"] <= 1
    config.preference.method = "dpo"
    with pytest.raises(ValueError, match="config.task.revision would change nothing"):
        check_config(config)


@pytest.mark.slow
def test_a_reference_that_follows_the_policy(tmp_path):
    """TR-DPO: after a hard update the policy is its own reference, and the next step begins with a margin of 0."""
    config = preference_config(steps=4)
    config.preference.update(method="dpo", reference={"every": 2, "share": 1.0})
    found = [record["pair_margin"] for record in finish(config, tmp_path / "follows").metrics]
    assert found[0] == 0 and found[2] == pytest.approx(0, abs=1e-5)
    assert abs(found[1]) > 1e-3 and abs(found[3]) > 1e-3
    config.preference.reference.every = 0
    stays = [record["pair_margin"] for record in finish(config, tmp_path / "stays").metrics]
    assert stays[:2] == found[:2] and abs(stays[2]) > 1e-3
    config.preference.update(method="simpo", reference={"every": 2, "share": 1.0})
    with pytest.raises(ValueError, match="config.preference.reference would change nothing"):
        check_config(config)
