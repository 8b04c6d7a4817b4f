"""Pairs whose prompts say more: which quality is wanted, or an answer that is to be improved."""

import re
from collections.abc import Sequence

from jaxrl_llm.data.sources import Example, Source


def goal_conditioned(source: Sequence[Example], *, goal: str = "overall score: {}") -> Source:
    """Twice as many pairs: each with the goal of its chosen text's score, and turned round with that of the rejected one's.

    Where the prompt asks for the score that the rejected text has, that text is the preferred one. After training on these
    pairs a prompt asks for the highest score.

    Args:
      source: pairs with numbers "chosen_score" and "rejected_score".
      goal: text with a place for the score; a line before a prompt of text, or a system message before chat messages.

    Returns: A source in which examples 2 i and 2 i + 1 come from example i; they have no margin.
    Raises ValueError: when it is read, an example without scores or whose chosen text has the lower one.
    Source: reward-augmented data, https://arxiv.org/abs/2410.08067
    """
    name = getattr(source, "name", "examples")

    def fetch(index: int) -> Example:
        example = {key: value for key, value in source[index // 2].items() if key != "margin"}
        scores = [example.get(f"{side}_score") for side in ("chosen", "rejected")]
        if None in scores or scores[0] < scores[1]:
            found = f"chosen_score={scores[0]}, rejected_score={scores[1]}"
            raise ValueError(f"{name} {index // 2}: {found}; give two scores, the chosen text's not below the other's")
        turned = index % 2
        sides = ("rejected", "chosen") if turned else ("chosen", "rejected")
        texts = {side: example[other] for side, other in zip(("chosen", "rejected"), sides, strict=True)}
        return (
            example
            | texts
            | {"prompt": _with_goal(example["prompt"], goal.format(scores[turned])), "completion": texts["chosen"]}
        )

    return Source(f"{name} with goals", 2 * len(source), fetch)


def revised(source: Sequence[Example], *, template: str) -> Source:
    """The pairs, each with "revisions": the prompt that shows its chosen text, and the one that shows its rejected text.

    Args:
      source: pairs.
      template: of the text of the prompt, in a chat that of the last message: "{prompt}" is that text, "{answer}" the answer.

    Raises ValueError: the template does not show both. When it is read, an example that is no pair.
    Source: SRPO, https://arxiv.org/abs/2406.01660
    """
    if "{prompt}" not in template or "{answer}" not in template:
        raise ValueError(f"template is {template!r}; it must have {{prompt}} and {{answer}}")
    name = getattr(source, "name", "examples")

    def shown(prompt, answer: str):
        if isinstance(prompt, str):
            return re.sub(r"\{(prompt|answer)\}", lambda name: {"prompt": prompt, "answer": answer}[name[1]], template)
        return [*prompt[:-1], {**prompt[-1], "content": shown(prompt[-1]["content"], answer)}]

    def fetch(index: int) -> Example:
        example = source[index]
        missing = next((side for side in ("chosen", "rejected") if side not in example), None)
        if missing:
            raise ValueError(f"{name} {index}: there is no {missing!r}; revisions are of pairs")
        sides = {side: shown(example["prompt"], example[side]) for side in ("chosen", "rejected")}
        return example | {"revisions": sides}

    return Source(f"{name} with revisions", len(source), fetch)


def _with_goal(prompt, goal: str):
    if isinstance(prompt, str):
        return f"{goal}\n{prompt}"
    system = [message["content"] for message in prompt[:1] if message["role"] == "system"]
    return [{"role": "system", "content": "\n".join([*system, goal])}, *prompt[len(system) :]]
