"""The verb `evaluate`: a policy or a reward model from any folder on the held-out examples of a configuration."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import methods, rewards, rollouts
from jaxrl_llm.training import build
from jaxrl_llm.training.agreement import make_agree
from jaxrl_llm.training.config import check_config, method_options, preference_method, supervised_method
from jaxrl_llm.training.evaluation import evaluate, warn_of_gap
from jaxrl_llm.training.policies import load_policy
from jaxrl_llm.training.preference import make_pair_evaluation
from jaxrl_llm.training.reward_functions import build_reward
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.scores import make_score, timeouts


def evaluate_policy(directory: str | pathlib.Path, config: ConfigDict) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measures of `metrics.DEFINITIONS` under "evaluation/", and one record for each completion.

    Args:
      directory: of the policy; its own tokenizer is used.
      config: its sections `task`, `evaluation` and `rewards`, and of `rl` the `max_new_tokens`, `max_logp_gap` and
        `micro_batches` count.

    Raises:
      ValueError: the folder holds no policy, or the configuration is impossible.
    """
    check_config(config)
    network, tokenizer = load_policy(directory)
    settings, vocab_size = config.evaluation, network.config.vocab_size
    source = build.build_source(config, tokenizer, test=True, vocab_size=vocab_size)
    name = settings.reward or config.rewards.names[0]
    failures: list[rewards.RewardFailure] = []
    with build.build_pool(config) as pool:
        chosen = {name: build_reward(name, config)}
        collect = functools.partial(
            rollouts.collect,
            network.without_params(),
            network.params,
            tokenizer,
            make_score(pool, chosen, config.rewards.deadline_seconds, told=set(), failures=failures),
            sampling=build.evaluation_sampling(config, tokenizer),
            max_prompt_tokens=config.task.max_prompt_tokens,
            seed=config.seed,
            step=0,
        )
        examples = [source[index] for index in range(min(settings.prompts, len(source)))]
        batch = min(settings.batch, len(examples))
        agree = make_agree(
            network.without_params(),
            network.params,
            temperature=settings.temperature,
            bound=config.rl.max_logp_gap,
            width=config.task.max_prompt_tokens + config.rl.max_new_tokens,
            parts=config.rl.micro_batches,
        )
        options = {"final_answer": rewards.answer_of(chosen[name]), "agree": agree, "greedy": settings.temperature == 0}
        measured, records = evaluate(collect, examples, samples=settings.samples, batch=batch, **options)
        warn_of_gap(measured, config.rl.max_logp_gap, 0)
        return measured | {"evaluation/timeouts": timeouts(failures)}, records


def evaluate_pairs(directory: str | pathlib.Path, config: ConfigDict) -> dict[str, float]:
    """Measures of `metrics.DEFINITIONS` under "evaluation/" of a network on held-out pairs, by the method of the preferences.

    Args:
      directory: of the network; its own tokenizer is used.
      config: its sections `task`, `preference` and `evaluation` count.

    Raises:
      ValueError: the folder holds no network with the head that the method needs, or the configuration is impossible.
    """
    check_config(config)
    network, tokenizer = load_policy(directory)
    method = preference_method(config)
    if method.needs_value_head and network.value is None:
        raise ValueError(f"{directory} holds a network without a value head; give a reward model")
    with build.build_pool(config) as pool:
        run = Run(
            config=config,
            workdir=pathlib.Path(directory),
            tokenizer=tokenizer,
            network=network,
            source=(),
            test_source=build.build_source(config, tokenizer, test=True),
            method=methods.get(config.method.name, **method_options(config)),
            preference_method=method,
            supervised_method=supervised_method(config),
            pool=pool,
            rewards={},
        )
        return make_pair_evaluation(run)(network.params, 0)
