"""The verbs: train, evaluate, sample, serve, convert, plan, report, methods, completion."""

import argparse
import ast
import json
import logging
import pathlib
import runpy
import sys
import traceback
from typing import Any

import jaxrl_llm
from jaxrl_llm.compose import near
from jaxrl_llm.failures import explain
from jaxrl_llm.progress import shown

# Verbs that say how far they are; `train` does where `config.log.live` is on.
LONG = ("evaluate", "sample", "serve", "convert", "plan")
INTERRUPTED = 130  # exit status
CONFIGS = pathlib.Path(jaxrl_llm.__file__).parent / "configs"


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status.

    What a user can mend is one line on stderr and status 2, see `failures.explain`; with `--debug` also the traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    foreign = [argument for argument in rest if not (hasattr(options, "config") and argument.startswith("--config."))]
    if foreign:
        parser.error(f"unknown argument {foreign[0]!r}; see `jaxrl-llm {options.verb} --help`")
    if not options.debug:  # what Orbax says of errors are tracebacks
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    hosts = _hosts(options)
    try:
        if hosts:
            hosts.start(options.coordinator, options.processes, options.process)
        with shown(options.verb in LONG and not (hosts and not hosts.is_first())):
            return options.run(options, rest)
    except KeyboardInterrupt as error:
        mend = "; the same command goes on from the last checkpoint" if options.verb == "train" else ""
        print(f"jaxrl-llm {options.verb}: interrupted{mend}", file=sys.stderr)
        return hosts.end(INTERRUPTED, error) if hosts else INTERRUPTED
    except Exception as error:
        line = explain(error)
        if line is None:
            if hosts:
                hosts.end(1, error)
            raise
        if options.debug:
            traceback.print_exc()
        print(f"jaxrl-llm {options.verb}: {line}", file=sys.stderr)
        return hosts.end(2, error) if hosts else 2


def _hosts(options):
    """What joins several hosts and ends one of them, for verbs that run on several; the others do without JAX."""
    if hasattr(options, "coordinator"):
        from jaxrl_llm import distributed

        return distributed
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxrl-llm", description=jaxrl_llm.__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    overrides = "Change any key of the configuration with --config.section.key=value."

    train = verbs.add_parser("train", help="train, or resume, the run in a folder", description=overrides)
    train.add_argument("--config", default=str(CONFIGS / "quickstart.py"), help="configuration file (default: quickstart)")
    train.add_argument("--workdir", help="folder of the run, or gs://BUCKET/FOLDER (default: runs/NAME of the configuration)")
    train.add_argument("--dry-run", action="store_true", help="check everything, and show what would be done, in a few seconds")
    train.set_defaults(run=_train)
    _add_hosts(train)

    evaluate = verbs.add_parser("evaluate", help="quality of a policy, or of a reward model on pairs", description=overrides)
    evaluate.add_argument("policy", help="workdir of a run, Hugging Face directory, or converted folder")
    evaluate.add_argument("--config", help="configuration file (default: that of the run; other folders need one)")
    evaluate.add_argument("--output", type=pathlib.Path, help="JSONL file for the completions")
    evaluate.set_defaults(run=_evaluate)
    _add_hosts(evaluate)

    sample = verbs.add_parser("sample", help="stream a completion, or chat")
    sample.add_argument("policy", help="workdir of a run, Hugging Face directory, or converted folder")
    sample.add_argument("prompt", nargs="?", help="text to continue; without it, an interactive session")
    chats = argparse.BooleanOptionalAction
    sample.add_argument("--chat", action=chats, help="prompts are messages to a chat model (default: as in the run)")
    sample.add_argument("--system", help="system message of a chat (default: that of the run)")
    sample.add_argument("--max-new-tokens", type=int, help="default: as in the run, or 256")
    sample.add_argument("--temperature", type=float, help="0 is greedy (default: that of generation_config.json, or 1)")
    sample.add_argument("--top-k", type=int)
    sample.add_argument("--top-p", type=float)
    sample.add_argument("--min-p", type=float)
    sample.add_argument("--seed", type=int, default=0)
    sample.set_defaults(run=_sample)

    serve = verbs.add_parser("serve", help="answer clients of OpenAI's interface")
    serve.add_argument("policy", help="workdir of a run, Hugging Face directory, or converted folder")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    serve.add_argument("--name", help="of the model (default: that of the folder)")
    serve.add_argument("--token", default="", help="that clients must send; JAXRL_LLM_TOKEN in the environment is one too")
    serve.add_argument("--slots", type=int, default=32, help="samples that are drawn at a time")
    serve.add_argument("--context", type=int, default=4096, help="most tokens of a prompt with its answer")
    serve.add_argument("--max-new-tokens", type=int, default=512, help="where a request does not say")
    serve.set_defaults(run=_serve)

    convert = verbs.add_parser("convert", help="Hugging Face directory to Orbax, or a run's policy to Hugging Face")
    convert.add_argument(
        "source", help="workdir of a run, Hugging Face directory, or converted folder; A,B for the mean of both"
    )
    convert.add_argument("target", help="folder to write; it must not exist")
    convert.add_argument("--to", required=True, choices=("huggingface", "orbax", "peft"))
    convert.add_argument("--dtype", default="", help="of the parameters that are written (default: as they are)")
    convert.set_defaults(run=_convert)

    plan = verbs.add_parser("plan", help="compile a run's step for a TPU slice, without one", description=overrides)
    plan.add_argument("--config", default=str(CONFIGS / "quickstart.py"), help="configuration file (default: quickstart)")
    plan.add_argument("--topology", required=True, help="chip and sides of the slice, such as v5e:4x4 or v5p:4x4x4")
    plan.add_argument("--slices", type=int, default=1, help="number of such slices")
    plan.add_argument("--model", help="a published model, such as qwen3-8b, in place of the configuration's network")
    plan.add_argument("--search", action="store_true", help="try all meshes, and plan the best")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(run=_plan)

    report = verbs.add_parser("report", help="one page of runs: curves, differences, completions, faults")
    report.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run")
    report.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report.html"), help="file to write")
    report.set_defaults(run=_report)

    methods = verbs.add_parser("methods", help="the catalogue of methods")
    methods.add_argument("--show", metavar="NAME", help="one method: its paper, options and composition")
    methods.add_argument("--search", metavar="TEXT", help="those whose name, paper or summary has all of these words")
    methods.add_argument("--needs", metavar="NAME", help="those that need it, such as reference_logp, behavior_value or format")
    methods.set_defaults(run=_methods)

    completion = verbs.add_parser("completion", help="a script by which a shell completes commands")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=_completion)
    for verb in verbs.choices.values():  # behind the verb, too; unset there, so that it does not undo the one before it
        verb.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of errors")
    return parser


def _add_hosts(verb: argparse.ArgumentParser) -> None:
    hosts = verb.add_argument_group("several hosts", "The same command on each; TPU slices, GKE and Slurm need none of these.")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    hosts.add_argument("--processes", type=int, help="how many there are; 1: this one is alone")
    hosts.add_argument("--process", type=int, help="number of this one, from 0")


def load_config(path: str, overrides: list[str]):
    """Configuration of a file, changed by `--config.section.key=value` arguments.

    Args:
      path: of the file; one such as "configs/gsm8k.py" that is not there is looked for among those of the program.
      overrides: the arguments.

    Raises ValueError: no such file, an unknown key, or a value of another type.
    """
    file = next((place for place in (pathlib.Path(path), CONFIGS.parent / path) if place.is_file()), None)
    if file is None:
        known = ", ".join(sorted(str(file) for file in CONFIGS.glob("[!_]*.py")))
        raise ValueError(f"--config={path}: there is no such file; there are {known}")
    return override(lambda: _run_file(str(file)), overrides, path)


def override(build, overrides: list[str], place: str):
    """The configuration that `build()` makes, changed by `--config.section.key=value` arguments.

    Raises ValueError: an unknown key, or a value of another type; `place` says where the others come from.
    """
    from absl import flags
    from ml_collections import config_flags

    from jaxrl_llm.training.config import FREE_SECTIONS, NULLABLE, free_section

    prefixes = tuple(f"--config.{name}{end}" for name in FREE_SECTIONS for end in (".", "="))
    free = [argument for argument in overrides if argument.startswith(prefixes)]
    absent = {f"--config.{name}=None": name for name in NULLABLE}  # flags of numbers do not know None
    typed = [argument for argument in overrides if argument not in free and argument not in absent]
    values = flags.FlagValues()
    try:
        config = build()
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=False, sys_argv=["", *typed])
        values(["", *typed])
    except (AttributeError, KeyError) as error:
        reason = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").strip("'\"").split())
        reason = reason.partition(" Other fields present")[0]
        place = f"{place} or {typed}" if typed else place
        raise ValueError(f"unknown key in {place}: {reason}; jaxrl_llm/training/config.py has all keys") from error
    except (flags.Error, TypeError) as error:
        raise ValueError(str(error)) from error
    for name in map(absent.get, filter(absent.__contains__, overrides)):
        config.update_from_flattened_dict({name: None})
    for argument in free:
        path, value = _split_override(argument)
        section = next(name for name in FREE_SECTIONS if f"{path}.".startswith(f"{name}."))
        _set_free(free_section(config, section), path.removeprefix(section).removeprefix("."), value, argument)
    return config


def _run_file(path: str):
    """What the `get_config()` of a configuration file returns."""
    namespace = runpy.run_path(path)
    if "get_config" not in namespace:
        raise ValueError(f"--config={path}: the file has no get_config(); see {CONFIGS / 'quickstart.py'}")
    return namespace["get_config"]()


def _set_free(section, name: str, value, argument: str) -> None:
    """Sets one option of a free section; without a name, `value` is a dict that replaces all of them."""
    if not name and not isinstance(value, dict):
        raise ValueError(f"{argument}: the whole section must be a dict such as {{'samples': 8}}")
    if not name:
        for old in list(section):
            del section[old]
    for part in reversed(name.split(".") if name else ()):
        value = {part: value}
    try:
        section.update(value)
    except TypeError as error:
        raise ValueError(f"{argument}: {error}") from error


def _split_override(argument: str) -> tuple[str, Any]:
    path, equals, text = argument.removeprefix("--config.").partition("=")
    if not equals:
        raise ValueError(f"{argument} has no value; write {argument}=VALUE")
    try:
        return path, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return path, text


def _train(options, overrides: list[str]) -> int:
    from jaxrl_llm import distributed
    from jaxrl_llm.training.loop import Stopped, train
    from jaxrl_llm.training.rounds import train_in_rounds
    from jaxrl_llm.training.summary import in_words

    config = load_config(options.config, overrides)
    workdir = options.workdir or str(pathlib.Path("runs") / pathlib.Path(options.config).stem)
    if options.dry_run:
        from jaxrl_llm.training.rehearsal import rehearse

        print("\n".join(rehearse(config)))
        return 0
    try:
        summaries = train_in_rounds(config, workdir) if config.rounds else {"": train(config, workdir)}
    except Stopped as stopped:
        print(stopped)
        return 0
    for name, summary in summaries.items() if distributed.is_first() else ():
        print(name, end=": " if name else "")
        print(in_words(summary))
    return 0


def _config_of(policy: str, path: str | None, overrides: list[str]):
    """The configuration that a policy is measured by: of the file, or that of its own run."""
    from jaxrl_llm.training.policies import folder_kind, run_config

    if path is not None:
        return load_config(path, overrides)
    if folder_kind(policy) != "run":
        raise ValueError(f"{policy} is no run, which would say what to measure; give --config=FILE")
    return override(lambda: run_config(policy), overrides, f"{policy}/config.json")


def _evaluate(options, overrides: list[str]) -> int:
    from jaxrl_llm.training.evaluate import evaluate_folder
    from jaxrl_llm.training.metrics import plain, write_table

    config = _config_of(options.policy, options.config, overrides)
    if options.output and config.preference.steps and not config.rl.steps:
        raise ValueError(f"--output={options.output} would stay empty: pairs have no completions; leave it out")
    measured, records = evaluate_folder(options.policy, config)
    _tell_sampling(options.policy, config)
    if options.output:
        write_table(options.output, records)
    print(json.dumps(plain(measured), indent=2))
    return 0


def _tell_sampling(policy: str, config) -> None:
    """Says how answers were sampled, and where the makers of the checkpoint want it otherwise."""
    from jaxrl_llm.training.policies import generation_settings

    told = f"sampled at temperature {config.evaluation.temperature} (config.evaluation.temperature)"
    others = generation_settings(policy)
    if others.get("temperature", config.evaluation.temperature) != config.evaluation.temperature or len(others) > 1:
        wanted = ", ".join(f"{name} {value}" for name, value in others.items())
        told += f"; its generation_config.json says {wanted}"
    print(told, file=sys.stderr)


def _sample(options, _) -> int:
    from jaxrl_llm.training.chat import converse

    sampling = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")}
    converse(options.policy, options.prompt, chat=options.chat, system=options.system, sampling=sampling)
    return 0


def _serve(options, _) -> int:
    from jaxrl_llm.training.serve import serve

    names = ("host", "port", "name", "token", "slots", "context", "max_new_tokens")
    serve(options.policy, **{name: getattr(options, name) for name in names})
    return 0


def _convert(options, _) -> int:
    from jaxrl_llm.training.policies import convert

    files = convert(options.source, options.target, to=options.to, dtype=options.dtype)
    tokenizer = ", ".join(files) if files else "its tokenizer has no files; add those of another to sample from it"
    print(f"wrote {options.target} ({tokenizer})")
    return 0


def _plan(options, overrides: list[str]) -> int:
    from jaxrl_llm.distributed.chips import parse_topology
    from jaxrl_llm.training.plan import make_plan, rows

    wanted = parse_topology(options.topology, options.slices)
    named = [f"--config.network.name={options.model}", "--config.network.directory="] if options.model else []
    found = make_plan(load_config(options.config, [*overrides, *named]), wanted, search=options.search)
    plain = json.loads(json.dumps(found), parse_constant=lambda _: None)  # JSON has no infinite seconds
    print(json.dumps(plain, indent=2) if options.json else "\n".join(rows(found)))
    return 0 if found["fits"] else 1


def _report(options, _) -> int:
    from jaxrl_llm.training.pages import report

    options.out.write_text(report(options.runs), encoding="utf-8")
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")
    return 0


def _completion(options, _) -> int:
    try:
        import shtab
    except ImportError as error:
        raise ValueError("completion needs shtab: pip install 'jaxrl_llm[completion]'") from error
    print(shtab.complete(_parser(), shell=options.shell))
    return 0


def _searched(entry: dict[str, Any]) -> str:
    return f"{entry['name']} {entry['paper']} {entry['summary']} {entry['url']}".lower()


def _methods(options, _) -> int:
    from jaxrl_llm import methods

    if options.show is None:
        words = (options.search or "").lower().split()
        table = [entry for entry in methods.table() if all(word in _searched(entry) for word in words)]
        if options.needs and not any(options.needs in entry["needs"] for entry in table):
            known = sorted({need for entry in methods.table() for need in entry["needs"]})
            raise ValueError(f"--needs={options.needs}: no such method needs it{near(options.needs, known)}; there are {known}")
        for entry in table:
            if options.needs is None or options.needs in entry["needs"]:
                print(f"{entry['name']:24} {entry['year']}  {entry['certainty']:6}  {entry['summary']}")
        return 0
    methods.get(options.show)  # an unknown name is an error that lists the known ones
    entry = next(entry for entry in methods.table() if entry["name"] == options.show)
    print(f"{entry['name']}: {entry['summary']}\n{entry['paper']}, {entry['url']} ({entry['certainty']})\n")
    print(entry["composition"])
    for name in ("options", "conventions"):
        print(f"{name:11} = {', '.join(f'{key}={value!r}' for key, value in entry[name].items()) or 'none'}")
    print(f"needs       = {', '.join(entry['needs']) or 'nothing'}")
    for title, name in {"Defaults": "defaults", "Not confirmed": "unconfirmed"}.items():
        if entry[name]:
            print(f"\n{title}: {entry[name]}")
    return 0
