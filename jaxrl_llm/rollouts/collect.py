"""From examples to scored samples: encode, sample, decode, reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.data.dialogues import encode_example
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.rollouts.records import make_rollouts
from jaxrl_llm.sampling import STOP, Samples, finish_name, generate
from jaxrl_llm.types import Rollouts

ANSWERS = ("sampled", "greedy", "given")
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
    content = prompt if isinstance(prompt, str) else prompt[-1].get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(str(part.get("text", "")) for part in content)


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
    answers: str = "sampled",
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
      score: `(prompts, completions, columns) -> rewards [N, K]`, within +-1e6, NaN where missing.
      examples: dicts with "prompt" and the columns that rewards use.
      prompt_ids: number of each example in its source.
      num_samples: completions of each example.
      first_uid: number of the first sample within the step.
      answers: "sampled" as `sampling` says; "greedy"; or "given", which takes the examples' own "completion" as it stands, with
        source 1 and a `behavior_logp` of 0, the convention for text whose author's probabilities are unknown.
      sampling: keyword arguments of `sampling.generate`, "max_new_tokens" among them.
      reward_weights: factor of each component in the rollouts; the records keep the rewards as they are.
      max_prompt_tokens: longest prompt.
      seed: of the run.
      step: of the training.

    Raises:
      ValueError: a prompt of more than `max_prompt_tokens` tokens; an example without a completion, or one of more than
        "max_new_tokens" tokens, where these are to be given; unknown answers; a reward out of range.
    """
    if answers not in ANSWERS:
        raise ValueError(f"answers is {answers!r}; it must be one of {ANSWERS}")
    prompts = [encode_prompt(tokenizer, example["prompt"], tools=example.get("tools")) for example in examples]
    for number, prompt in zip(prompt_ids, prompts, strict=True):
        if len(prompt) > max_prompt_tokens:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, more than max_prompt_tokens = {max_prompt_tokens}; "
                "raise max_prompt_tokens or set task.drop_long to leave such prompts out"
            )
    uids = range(first_uid, first_uid + len(prompts) * num_samples)
    if answers == "given":
        samples = given_samples(tokenizer, examples, num_samples, sampling["max_new_tokens"])
    else:
        chosen = sampling | ({"temperature": 0.0} if answers == "greedy" else {})
        samples = generate(network, params, prompts, num_samples=num_samples, seed=seed, step=step, uids=uids, **chosen)
    texts = [tokenizer.decode(row[:length]) for row, length in zip(samples.tokens, samples.length, strict=True)]
    repeated = [example for example in examples for _ in range(num_samples)]
    rewards = score([prompt_text(example) for example in repeated], texts, _columns(repeated, samples))
    width = max_prompt_tokens + sampling["max_new_tokens"]
    weighted = rewards * np.asarray(reward_weights) if len(reward_weights) else rewards
    rollouts = make_rollouts(prompts, samples, weighted, prompt_ids, width=width, version=step)
    if answers == "given":
        rollouts = rollouts.replace(source=np.ones_like(rollouts.source))
    return Collection(rollouts, _records(repeated, texts, rewards, rollouts, samples))


def given_samples(tokenizer: Tokenizer, examples: Sequence[Example], num_samples: int, width: int) -> Samples:
    """The completion of each example `num_samples` times over, in the form of samples; all log-probabilities are 0."""
    rows = []
    for number, example in enumerate(examples):
        ids, learned = encode_example(tokenizer, example)
        rows.append([token for token, is_learned in zip(ids, learned, strict=True) if is_learned])
        if len(rows[-1]) > width:
            raise ValueError(
                f"the completion of example {number} has {len(rows[-1])} tokens, more than max_new_tokens = {width}"
            )
    rows = [row for row in rows for _ in range(num_samples)]
    tokens, zeros = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    length = np.array([len(row) for row in rows], np.int32)
    logp = dict.fromkeys(("logp", "tempered_logp", "sampling_logp"), zeros)
    return Samples(tokens=tokens, length=length, finish_reason=np.full(len(rows), STOP, np.int32), **logp)


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
