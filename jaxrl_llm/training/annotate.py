"""What a method needs in the rollouts beside what was sampled or given: one scoring pass for each network."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxrl_llm.data.packing import unpack
from jaxrl_llm.methods import Method
from jaxrl_llm.networks import Network
from jaxrl_llm.objectives import group_tokens
from jaxrl_llm.objectives.candidates import of_groups
from jaxrl_llm.rollouts.views import at_home, seen_behind, taken_views
from jaxrl_llm.scoring import STATISTICS, make_picker, make_scorer
from jaxrl_llm.training.layout import in_parts
from jaxrl_llm.training.methods_of import POLICIES, SAMPLES
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.timing import timed
from jaxrl_llm.types import Batch, Rollouts

Annotate = Callable[[Any, Rollouts], Rollouts]
# (state, batch) -> arrays [B, T, ...] by name
Pass = Callable[[Any, Batch], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Annotator:
    """A network that says something about the tokens of a step."""

    network: Network  # without parameters
    params: Callable[[Any], Any]  # state -> its parameters
    temperature: float = 1.0  # that its logits are divided by


def statistics_of(who: str, needs) -> frozenset[str]:
    """Statistics of a policy among the needs of a method: "reference_logp" asks for "logp" of the reference."""
    own = {name for name in needs if name.startswith(f"{who}_") and name not in SAMPLES}
    return frozenset(name.removeprefix(f"{who}_") for name in own)


def scoring_passes(method: Method, annotators: Mapping[str, Annotator]) -> list[Pass]:
    """One pass for each policy that the method needs statistics of; in front of them one for its candidates.

    Raises ValueError: a policy that nobody has, or a statistic that is none.
    """
    passes = [_candidates(method, annotators)] if "candidates" in method.needs and not group_rule(method) else []
    for who in POLICIES:
        statistics = statistics_of(who, method.needs)
        if statistics:
            passes.append(statistics_pass(who, _annotator(method.name, annotators, who), statistics))
    return passes


def group_rule(method: Method) -> bool:
    """Whether the method's candidates are those of whole groups."""
    return any(map(of_groups, method.candidates))


def _annotator(method: str, annotators: Mapping[str, Annotator], who: str) -> Annotator:
    if who not in annotators:
        raise ValueError(f"{method!r} needs a {who} policy, and there is none; set config.{who}.directory")
    return annotators[who]


def statistics_pass(who: str, annotator: Annotator, statistics: frozenset[str]) -> Pass:
    """The pass that adds those statistics of a policy, "{who}_{statistic}".

    Raises ValueError: a statistic that is none.
    """
    unknown = sorted(name for name in statistics - {"logp"} if name.partition(":")[0] not in STATISTICS)
    if unknown:
        raise ValueError(f"{who}_{unknown[0]} is no statistic of a policy; there are {sorted(STATISTICS | {'logp'})}")
    score = jax.jit(make_scorer(annotator.network, statistics - {"logp"}, temperature=annotator.temperature))

    def scored(state, batch: Batch) -> dict[str, Any]:
        scores = score(annotator.params(state), batch)
        return {f"{who}_{name}": getattr(scores, name.partition(":")[0]) for name in sorted(statistics)}

    scored.who = who
    return scored


def _candidates(method: Method, annotators: Mapping[str, Annotator]) -> Pass:
    rules = method.candidates
    if len(rules) != 1:
        raise ValueError(f"{method.name!r} looks at candidates of {len(rules)} rules, {sorted(map(repr, rules))}; give it one")
    (rule,) = rules
    annotator = _annotator(method.name, annotators, dict(rule.options)["of"])
    pick = jax.jit(make_picker(annotator.network, rule, temperature=annotator.temperature))

    def picked(state, batch: Batch) -> dict[str, Any]:
        key = jax.random.key(0) if state is None else jax.random.fold_in(state.key, batch.step)
        return {"candidates": pick(annotator.params(state), batch, key)}

    return picked


def make_annotate(
    run: Run, passes: list[Pass], *, width: int, parts: int, from_groups: bool = False
) -> Callable[[Any, Rollouts, int], Rollouts]:
    """Builds `annotate(state, rollouts, step=0) -> rollouts` that fills `extras`; a pass sees what those before it added.

    A policy for which the rollouts have a view, see `rollouts.views`, reads the prompts of that in its statistics.

    Args:
      passes: see `scoring_passes`.
      width: tokens of a packed row; 0 for rows that the longest rollout fits into.
      parts: number of parts that the rows are scored in; 0 for as many as `lay_out` makes.
      from_groups: whether the candidates are the tokens of each row's group.
    """

    def annotate(state, rollouts: Rollouts, step: int = 0) -> Rollouts:
        rollouts, views = taken_views(rollouts)
        if from_groups:
            rollouts = rollouts.replace(extras=rollouts.extras | {"candidates": group_tokens(rollouts)})
        for scored in passes:
            view, options = views.get(getattr(scored, "who", "")), {"parts": parts, "step": step}
            if view is None:
                added = _of_rollouts(run, scored, state, rollouts, width=width, **options)
            else:
                found = _of_rollouts(run, scored, state, seen_behind(rollouts, view), width=0, **options)
                added = {name: at_home(values, rollouts, view) for name, values in found.items()}
            rollouts = rollouts.replace(extras=rollouts.extras | added)
        return rollouts

    return annotate


def make_statistics(run: Run, method: str, annotators: Mapping[str, Annotator], *, width: int, parts: int) -> Callable:
    """Builds `statistics(state, step, rollouts, who, names) -> arrays [N, T, ...] by name`, for strategies that score.

    Args:
      method: name of the method that asks.
      annotators: policies by name.
      width: tokens of a packed row, more where a rollout has more; 0 for rows that the longest fits into.
      parts: number of parts that the rows are scored in; 0 for as many as `lay_out` makes.
    """
    # Compiled once for a run, however often a strategy asks.
    passes = functools.cache(lambda who, names: statistics_pass(who, _annotator(method, annotators, who), frozenset(names)))

    def statistics(state, step: int, rollouts: Rollouts, who: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        wide = width and max(width, rollouts.tokens.shape[1])
        found = _of_rollouts(run, passes(who, names), state, rollouts, width=wide, parts=parts, step=step)
        return {name.removeprefix(f"{who}_"): values for name, values in found.items()}

    return statistics


def _of_rollouts(run: Run, scored: Pass, state, rollouts: Rollouts, *, width: int, parts: int, step: int) -> dict:
    """What a pass says of the rollouts, [N, T, ...] by name."""
    batch = run.pack(rollouts, width, parts, step=step)
    with timed("annotate"):
        found = in_parts(lambda piece: scored(state, run.place(piece)), batch)
        return {name: unpack(values, batch, *rollouts.tokens.shape) for name, values in found.items()}
