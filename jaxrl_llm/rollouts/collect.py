"""From examples to scored samples: encode, sample, decode, reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.rollouts.records import make_rollouts
from jaxrl_llm.sampling import Samples, finish_name, generate
from jaxrl_llm.types import Rollouts

Example = dict[str, Any]
Score = Callable[[list[str], list[str], dict[str, list]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Collection:
    """Rollouts with one record a row for people to read."""

    rollouts: Rollouts
    records: list[dict[str, Any]]


def prompt_text(example: Example) -> str:
    """The prompt as one text: that of its last message where it is a chat."""
    prompt = example["prompt"]
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def collect(
    network,
    params,
    tokenizer: Tokenizer,
    score: Score,
    examples: Sequence[Example],
    prompt_ids: Sequence[int],
    num_samples: int,
    first_uid: int = 0,
    *,
    sampling: dict[str, Any],
    reward_weights: Sequence[float] = (),
    max_prompt_tokens: int,
    seed: int,
    step: int,
) -> Collection:
    """Samples and scores `num_samples` completions of each example.

    Args:
      network: a network, without parameters.
      params: its parameters.
      tokenizer: of the prompts and completions.
      score: `(prompts, completions, columns) -> rewards [N, K]`, NaN where missing.
      examples: dicts with "prompt" and the columns that rewards use.
      prompt_ids: number of each example in its source.
      num_samples: completions of each example.
      first_uid: number of the first sample within the step.
      sampling: keyword arguments of `sampling.generate`, "max_new_tokens" among them.
      reward_weights: factor of each component in the rollouts; the records keep the rewards as they are.
      max_prompt_tokens: longest prompt.
      seed: of the run.
      step: of the training.

    Raises:
      ValueError: a prompt of more than `max_prompt_tokens` tokens.
    """
    prompts = [encode_prompt(tokenizer, example["prompt"], tools=example.get("tools")) for example in examples]
    for number, prompt in zip(prompt_ids, prompts, strict=True):
        if len(prompt) > max_prompt_tokens:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, more than max_prompt_tokens = {max_prompt_tokens}; "
                "raise max_prompt_tokens or set task.drop_long to leave such prompts out"
            )
    uids = range(first_uid, first_uid + len(prompts) * num_samples)
    samples = generate(network, params, prompts, num_samples=num_samples, seed=seed, step=step, uids=uids, **sampling)
    texts = [tokenizer.decode(row[:length]) for row, length in zip(samples.tokens, samples.length, strict=True)]
    repeated = [example for example in examples for _ in range(num_samples)]
    rewards = score([prompt_text(example) for example in repeated], texts, _columns(repeated, samples))
    width = max_prompt_tokens + sampling["max_new_tokens"]
    weighted = rewards * np.asarray(reward_weights) if len(reward_weights) else rewards
    rollouts = make_rollouts(prompts, samples, weighted, prompt_ids, width=width, version=step)
    return Collection(rollouts, _records(repeated, texts, rewards, rollouts, samples))


def _columns(examples: Sequence[Example], samples: Samples) -> dict[str, list]:
    """Columns for the rewards: every field of the examples but the prompt, and the completions' lengths in tokens."""
    names = {name for example in examples for name in example} - {"prompt"}
    columns = {name: [example.get(name) for example in examples] for name in sorted(names)}
    return columns | {"completion_length": [int(length) for length in samples.length]}


def _records(examples, texts, rewards, rollouts: Rollouts, samples: Samples) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": int(rollouts.prompt_id[row]),
            "prompt": prompt_text(example),
            "completion": text,
            "answer": example.get("answer"),
            "rewards": [None if np.isnan(value) else float(value) for value in rewards[row]],
            "length": int(samples.length[row]),
            "finish_reason": finish_name(samples.finish_reason[row]),
        }
        for row, (example, text) in enumerate(zip(examples, texts, strict=True))
    ]
