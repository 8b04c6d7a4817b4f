"""Writes the generated pages, those of `PAGES`, and the tables of docs/networks.md.

`python docs/generate.py`, after a change; docs/proofs.md is written by docs/prove.py.

The rest of docs/networks.md is written by hand.
"""

import pathlib
import re
import sys
import textwrap
from typing import Any

from jaxrl_llm import methods, networks
from jaxrl_llm.networks import families, named
from jaxrl_llm.training import metrics

FOLDER = pathlib.Path(__file__).parent
sys.path.append(str(FOLDER))

import coming_from  # noqa: E402
import conventions  # noqa: E402
import papers  # noqa: E402

# Of each family what its layers have beside those of Llama, and the largest difference of a logit that was found.
FAMILIES = {
    "llama": ("", 1.6e-5),
    "mistral": ("windows", 8.7e-6),
    "qwen2": ("biases of queries, keys and values; windows in upper layers", 1.3e-5),
    "qwen3": ("norms of the heads of queries and keys; windows in upper layers", 5.0e-6),
    "gemma": ("scaled embeddings, norms that begin at 0, gelu", 7.1e-6),
    "gemma2": ("as gemma; norms behind attention and MLP, soft caps, a scale of queries, local and global layers", 5.6e-6),
    "gemma3_text": ("as gemma2; norms of heads in place of caps, rotary embeddings of local layers of their own", 3.9e-6),
    "phi3": ("fused matrices, part of each head turned, windows", 8.2e-6),
    "mixtral": ("experts, windows", 1.3e-5),
    "qwen3_moe": ("as qwen3; experts, dense layers at the bottom", 7.6e-6),
    "olmoe": ("norms of queries and keys over all heads, experts", 7.6e-6),
    "glm4_moe": ("part of each head turned; shared experts, sigmoid scores, groups, dense layers at the bottom", 4.9e-6),
    "gemma4_text": (
        "as gemma3_text; heads by kind of layer, lent keys and values, embeddings of layers, experts beside",
        1.6e-4,
    ),
    "qwen3_5_text": ("gated delta rule beside gated attention, part of each head turned", 5.0e-5),
    "qwen3_5_moe_text": ("as qwen3_5_text; experts, a gate of the shared one", 1.6e-4),
    "qwen3_next": ("as qwen3_5_moe_text; fused matrices, dense layers at the bottom", 4.6e-5),
    "deepseek_v3": ("latent attention, of which decoding keeps the latents; experts as glm4_moe", 2.1e-5),
    "gpt_oss": ("attention sinks, biases, experts with a clipped activation, MXFP4 expanded, local and global layers", 1.3e-5),
    "olmo2": ("norms behind attention and MLP alone, norms of queries and keys over all heads", 5.2e-6),
    "olmo3": ("as olmo2; windows, with rotary embeddings of their own", 4.4e-6),
    "smollm3": ("layers without rotary embedding", 1.9e-5),
    "ministral3": ("queries that grow with their positions, windows", 1.1e-5),
    "seed_oss": ("biases of attention and MLP", 7.6e-6),
    "granite": ("multipliers of embeddings, attention, residual stream and logits", 1.2e-5),
    "nanochat": (
        "norms without scales, one of embeddings, MLP of two matrices, norms behind rotary embeddings, a soft cap",
        3.3e-6,
    ),
    "glm4": ("neighbours of a part of each head turned, norms behind attention and MLP too", 6.6e-6),
    "hunyuan_v1_dense": ("norms of queries and keys behind rotary embeddings", 9.0e-6),
}

METHODS_HEAD = """# Methods

The catalogue has {count} methods. *Formula* says how sure we are: `exact` is that of the paper or of its authors' code; in a
`sketch` part of it could not be confirmed, and the section says what. [Proofs](proofs.md) counts what is tested of each.

Every method is a composition of a strategy (what is sampled), an estimator (rewards to advantages and weights) and an
objective (scores to loss). `methods.get(name, **options)` makes one; a composition prints only what differs from the
defaults of its parts. An unknown option, or one that would change nothing, is an error. Libraries that mean another formula
by a name have [conventions](conventions.md). Methods with a critic name its head, its targets and its loss, see
[networks](networks.md#heads). What belongs to the optimizer (online merging, slow-fast steps, averages of parameters,
extrapolation, resets, step rules, further gradients, evolution) is in `jaxrl_llm.optimizers`; a method brings it along
(`wrap`), or `config.rl.optimizer.wrap = {{name: options}}` does. What changes from step to step is in `jaxrl_llm.controllers`.
What another policy would have earned on logged rollouts is told by `jaxrl_llm.estimators.off_policy_evaluation`.

```python
from jaxrl_llm import methods

method = methods.get("dapo", clip_high=0.3)
method.strategy, method.estimator, method.objective
```

*Needs* are what must be computed before the update (`behavior_logp`: log-probabilities of the sampler; `reference_logp`: of
the reference policy; `behavior_value` and `returns`: of the critic; `preference`: which of a pair is the better one) or by it
(`value`, `entropy`...). `proximal_...` is said by the policy before the step's updates, `teacher_...` by a teacher,
`..._candidate_logp` of tokens that might have stood there. The trainer reads the needs and loads no reference, teacher or
critic that nobody needs. Methods without a strategy sample nothing: they learn from given [pairs](preferences.md) or
completions.
"""

METRICS_HEAD = """# Metrics

One definition each, for `metrics.jsonl` and TensorBoard alike; a `*` stands for any name or number. Actions are the tokens
that the policy sampled. *Weighted* means by the method's share of each token in the loss. Log-probabilities, entropies and KL
divergences are in nats, lengths in tokens.

"""

TIMINGS_HEAD = """
## The clock

`timing.jsonl` has what depends on it, in seconds, one object a step.

"""


def methods_page() -> str:
    """docs/methods.md: an index, and one section for each method of the catalogue."""
    table = methods.table()
    rows = [f"| [{row['name']}](#{row['name']}) | {row['year']} | {row['summary']} | {row['certainty']} |" for row in table]
    index = "\n".join(["| method | year | what it changes | formula |", "|---|---|---|---|", *rows]) + "\n"
    return "\n".join([METHODS_HEAD.format(count=len(table)), index, *map(_section, table)])


def _section(entry: dict[str, Any]) -> str:
    paragraphs = [
        f"## {entry['name']}",
        entry["summary"],
        f"[{entry['paper']}]({entry['url']})",
        f"```\n{entry['composition']}\n```",
        _options(entry["options"]),
        _conventions(entry["conventions"]),
        _paragraph(entry["defaults"] and f"Defaults: {entry['defaults']}"),
        _paragraph(entry["unconfirmed"] and f"Not confirmed: {entry['unconfirmed']}"),
        f"Needs: {', '.join(f'`{need}`' for need in entry['needs']) or 'nothing'}.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _options(options: dict[str, Any]) -> str:
    if not options:
        return "It has no options."
    rows = [f"| `{name}` | `{default!r}` |" for name, default in options.items()]
    return "\n".join(["| option | default |", "|---|---|", *rows])


def _conventions(conventions: dict[str, dict[str, Any]]) -> str:
    others = [f"`{name}`" for name in conventions if name != "paper"]
    return f"[Conventions](conventions.md#top) beside the paper's: {', '.join(others)}." if others else ""


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def metrics_page() -> str:
    """docs/metrics.md: the table of definitions."""
    return METRICS_HEAD + metrics.definitions_table() + TIMINGS_HEAD + metrics.definitions_table(metrics.TIMINGS)


def networks_page() -> str:
    """docs/networks.md with its tables written anew."""
    text = (FOLDER / "networks.md").read_text(encoding="utf-8")
    for name, table in {"families": _families_table, "names": _names_table}.items():
        text = re.sub(rf"(<!-- {name}: .*? -->\n).*?(<!-- end -->)", rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL)
    return text


def _families_table() -> str:
    rows = ["| `model_type` | beside Llama's layers | fields that must be so, or absent | max abs Δ |", "|---|---|---|---|"]
    for name, family in families.FAMILIES.items():
        layers, error = FAMILIES[name]
        required = ", ".join(f"`{field}={value}`" for field, value in family.required.items() if "quantization" not in field)
        rows.append(f"| `{name}` | {layers} | {required} | {error:.1e} |")
    return "\n".join(rows)


def _names_table() -> str:
    rows = ["| name | repository | parameters |", "|---|---|---|"]
    for name, model in named.MODELS.items():
        link = f"[{model.repository}](https://huggingface.co/{model.repository})"
        rows.append(f"| `{name}` | {link} | {networks.count_parameters(networks.config(name)):,} |")
    return "\n".join(rows)


PAGES = {
    "methods.md": methods_page,
    "papers.md": papers.page,
    "conventions.md": conventions.page,
    "coming_from.md": coming_from.page,
    "metrics.md": metrics_page,
    "networks.md": networks_page,
}


def main() -> None:
    """Writes all pages anew."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
