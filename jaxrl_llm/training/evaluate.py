"""The verb `evaluate`: a policy or a reward model from any folder on the held-out examples of a configuration."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import distributed, rewards, rollouts
from jaxrl_llm.training import build, combining, meshes
from jaxrl_llm.training.compiling import use_compilation_cache
from jaxrl_llm.training.config import check_config, preference_method, reinforcement_method, supervised_method
from jaxrl_llm.training.evaluation import evaluate_source, gap_bound, warn_of_gap
from jaxrl_llm.training.phases import samples_are_scored
from jaxrl_llm.training.policies import folder_kind, load_policy, run_config
from jaxrl_llm.training.preference import make_pair_evaluation
from jaxrl_llm.training.reward_functions import build_environment, build_reward, environment_settings, load_asked
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.scores import make_environment, make_score, timeouts
from jaxrl_llm.training.supervised import can_be_learned, make_loss_evaluation


def evaluate_folder(directory: str | pathlib.Path, config: ConfigDict) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What a run of the configuration measures: pairs, or answers, completions or both; and one record for each answer."""
    if config.preference.steps and not config.rl.steps:
        return evaluate_pairs(directory, config), []
    use_compilation_cache(config.log.compilation_cache)
    imitates = config.sft.steps and not config.rl.steps
    scored = samples_are_scored(config) or not imitates
    measured, records = evaluate_policy(directory, config) if scored else ({}, [])
    return measured | (evaluate_completions(directory, config) if imitates else {}), records


def evaluate_policy(directory: str | pathlib.Path, config: ConfigDict) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measures of `metrics.DEFINITIONS` under "evaluation/", and one record for each completion.

    Args:
      directory: of the policy; its own tokenizer is used.
      config: its sections `task`, `evaluation` and `rewards`, and of `rl` the `max_new_tokens`, `max_logp_gap` and
        `micro_batches` count.

    Raises ValueError: the folder holds no policy, or the configuration is impossible.
    """
    check_config(config)
    mesh = meshes.build_mesh(config)
    network, tokenizer = load_policy(directory, mesh=mesh)
    sampling_mesh = meshes.build_sampling_mesh(config, mesh)
    source = build.build_source(config, tokenizer, test=True, vocab_size=network.config.vocab_size)
    if folder_kind(directory) == "run":
        combining.check_prompts(run_config(directory), tokenizer, network, source)
    name = config.evaluation.reward or config.rewards.names[0]
    failures: list[rewards.RewardFailure] = []
    with build.build_pool(config) as pool, distributed.sharded(mesh):
        chosen = {name: build_reward(name, config, mesh)}
        judges = load_asked(chosen, config, mesh)
        judging = {
            folder: (own.without_params(), distributed.for_sampling(own.without_params(), own.params, sampling_mesh))
            for folder, (own, _) in judges.items()
        }
        params = distributed.for_sampling(network.without_params(), network.params, sampling_mesh)
        score, ahead = make_score(pool, chosen, config.rewards.deadline_seconds, told=set(), failures=failures)
        environment = build_environment(config, tokenizer)
        if environment is not None:
            options = {"told": set(), "failures": failures} | environment_settings(config)
            environment = make_environment(pool, environment, config.rewards.deadline_seconds, **options)
        io = rollouts.Io(
            tokenizer=tokenizer, tokenizers={folder: own for folder, (_, own) in judges.items()},
            policies={"policy": lambda: (network.without_params(), params)}
            | {folder: lambda own=own: own for folder, own in judging.items()},
            asked={"rewards": {name: chosen[name]}} if hasattr(chosen[name], "asks") else {},
            around=functools.partial(distributed.sharded, sampling_mesh), rewards=score, ahead=ahead,
            sampling=build.evaluation_sampling(config, tokenizer), max_prompt_tokens=config.task.max_prompt_tokens,
            seed=config.seed, step=0, environment=environment,
        )  # fmt: skip
        measured, records = evaluate_source(config, io.sample, source, chosen[name], network, mesh)
        warn_of_gap(measured, gap_bound(config.rl.max_logp_gap, network), 0)
        return measured | {"evaluation/timeouts": timeouts(failures)}, records


def evaluate_pairs(directory: str | pathlib.Path, config: ConfigDict) -> dict[str, float]:
    """Measures of `metrics.DEFINITIONS` under "evaluation/" of a network on held-out pairs, by the method of the preferences.

    Args:
      directory: of the network; its own tokenizer is used.
      config: its sections `task`, `preference` and `evaluation` count.

    Raises ValueError: the folder holds no network with the head that the method needs, or the configuration is impossible.
    """
    with _opened(directory, config) as run:
        if run.preference_method.needs_value_head and run.network.value is None:
            raise ValueError(f"{directory} holds a network without a value head; give a reward model")
        return make_pair_evaluation(run)(run.network.params, 0)


def evaluate_completions(directory: str | pathlib.Path, config: ConfigDict) -> dict[str, float]:
    """The loss of a policy on held-out completions, "evaluation/loss" in nats a token; nothing where there are none.

    Args:
      directory: of the policy; its own tokenizer is used.
      config: its sections `task`, `sft` and `evaluation` count.

    Raises ValueError: the folder holds no policy, or the configuration is impossible.
    """
    with _opened(directory, config) as run:
        if samples_are_scored(config) and not can_be_learned(run.test_source):
            return {}
        return make_loss_evaluation(run)(run.network.params, 0)


@contextlib.contextmanager
def _opened(directory: str | pathlib.Path, config: ConfigDict) -> Iterator[Run]:
    """What of a run evaluations without samples look at, with the network of the folder."""
    check_config(config)
    mesh = meshes.build_mesh(config)
    network, tokenizer = load_policy(directory, mesh=mesh)
    with build.build_pool(config) as pool, distributed.sharded(mesh):
        yield Run(
            config=config, workdir=pathlib.Path(directory), tokenizer=tokenizer, network=network, mesh=mesh, source=(),
            test_source=build.build_source(config, tokenizer, test=True), method=reinforcement_method(config),
            preference_method=preference_method(config), supervised_method=supervised_method(config), pool=pool, rewards={},
        )  # fmt: skip
