"""Writes docs/methods.md and docs/metrics.md from the code: `python docs/generate.py`, after a change of either."""

import pathlib
import textwrap
from typing import Any

from jaxrl_llm import methods
from jaxrl_llm.training import metrics

FOLDER = pathlib.Path(__file__).parent

# Where the defaults come from; what a paper states was looked up there.
SOURCES_OF_DEFAULTS = {
    "cispo": """The paper sets no lower bound, tunes the upper one and does not publish it. The weight here is at most
        1 + `clip_high` = 5, as in ScaleRL (https://arxiv.org/abs/2510.13786), which found little difference between bounds
        of 4, 5 and 8. The paper adds DAPO's dynamic sampling and length penalty, which are left out here. `samples` is
        ours.""",
    "dapo": """The clip, 16 samples and the lengths are the paper's: 16384 tokens expected and a buffer of 4096 behind them,
        so `max_length` is 20480. `overlong_buffer` is by default a fifth of `max_length`, which is the same share.
        `max_rounds` is ours: the paper samples until the batch is full. In a run of the program, `max_length` is
        `rl.max_new_tokens` unless it is set.""",
    "dr_grpo": """8 samples and 3000 tokens are those of the authors' published training script. The clip is ours. In a run
        of the program, `max_length` is `rl.max_new_tokens` unless it is set.""",
    "grpo": """The KL coefficient 0.04 is the paper's, which takes 64 samples, not 8. It does not state the clip; 0.2 is
        PPO's. `None` means: `kl_kind` k3, as in the paper; `degrees_of_freedom` 0 (the population's deviation); `epsilon`
        1e-6.""",
    "gspo": """The clip is the paper's. `samples` is ours.""",
    "ppo": """The clip 0.2 and `trace_decay` 0.95 are the paper's, for control tasks. There the discount is 0.99; for texts,
        whose reward comes at the end, it is 1. The KL penalty in the reward is that of Ziegler et al.
        (https://arxiv.org/abs/1909.08593); its coefficient, the value's coefficient and the value's clip are ours.
        `kl_kind=None` means k1.""",
    "reinforce": """The paper is about networks in general: all defaults are ours. `kl_kind=None` means k1.""",
    "reinforce_plus_plus": """One sample and a KL penalty of kind k1 in the reward (`kl_kind=None`) are the paper's. Its text
        (version 9) states neither clip nor coefficient: both are ours.""",
    "rloo": """The paper tries 2 and 4 samples. The KL coefficient is ours. `kl_kind=None` means k1.""",
}

METHODS_HEAD = """# Methods

Every method is a composition of a strategy (what is sampled), an estimator (rewards to advantages and weights) and an
objective (scores to loss). `methods.get(name, **options)` makes one; a composition prints only what differs from the
defaults of its parts. An unknown option, or one that would change nothing, is an error.

```python
from jaxrl_llm import methods

method = methods.get("dapo", clip_high=0.3)
method.strategy, method.estimator, method.objective
```

*Needs* are what must be computed before the update (`behavior_logp`: log-probabilities of the sampler; `reference_logp`: of
the reference policy; `behavior_value` and `returns`: of the critic) or by it (`value`, `entropy`...). The trainer reads them
and loads no reference policy and no critic that nobody needs.
"""

METRICS_HEAD = """# Metrics

One definition each, for `metrics.jsonl` and TensorBoard alike; a `*` stands for any name or number. Actions are the tokens
that the policy sampled. *Weighted* means by the method's share of each token in the loss. Log-probabilities, entropies and KL
divergences are in nats, lengths in tokens.

"""


def methods_page() -> str:
    """docs/methods.md: one section for each method of the catalogue."""
    return "\n".join([METHODS_HEAD, *map(_section, methods.table())])


def _section(entry: dict[str, Any]) -> str:
    paragraphs = [
        f"## {entry['name']}",
        entry["summary"],
        f"[{entry['paper']}]({entry['url']})",
        f"```\n{entry['composition']}\n```",
        _options(entry["options"]),
        _paragraph(SOURCES_OF_DEFAULTS.get(entry["name"], "")),
        f"Needs: {', '.join(f'`{need}`' for need in entry['needs']) or 'nothing'}.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _options(options: dict[str, Any]) -> str:
    if not options:
        return "It has no options."
    rows = [f"| `{name}` | `{default!r}` |" for name, default in options.items()]
    return "\n".join(["| option | default |", "|---|---|", *rows])


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def metrics_page() -> str:
    """docs/metrics.md: the table of definitions."""
    return METRICS_HEAD + metrics.definitions_table()


PAGES = {"methods.md": methods_page, "metrics.md": metrics_page}


def main() -> None:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
