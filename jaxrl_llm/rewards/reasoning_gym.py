"""Scores of the generators of reasoning-gym."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def reasoning_gym_score(
    prompts: Sequence[Any], completions: Sequence[str], entry: Sequence[Mapping[str, Any]],
    generator: Sequence[Mapping[str, Any]], **columns: Any,
) -> list[float]:  # fmt: skip
    """What the generator of each problem thinks of the answer, in [0, 1]; some give part marks.

    The answer is the last `<answer>...</answer>` of the completion, else the completion as it is, white space at both
    ends aside.

    Args:
      entry: problems as their generators made them.
      generator: name and options of the generators, as `data.reasoning_gym_source` gives them.
    """
    rows = zip(completions, entry, generator, strict=True)
    return [float(_score(completion, problem, maker)) for completion, problem, maker in rows]


reasoning_gym_score.rowwise = True


def _score(completion: str, entry: Mapping[str, Any], generator: Mapping[str, Any]) -> float:
    found = _ANSWER.findall(completion)
    answer = (found[-1] if found else completion).strip()
    return _maker(generator["name"], json.dumps(generator["config"])).score_answer(answer, entry)


@functools.cache
def _maker(name: str, config: str):
    import reasoning_gym

    options = json.loads(config)
    if "datasets" in options:
        options["datasets"] = [reasoning_gym.composite.DatasetSpec(**spec) for spec in options["datasets"]]
    return reasoning_gym.create_dataset(name, **{**options, "size": 1, "seed": 0})
