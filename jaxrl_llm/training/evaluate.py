"""The verb `evaluate`: a policy from any folder on the held-out examples of a configuration."""

from __future__ import annotations

import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import rewards, rollouts
from jaxrl_llm.training import build
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.evaluation import evaluate
from jaxrl_llm.training.policies import load_policy


def evaluate_policy(directory: str | pathlib.Path, config: ConfigDict) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measures of `metrics.DEFINITIONS` under "evaluation/", and one record for each completion.

    Args:
      directory: of the policy; its own tokenizer is used.
      config: its sections `task`, `evaluation`, `rewards` and `rl.max_new_tokens` count.

    Raises:
      ValueError: the folder holds no policy, or the configuration is impossible.
    """
    check_config(config)
    network, tokenizer = load_policy(directory)
    source, settings = build.build_source(config, tokenizer, test=True), config.evaluation
    name = settings.reward or config.rewards.names[0]
    with rewards.RewardPool(config.rewards.workers) as pool:
        chosen = {name: build.load_reward(name)}

        def collect(examples, prompt_ids, samples, first_uid):
            return rollouts.collect(
                network.without_params(),
                network.params,
                tokenizer,
                lambda *texts: pool.score(chosen, *texts, config.rewards.deadline_seconds)[0],
                examples,
                prompt_ids,
                num_samples=samples,
                sampling=build.evaluation_sampling(config, tokenizer),
                max_prompt_tokens=config.task.max_prompt_tokens,
                seed=config.seed,
                step=0,
                first_uid=first_uid,
            )

        examples = [source[index] for index in range(min(settings.prompts, len(source)))]
        batch = min(settings.batch, len(examples))
        return evaluate(collect, examples, samples=settings.samples, batch=batch, final_answer=rewards.final_number)
