"""The verbs as a user types them."""

import io
import json
import pathlib
import re
import subprocess
import sys
import threading
import types

import pytest
from training import tiny_runs
from training.tiny_runs import ALPHABET, SIZES, finished, quick_compilation  # noqa: F401

from jaxrl_llm import __main__ as program
from jaxrl_llm import cli, methods
from jaxrl_llm.training import metrics
from jaxrl_llm.training.policies import load_policy

ROOT = pathlib.Path(__file__).parents[1]
TINY = """
from training.tiny_runs import tiny_config

def get_config():
    return tiny_config("dr_grpo")
"""


def run(capsys, *arguments):
    """Status, stdout and stderr of a command."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    output = capsys.readouterr()
    return status, output.out, output.err


def refused(capsys, *arguments):
    """The one line on stderr of a command that a user got wrong, after the usage where the arguments were no command."""
    status, out, err = run(capsys, *arguments)
    assert status == 2 and "Traceback" not in err, err
    lines = err.splitlines()
    assert len(lines) == 1 or lines[0].startswith("usage:"), err
    return lines[-1]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def chat_model():
    return tiny_runs.chat_model()


# ---- methods, and what is no command


def test_methods_lists_all_of_them(capsys):
    status, out, _ = run(capsys, "methods")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(methods.names())
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in out.splitlines())


@pytest.mark.parametrize("name", methods.names())
def test_methods_shows_one(name, capsys):
    status, out, _ = run(capsys, "methods", "--show", name)
    assert status == 0 and out.startswith(f"{name}: ") and "http" in out
    assert methods.get(name).composition() in out
    for option, default in methods.options_of(name).items():
        assert f"{option}={default!r}" in out


def test_a_method_that_is_not_there(capsys):
    line = refused(capsys, "methods", "--show", "nosuch")
    assert "method 'nosuch' is unknown; known are" in line and "grpo" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: VERB"),
        (["methods", "--loud"], "unknown argument '--loud'; see `jaxrl-llm methods --help`"),
        (["train", "--steps=3"], "unknown argument '--steps=3'"),
        (["train", "--config.seed", "3"], "unknown argument '3'"),
        (["sample", "x", "--config.seed=3"], "unknown argument '--config.seed=3'"),
        (["convert", "a", "b"], "required: --to"),
        (["convert", "a", "b", "--to=gguf"], "invalid choice: 'gguf'"),
        (["sample", "x", "--temperature=warm"], "invalid float value: 'warm'"),
    ],
)
def test_what_is_no_command(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


def test_help_names_every_verb(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(verb in out for verb in ("train", "evaluate", "sample", "convert", "methods"))


# ---- configurations


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.nosuch=3", "nosuch"),
        ("--config.rl.nosuch=3", "nosuch"),
        ("--config.rl.steps=many", "--config.rl.steps=many"),
        ("--config.rl.steps=1.5", "--config.rl.steps=1.5"),
        ("--config.rl.optimizer.learning_rate=high", "learning_rate=high"),
        ("--config.log.live=perhaps", "--config.log.live=perhaps"),
        ("--config.method.options.samples=abc", "samples"),
        ("--config.method.options.samples=8.5", "samples"),
        ("--config.task.options.size=abc", "size"),
        ("--config.method.options=3", "method.options"),
        ("--config.method.options.nosuch=3", "no option 'nosuch'; it takes"),
        ("--config.method.name=nosuch", "method 'nosuch' is unknown"),
        ("--config.rewards.names=()", "config.rewards.names"),
        ("--config.rewards.names=nosuch", "reward 'nosuch' is unknown"),
        ("--config.network.dtype=float33", "float33"),
        ("--config.task.source=nosuch", "config.task.source is 'nosuch'"),
        ("--config.network.directory=/no/such/model", "/no/such/model"),
        ("--config.evaluation.samples=3", "config.evaluation.samples is 3 at temperature 0"),
        ("--config.mesh.data=3", "data=3"),
    ],
)
def test_wrong_values_are_one_line(override, message, tiny, capsys):
    line = refused(capsys, "train", f"--config={tiny}", f"--workdir={tiny.parent / 'run'}", override)
    assert line.startswith("jaxrl-llm train: ") and message in line


def test_wrong_files_are_one_line(tmp_path, capsys):
    line = refused(capsys, "train", f"--config={tmp_path / 'nosuch.py'}")
    assert "there is no such file; there are" in line and "quickstart.py" in line and "__init__" not in line
    broken = tmp_path / "broken.py"
    broken.write_text("from jaxrl_llm.training import default_config\n\ndef get_config():\n    config = default_config()\n"
                      "    config.rl.nosuch = 3\n    return config\n")  # fmt: skip
    assert "nosuch" in refused(capsys, "train", f"--config={broken}")


def test_free_sections_can_be_replaced():
    """Otherwise no other method could be chosen where a file sets options that it does not have."""
    quickstart = str(ROOT / "configs" / "quickstart.py")
    overrides = ["--config.method.name=dapo", "--config.method.options={'samples': 4}", "--config.method.options.clip_high=0.3"]
    config = cli.load_config(quickstart, overrides)
    assert config.method.options.to_dict() == {"samples": 4, "clip_high": 0.3}
    assert cli.load_config(quickstart, ["--config.method.options={}"]).method.options.to_dict() == {}


# ---- train


@pytest.mark.slow
def test_train_ends_with_what_to_do_next_and_again(tiny, monkeypatch, capsys):
    """Without --workdir the run lies in runs/NAME; the same command on a finished run prints the same again."""
    monkeypatch.chdir(tiny.parent)
    status, out, _ = run(capsys, "train", f"--config={tiny}", "--config.rl.steps=1")
    workdir = tiny.parent / "runs" / "tiny"
    assert status == 0 and (workdir / "summary.json").is_file()
    assert re.search(r"Held-out accuracy [\d.]+% before, [\d.]+% after dr_grpo \(1 steps, \d+ s\)", out)
    # An answer before and after, as it stands in the file of what was answered; names are those seen from here.
    sample = json.loads((workdir / "summary.json").read_text())["sample"]
    first, last = sorted((workdir / "held_out").iterdir())
    for name, file in {"before": first, "after": last}.items():
        (record,) = (row for row in map(json.loads, file.open()) if row["prompt"] == sample["prompt"])
        assert record["completion"] == sample[name] and record["rewards"] == [sample[f"reward_{name}"]]
        assert f"  {name:6} {' '.join(sample[name].split())}  (reward {sample[f'reward_{name}']})" in out
    assert "jaxrl-llm sample runs/tiny\n" in out and "jaxrl-llm report runs/tiny\n" in out
    before = (workdir / "metrics.jsonl").read_bytes()
    status, again, _ = run(capsys, "train", f"--config={tiny}", "--config.rl.steps=1")
    assert status == 0 and (workdir / "metrics.jsonl").read_bytes() == before
    assert re.sub(r"\d+ s", "", again) == re.sub(r"\d+ s", "", out)


def test_a_run_is_not_taken_for_another(tiny, capsys):
    folder = finished("dr_grpo").workdir
    line = refused(capsys, "train", f"--config={tiny}", f"--workdir={folder}", "--config.seed=5")
    assert "config.seed is 5" in line and "was made with 0" in line and "another --workdir" in line


# ---- evaluate


def test_evaluate_measures_and_keeps_completions(tiny, tmp_path, capsys):
    policy, output = finished("dr_grpo").workdir, tmp_path / "deep" / "completions.jsonl"
    overrides = ["--config.evaluation.samples=4", "--config.evaluation.temperature=1.0", "--config.evaluation.batch=3"]
    status, out, _ = run(capsys, "evaluate", policy, f"--config={tiny}", f"--output={output}", *overrides)
    measured, records = json.loads(out), metrics.read_jsonl(output)
    assert status == 0 and all(metrics.defined(name) for name in measured)
    assert {"evaluation/accuracy", "evaluation/pass@4", "evaluation/maj@4", "evaluation/pass@4_error"} <= measured.keys()
    assert len(records) == 16 and len({record["prompt_id"] for record in records}) == 4
    lengths = [record["length"] for record in records]
    assert measured["evaluation/length"] == pytest.approx(sum(lengths) / 16)
    assert len({record["completion"] for record in records}) > 4
    assert run(capsys, "evaluate", policy, f"--config={tiny}", *overrides)[1] == out
    assert run(capsys, "evaluate", policy, f"--config={tiny}", *overrides, "--config.seed=1")[1] != out


def test_evaluate_agrees_with_the_run(tiny, capsys):
    policy = finished("dr_grpo")
    measured = json.loads(run(capsys, "evaluate", policy.workdir, f"--config={tiny}")[1])
    for name, value in measured.items():
        assert value == policy.metrics[-1][name]


@pytest.mark.slow
def test_evaluate_takes_the_configuration_of_the_run(chat_model, capsys):
    """Not that of the quickstart, whose sums say nothing of it; other folders need one."""
    policy = finished("dr_grpo")
    measured = json.loads(run(capsys, "evaluate", policy.workdir)[1])
    assert measured == {name: policy.metrics[-1][name] for name in measured}
    fewer = json.loads(run(capsys, "evaluate", policy.workdir, "--config.rl.max_new_tokens=5")[1])
    assert fewer["evaluation/length"] == 5 and measured["evaluation/length"] == 12
    assert "config.json" in refused(capsys, "evaluate", policy.workdir, "--config.evaluation.promts=3")
    assert "give --config=FILE" in refused(capsys, "evaluate", chat_model)


def test_evaluate_refuses_what_cannot_be(tiny, tmp_path, capsys):
    assert "neither the workdir of a run" in refused(capsys, "evaluate", tmp_path / "nosuch", f"--config={tiny}")
    policy = finished("dr_grpo").workdir
    line = refused(capsys, "evaluate", policy, f"--config={tiny}", "--config.evaluation.samples=4")
    assert "config.evaluation.samples is 4 at temperature 0" in line


# ---- sample


def test_sample_streams_one_completion(capsys):
    policy = finished("dr_grpo").workdir
    status, out, _ = run(capsys, "sample", policy, "1+2=", "--max-new-tokens=10", "--seed=3")
    assert status == 0 and out.endswith("\n") and len(out) <= 11
    assert set(out[:-1]) <= set(ALPHABET.removeprefix("characters:"))
    assert run(capsys, "sample", policy, "1+2=", "--max-new-tokens=10", "--seed=3")[1] == out
    others = {run(capsys, "sample", policy, "1+2=", "--max-new-tokens=10", f"--seed={seed}")[1] for seed in range(4)}
    assert len(others) > 1


def test_sample_is_what_generate_gives(capsys):
    from jaxrl_llm.sampling import generate

    policy = finished("dr_grpo").workdir
    network, tokenizer = load_policy(policy)
    prompt = tokenizer.encode("1+2=")
    greedy = generate(network, network.params, [prompt], max_new_tokens=10, temperature=0, stop_ids=tokenizer.stop_ids)
    expected = tokenizer.decode(greedy.tokens[0, : greedy.length[0]])
    assert run(capsys, "sample", policy, "1+2=", "--max-new-tokens=10", "--temperature=0")[1] == expected + "\n"


def test_sample_does_as_the_run_did(monkeypatch):
    """Its longest completion, its stop strings and its chat, unless the command says otherwise."""
    from jaxrl_llm.training import chat

    seen, folder = [], finished("dr_grpo").workdir
    monkeypatch.setattr(chat, "_answer", lambda *arguments: seen.append(arguments[-3:-1]))
    config = chat.run_config(folder)
    config.rl.stop_strings, config.task.chat, config.task.system = (";",), True, "Be brief."
    monkeypatch.setattr(chat, "run_config", lambda directory: config)
    monkeypatch.setattr(chat, "encode_prompt", lambda tokenizer, prompt: prompt)
    assert cli.main(["sample", str(folder), "1+2="]) == 0
    assert cli.main(["sample", str(folder), "1+2=", "--no-chat", "--max-new-tokens=7"]) == 0
    (chatted, sampling), (plain, shorter) = seen
    assert [message["content"] for message in chatted] == ["Be brief.", "1+2="] and plain == "1+2="
    assert sampling["max_new_tokens"] == 12 and shorter["max_new_tokens"] == 7
    assert sampling["stop_strings"] == (";",) and sampling["detokenize"]([1]) == "1"


def test_sample_asks_until_the_input_ends(monkeypatch, capsys):
    """An empty line, or one that the tokenizer cannot read, does not end the session."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("1+2=\n\nwhat?\n3+4=\n"))
    status, out, _ = run(capsys, "sample", finished("dr_grpo").workdir, "--max-new-tokens=6", "--temperature=0")
    assert status == 0
    assert "'w'" in out and "alphabet" in out  # says why
    for prompt in ("1+2=", "3+4="):
        alone = run(capsys, "sample", finished("dr_grpo").workdir, prompt, "--max-new-tokens=6", "--temperature=0")[1]
        assert alone.strip() in out


@pytest.mark.slow
def test_a_conversation_goes_on(chat_model, monkeypatch, capsys):
    """Each answer is sampled after the whole conversation, from the ids that were sampled before."""
    from jaxrl_llm.training import chat

    continued, go_on = [], chat.continue_dialogue
    monkeypatch.setattr(chat, "continue_dialogue", lambda *args: continued.append(args[2]) or go_on(*args))
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many rolls?\nAnd after noon?\n"))
    status, out, _ = run(capsys, "sample", chat_model, "--chat", "--system=Be brief.", "--max-new-tokens=8")
    assert status == 0 and out and len(continued) == 1
    assert [message["role"] for message in continued[0]] == ["system", "user", "assistant", "user"]
    assert continued[0][0]["content"] == "Be brief." and continued[0][3]["content"] == "And after noon?"
    assert continued[0][2]["content"] in out


def test_one_message_to_a_chat_model(chat_model, capsys):
    plain = run(capsys, "sample", chat_model, "How many rolls?", "--max-new-tokens=8", "--temperature=0")
    chat = run(capsys, "sample", chat_model, "How many rolls?", "--chat", "--max-new-tokens=8", "--temperature=0")
    assert plain[0] == chat[0] == 0 and plain[1] != chat[1]


def test_sample_refuses_what_cannot_be(chat_model, tmp_path, capsys):
    policy = finished("dr_grpo").workdir
    assert "no chat_template" in refused(capsys, "sample", policy, "1+1=", "--chat")
    assert "character 'x'" in refused(capsys, "sample", policy, "x")
    assert "neither the workdir" in refused(capsys, "sample", tmp_path, "1+1=")
    assert "top_p is 3.0" in refused(capsys, "sample", policy, "1+1=", "--top-p=3")
    assert "--chat" in refused(capsys, "sample", chat_model, "Hello", "--system=Be brief.")


# ---- convert


def test_convert_there_and_back(chat_model, tmp_path, capsys):
    orbax, back = tmp_path / "orbax", tmp_path / "back"
    status, out, _ = run(capsys, "convert", chat_model, orbax, "--to=orbax")
    assert status == 0 and out.startswith(f"wrote {orbax}") and "tokenizer.json" in out
    assert run(capsys, "convert", orbax, back, "--to=huggingface")[0] == 0
    prompts = [run(capsys, "sample", place, "A baker", "--max-new-tokens=8")[1] for place in (chat_model, orbax, back)]
    assert prompts[0] == prompts[1] == prompts[2]
    assert "exists already" in refused(capsys, "convert", chat_model, orbax, "--to=orbax")
    assert "float31" in refused(capsys, "convert", chat_model, tmp_path / "new", "--to=orbax", "--dtype=float31")
    assert "neither the workdir" in refused(capsys, "convert", tmp_path / "nosuch", tmp_path / "new", "--to=orbax")
    assert not (tmp_path / "new").exists()


# ---- as a process


def test_python_m_is_the_same_program():
    command = [sys.executable, "-m", "jaxrl_llm", "methods"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and "grpo" in done.stdout and done.stderr == ""
    done = subprocess.run([*command, "--show", "nosuch"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_help_imports_nothing_heavy():
    code = "import sys, jaxrl_llm.cli as cli; cli._parser(); print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_sizes_of_the_tiny_runs_are_those_of_the_configuration():
    network, _ = load_policy(finished("dr_grpo").workdir)
    assert {name: getattr(network.config, name) for name in SIZES} == SIZES


# ---- what a newcomer asks


def test_names_that_are_nearly_right_are_told(capsys):
    assert "method 'gropo' is unknown; did you mean 'grpo'" in refused(capsys, "methods", "--show", "gropo")
    assert "there is no chip 'v5'; did you mean 'v5p' or 'v5e'?" in refused(capsys, "plan", "--topology=v5:4x4")
    assert "did you mean 'behavior_value'" in refused(capsys, "methods", "--needs=behavior_valu")


def test_methods_are_searched(capsys):
    _, out, _ = run(capsys, "methods", "--search", "tango verifier")
    assert [line.split()[0] for line in out.splitlines()] == ["rl_tango", "tango_verifier"]
    _, out, _ = run(capsys, "methods", "--needs", "first_call")
    assert [line.split()[0] for line in out.splitlines()] == [
        name for name in methods.names() if "first_call" in methods.get(name).needs
    ]


def test_shells_complete_verbs(capsys):
    status, out, _ = run(capsys, "completion", "bash")
    assert status == 0 and "jaxrl_llm" in out and "--topology" in out


def test_a_dry_run_shows_what_would_be_done_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "train", "--dry-run", "--config.rl.prompts=4", "--config.rl.max_new_tokens=8")
    assert status == 0 and not list(tmp_path.iterdir())
    assert "sft: 500 steps of sft" in out and "rl: 80 steps of grpo" in out
    assert "17+93=[[7+3=10;1+9=10#0<eos>]]  (22 tokens, 16 learned)" in out
    assert "the first step reads 4 examples" in out and "'17+93=' (6 tokens); answer '110'" in out
    assert "parameters 0.82 MB, with optimizer and state 2.46 MB" in out and "  update: " in out
    assert "did you mean" in refused(capsys, "train", "--dry-run", "--config.method.name=gropo")


def test_what_was_interrupted_ends_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(cli, "main", lambda: cli.INTERRUPTED)
    monkeypatch.setattr(program.os, "_exit", ended.append)
    monkeypatch.setattr(program.sys, "unraisablehook", program.sys.unraisablehook)
    with pytest.raises(SystemExit):  # behind the end that the test takes away
        program.program()
    assert ended == [130]


def test_ctrl_c_within_a_callback_of_the_garbage_collector_is_not_lost(monkeypatch):
    again = threading.Event()
    monkeypatch.setattr(program._thread, "interrupt_main", again.set)
    program._not_lost(types.SimpleNamespace(exc_type=KeyboardInterrupt))
    assert not again.is_set() and again.wait(10.0)  # behind the callback, not within it
