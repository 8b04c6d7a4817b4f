"""Strategies whose prompts are made of the step's own samples, and whose samples begin in modes."""

import dataclasses

import numpy as np

from jaxrl_llm.rollouts.collect import Collection, joined
from jaxrl_llm.rollouts.hints import scores_of
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.requests import Request, make_prefix, prompt_ids_of, requests_for
from jaxrl_llm.rollouts.strategy import Metrics, stateless_strategy
from jaxrl_llm.rollouts.views import templated

JUDGE = "{prompt}\n\nAn answer to this was:\n{completion}\n\nIs it right? Answer with 1 if it is and 0 if not."
COMPARE = "{prompt}\n\nAnswer 1:\n{first}\n\nAnswer 2:\n{second}\n\nOne of them is right. Answer with its number."
REFLECT = "{prompt}\n\nA wrong answer to this was:\n{completion}\n\nSay what is wrong, and answer the question."


@stateless_strategy
def recycled(
    io: Io, prompts: int, *, samples: int = 8, judge: str = JUDGE, compare: str = COMPARE, reflect: str = REFLECT,
    judged_alone: float = 0.3, most: int = 32, threshold: float = 0.0,
) -> tuple[Collection, Metrics]:  # fmt: skip
    """The policy also judges, compares and mends its samples of the step, in groups of prompts that are made of them.

    Of a prompt whose samples are all right, or all wrong, one is judged; of another one, with the probability `judged_alone`,
    too, else a right and a wrong one are compared, in either order. One wrong sample of each prompt is to be mended. The column
    "answer" of what is made is 1 or 0, the number of the right answer, or the example's own: rewards have to compare with it.

    Args:
      judge, compare, reflect: templates, see `views.templated`; "" leaves them out.
      most: prompts of judging and comparing, and as many of mending; those that are too long for a prompt are left out.

    Source: SPARK, https://arxiv.org/abs/2509.22624
    """
    asked = requests_for(*io.draw(prompts), samples=samples)
    plain = io.sample(asked)
    right = (scores_of(plain) > threshold).reshape(prompts, samples)
    texts = np.array([record["completion"] for record in plain.records], object).reshape(prompts, samples)
    chance = io.uniform(5 * prompts, salt=11).reshape(5, prompts)
    judging, mending = [], []
    for number, request in enumerate(asked):
        good, bad = texts[number, right[number]], texts[number, ~right[number]]
        alone, order, which, *picks = chance[:, number]
        one_of = [own[int(pick * len(own))] if len(own) else None for own, pick in zip((good, bad), picks, strict=True)]
        if compare and None not in one_of and alone >= judged_alone:
            wrong_first = int(order < 0.5)
            shown = {"first": one_of[wrong_first], "second": one_of[1 - wrong_first]}
            judging.append(_made(io, request, compare, str(1 + wrong_first), samples, **shown))
        elif judge:
            is_right = one_of[1] is None or (one_of[0] is not None and which < 0.5)
            shown = {"completion": one_of[0 if is_right else 1]}
            judging.append(_made(io, request, judge, str(int(is_right)), samples, **shown))
        if reflect and one_of[1] is not None:
            mending.append(_made(io, request, reflect, request.example.get("answer"), samples, completion=one_of[1]))
    chosen = [*filter(None, judging[:most]), *filter(None, mending[:most])]
    metrics = {"recycled/prompts": float(len(chosen))}
    if not chosen:
        return plain, metrics
    made = io.sample([dataclasses.replace(request, group=group) for group, request in enumerate(chosen)])
    return joined([plain, made]), metrics | {"recycled/right": float((scores_of(made) > threshold).mean())}


def _made(io: Io, request: Request, template: str, answer, samples: int, **shown) -> Request | None:
    """A request of the example with another prompt and answer; None where the prompt is too long."""
    prompt = templated(request.prompt, template, request.example | shown, io.tokenizer)
    if len(prompt_ids_of(io.tokenizer, prompt, request.example.get("tools"))) > io.max_prompt_tokens:
        return None
    example = request.example | {"prompt": prompt, "answer": answer}
    return Request(prompt, example, request.prompt_id, samples=samples)


@stateless_strategy(provides=("mode",))
def in_modes(
    io: Io, prompts: int, *, samples: int = 4, forced: int = 2, modes: tuple[str, ...] = ("<instant>", "<think>", "<tool>")
) -> tuple[Collection, Metrics]:
    """Groups of `forced` samples that begin in each mode, and `samples` that choose; `extras["mode"]` [N] is the mode's number.

    Args:
      forced: samples of each mode, whose beginning nobody learns.
      modes: what a completion begins with in each; a row that chooses none of them has as many as there are.

    Source: A2FM, https://arxiv.org/abs/2510.12838
    """
    plain = requests_for(*io.draw(prompts), samples=samples)
    begun = [make_prefix(io.tokenizer.encode(mode)) for mode in modes]
    all_of = [dataclasses.replace(own, prefix=prefix, samples=forced) for own in plain for prefix in begun]
    collection = io.sample([*plain, *all_of])
    texts = [record["completion"] for record in collection.records]
    mode = [next((place for place, own in enumerate(modes) if text.startswith(own)), len(modes)) for text in texts]
    free = mode[: prompts * samples]
    metrics = {f"modes/{place}": free.count(place) / len(free) for place in range(len(modes))}
    return collection.changed(extras={"mode": np.array(mode, np.int32)}), metrics
