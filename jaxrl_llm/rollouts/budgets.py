"""A strategy that asks for the answer at several budgets of thought."""

import dataclasses
from typing import Literal

import numpy as np

from jaxrl_llm.compose import require
from jaxrl_llm.rollouts.collect import Collection, arranged, fork
from jaxrl_llm.rollouts.forks import with_text
from jaxrl_llm.rollouts.hints import scores_of
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.requests import requests_for
from jaxrl_llm.rollouts.strategy import Metrics, stateless_strategy


@stateless_strategy(provides=("value_before", "value_behind"))
def budgeted(
    io: Io, prompts: int, *, samples: int = 8, budgets: tuple[int, ...] = (64, 128, 192, 256), summaries: int = 4,
    text: str = "\n</think>\n\n", prior: Literal["uniform", "linear", "last"] = "uniform",
) -> tuple[Collection, Metrics]:  # fmt: skip
    """Cuts each of `samples` thoughts of a prompt at m budgets, and asks `summaries` times for an answer from there.

    With r_j the mean reward of the answers at budget j, that of the row itself where it is over by then, and P_j the prior of
    budgets, what the tokens of segment j of a thought are worth is R_j = sum of P_k r_k over k >= j, against the baseline

        j / m (sum_{i<j} 2^i r_i / sum_{i<j} 2^i) sum_{k>=j} P_k + (m - j) / m (mean of R_j over the thoughts of the prompt).

    Both stand in `extras["value_behind"]` and `["value_before"]` [N, T], for `segment_advantage`. Answers are rows of their
    own, which learn nothing of thought and text, against the mean of the answers from the same cut.

    Args:
      io: see `Io`.
      prompts: of the step.
      samples: thoughts of each prompt.
      budgets: tokens, rising; the last one bounds thoughts.
      summaries: answers at each cut.
      text: that ends a thought, which nobody learns.
      prior: all budgets alike, in proportion to them, or the last one alone.

    Source: AnytimeReasoner (BRPO), https://arxiv.org/abs/2505.13438
    """
    require(list(budgets) == sorted(set(budgets)) and budgets[0] >= 1, "budgets", budgets, "rising numbers of tokens")
    thoughts = io.sample(requests_for(*io.draw(prompts), samples=samples, limit=budgets[-1]))
    rollouts, start = thoughts.rollouts, thoughts.prompt_length
    rows, asked, cuts = len(start), [], []
    for row in range(rows):
        for number, budget in enumerate(budgets):
            if budget > rollouts.length[row] - start[row] or _is_over(thoughts, row, budget):
                continue
            request = fork(thoughts, row, int(start[row]) + budget)
            ended = with_text(_unlearned(request.prefix), text, io)
            if ended is not None:
                asked.append(dataclasses.replace(request, prefix=ended, samples=summaries, limit=None))
                cuts.append((row, number))
    own = scores_of(thoughts)
    reward = np.tile(own[:, None], (1, len(budgets)))
    answers = io.sample(asked) if asked else None
    means = scores_of(answers).reshape(-1, summaries).mean(axis=1) if asked else []
    for (row, number), mean in zip(cuts, means, strict=True):
        reward[row, number] = mean
    parts = [thoughts] if answers is None else [thoughts, answers]
    groups = [*rollouts.group, *(rows + np.repeat(np.arange(len(cuts)), summaries))]
    found = arranged(parts, [(0, row) for row in range(rows)] + [(1, row) for row in range(len(cuts) * summaries)], groups)
    before, behind = np.zeros(found.rollouts.tokens.shape, np.float32), np.zeros(found.rollouts.tokens.shape, np.float32)
    worth, baseline = budget_values(reward, rollouts.group, _prior(prior, budgets))
    for row in range(rows):
        edges = np.minimum(np.array([0, *budgets[:-1], found.rollouts.tokens.shape[1]]) + start[row], rollouts.length[row])
        for number, (first, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            before[row, first:end], behind[row, first:end] = baseline[row, number], worth[row, number]
    if asked:
        before[rows:], behind[rows:] = np.repeat(means, summaries)[:, None], scores_of(answers)[:, None]
    extras = found.rollouts.extras | {"value_before": before, "value_behind": behind}
    metrics = {f"budget/{budget}": float(reward[:, number].mean()) for number, budget in enumerate(budgets)}
    return dataclasses.replace(found, rollouts=found.rollouts.replace(extras=extras)), metrics


def _is_over(thoughts: Collection, row: int, budget: int) -> bool:
    """Whether a thought has come to its own end at the budget."""
    length = thoughts.rollouts.length[row] - thoughts.prompt_length[row]
    return budget >= length and thoughts.records[row]["finish_reason"] == "stop"


def _unlearned(prefix):
    return dataclasses.replace(prefix, mask=np.zeros_like(prefix.mask))


def _prior(name: str, budgets: tuple[int, ...]) -> np.ndarray:
    weights = {"uniform": np.ones(len(budgets)), "linear": np.array(budgets, float), "last": np.eye(len(budgets))[-1]}[name]
    return weights / weights.sum()


def budget_values(reward: np.ndarray, group: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What segments are worth and their baselines, [N, m] each, of rewards [N, m] at the budgets; see `budgeted`."""
    count = reward.shape[1]
    worth = np.cumsum((reward * prior)[:, ::-1], axis=1)[:, ::-1]
    left = np.cumsum(prior[::-1])[::-1]
    powers = 2.0 ** np.arange(count)
    earlier = np.zeros_like(reward)
    for j in range(1, count):
        earlier[:, j] = (reward[:, :j] * powers[:j]).sum(axis=1) / powers[:j].sum() * left[j]
    mates = np.stack([worth[group == own].mean(axis=0) for own in group])
    j = np.arange(count)
    return worth, j / count * earlier + (count - j) / count * mates
