"""Mathematical equivalence with a time limit that holds."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxrl_llm.rewards.pool import RewardPool

ROW_SECONDS = 10.0


def maths(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Whether the final expression of the completion is mathematically equal to `answer`, by math-verify.

    The final expression is the last `\\boxed{...}` or `\\fbox{...}` that is not empty, words round an answer aside; else what
    math-verify takes for it (LaTeX, then plain numbers). Numbers are compared exactly, however small they are. What the prompt
    asks to compute does not answer it, though it is equal, as "8 - 2" is to 6; unless the gold answer is written like that.
    Computer algebra may hang on adversarial input, so that every row is evaluated in a worker process that is killed
    after 10 seconds. A `RewardPool` uses its own workers; a call by hand starts one, which takes about a second.

    Args:
      answer: expressions, bare ("1/2", "\\frac12", "(1, 2]") or within "$...$" or `\\boxed{}`.

    Returns: 1.0 or 0.0, which is also that of a row that took too long; None where `answer` is None or no expression.
    """
    with RewardPool(1, row_seconds=ROW_SECONDS) as pool:
        deadline = ROW_SECONDS * max(1, len(completions))
        values, _ = pool.score({"maths": maths}, prompts, completions, {"answer": answer}, deadline)
    return [None if math.isnan(value) else float(value) for value in values[:, 0]]


def _unguarded() -> Callable[..., list[float]]:
    from jaxrl_llm.rewards.equivalence import equivalent

    return equivalent


maths.unguarded = _unguarded
