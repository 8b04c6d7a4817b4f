"""Prompts that are made of the step's samples, and samples that begin in modes."""

import numpy as np
from rollouts.test_hints import Hinted

from jaxrl_llm.rollouts import in_modes, recycled

SHORT = {"judge": "J {completion}", "compare": "C {first} {second}", "reflect": "R {completion}"}


class Saying(Hinted):
    """Completions are the prompt and the number of the sample."""

    def __init__(self, table):
        super().__init__(table, answer="gold")
        self.max_prompt_tokens, self.seed = 50, 0

    def sample(self, requests, *, rewarded=True):
        found = super().sample(requests, rewarded=rewarded)
        numbers = [number for request in requests for number in range(request.samples)]
        for record, request, number in zip(found.records, found.requests, numbers, strict=True):
            begun = "" if request.prefix is None else self.tokenizer.decode(request.prefix.tokens)
            record["completion"] = f"{begun}{request.prompt}:{number}"
        return found


def test_samples_are_judged_compared_and_mended():
    source = Saying(lambda prompt, number, n: number == 0 or (number == 2 and n == 1))
    found, metrics = recycled(samples=2, judged_alone=0.0, **SHORT).run(source, (), 3)[::2]
    made = source.asked[1]
    by_prompt = {}
    for request in made:
        by_prompt.setdefault(request.prompt_id, []).append((request.prompt, request.example["answer"]))
    # All right, all wrong, and one of each.
    assert by_prompt[0] in ([("J 0:0", "1")], [("J 0:1", "1")])
    assert by_prompt[1][0] in (("J 1:0", "0"), ("J 1:1", "0")) and by_prompt[1][1] in (("R 1:0", "gold"), ("R 1:1", "gold"))
    assert by_prompt[2][0] in (("C 2:0 2:1", "2"), ("C 2:1 2:0", "1")) and by_prompt[2][1] == ("R 2:0", "gold")
    assert len(made) == 5 == metrics["recycled/prompts"] and len(found.rollouts.length) == 6 + 10
    assert np.unique(found.rollouts.group, return_inverse=True)[1].tolist() == np.repeat(range(8), 2).tolist()
    alone = Saying(lambda prompt, number, n: n == 1)
    recycled(samples=2, judged_alone=1.0, reflect="", judge=SHORT["judge"]).run(alone, (), 3)
    for request in alone.asked[1]:
        assert request.example["answer"] == request.prompt[-1]
    long = Saying(lambda *_: False)
    long.max_prompt_tokens = 2
    assert len(recycled(samples=2, **SHORT).run(long, (), 2)[0].records) == 4 and len(long.asked) == 1


def test_rows_begin_in_modes_or_choose_them():
    source = Saying(lambda *_: True)
    found, metrics = in_modes(samples=2, forced=1, modes=("0", "<think>")).run(source, (), 2)[::2]
    assert found.rollouts.group.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert found.rollouts.extras["mode"].tolist() == [0, 0, 2, 2, 0, 1, 0, 1]
    assert metrics == {"modes/0": 0.5, "modes/1": 0.0}
