"""The preference phase: pairs of texts into a batch, one update; and pair accuracy on held-out pairs."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import distributed
from jaxrl_llm.data import PAIR, Cursor, mismatched_rollouts, preference_rollouts
from jaxrl_llm.scoring import Scorer, actor_critic_scorer, make_scorer
from jaxrl_llm.training import learning
from jaxrl_llm.training.annotate import Annotator, make_annotate, scoring_passes, statistics_pass
from jaxrl_llm.training.layout import in_parts
from jaxrl_llm.training.method_state import (
    coefficients, initial_method_state, make_estimate, moving_reference, reference_params,
)  # fmt: skip
from jaxrl_llm.training.methods_of import MISMATCHED, texts_of
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.state import PREFERENCE, TrainState
from jaxrl_llm.training.update import make_update
from jaxrl_llm.types import Batch, Rollouts, Scores

# Of the metrics of an objective, those that are also measured on held-out pairs, or on held-out marked answers; an accuracy
# stands first.
_OF_PAIRS = ("pair_accuracy", "pair_margin", "pair_chosen", "pair_rejected")
_OF_MARKED_ANSWERS = ("label_accuracy",)


def held_out_measures(run: Run) -> tuple[str, ...]:
    """What is measured of the held-out examples: of pairs, or of marked answers where the first one is no pair."""
    examples = run.test_source
    return _OF_PAIRS if not len(examples) or set(PAIR) <= examples[0].keys() else _OF_MARKED_ANSWERS


def initial_state(run: Run, params) -> TrainState:
    """State before the first update of the phase."""
    state = initial_method_state(run.preference_method)
    average = moving_reference(run.preference_method, run.config.preference.reference)
    if average is not None:
        state |= {"reference": average.init(params)}
    optimizer = learning.phase_optimizer(run, PREFERENCE, run.preference_method, params)
    return TrainState.create(params, optimizer, method_state=state, key=jax.random.key(run.config.seed))


def make_preference_step(run: Run, reference=None) -> Callable:
    """Builds `step(state, cursor, number) -> (state, cursor, metrics, records)`.

    Args:
      reference: parameters of the reference policy, or None where the method needs none.
    """
    learn = make_pair_learner(run, reference)

    def step(state: TrainState, cursor: Cursor, number: int):
        pairs, numbers, cursor = run.draw(cursor, run.config.preference.batch)
        state, metrics = learn(state, pairs, numbers, number)
        return state, cursor, metrics, []

    return step


def make_pair_learner(run: Run, reference=None) -> Callable:
    """Builds `learn(state, pairs, numbers, number) -> (state, metrics)`: what a step teaches; arguments as in the step's.

    `numbers` are those of the pairs' prompts.
    """
    settings, method = run.config.preference, run.preference_method
    rows_of, estimate = _make_rows(run, reference), make_estimate(method)
    average = moving_reference(method, settings.reference)
    follow = None if average is None else jax.jit(average.update)
    optimizer = learning.phase_optimizer(run, PREFERENCE, method)
    pure = make_update(None, method.objective, optimizer, scorer=make_pair_scorer(run))
    update = learning.make_phase_update(run, PREFERENCE, method, pure)

    def learn(state: TrainState, pairs: Sequence[dict[str, Any]], numbers: Sequence[int], number: int):
        rollouts = rows_of(state, pairs, numbers, number)

        def updates(state: TrainState, rollouts: Rollouts):
            return update(state, functools.partial(_pack, run, rollouts, state.method_state, number))

        key = jax.random.fold_in(state.key, number)
        state, rollouts, metrics = learning.learned(method, estimate, state, rollouts, key, updates)
        if follow is not None:
            moved = {"reference": follow(state.params, state.method_state["reference"])[1]}
            state = state.replace(method_state=state.method_state | moved)
        return state, metrics | pair_counts(pairs, rollouts)

    return learn


def make_pair_scorer(run: Run) -> Scorer:
    """The scorer that the update differentiates; it computes no logits for a method that reads none."""
    network, objective = run.network.without_params(), run.preference_method.objective
    if objective.reads_logp:
        return make_scorer(network, objective.needs)
    values = actor_critic_scorer(lambda _, batch: Scores(logp=jnp.zeros(batch.tokens.shape)), network)
    return lambda params, batch: values({"policy": None, "critic": params}, batch)


def _make_rows(run: Run, reference) -> Callable[..., Rollouts]:
    """Builds `rows(state, examples, numbers, step=0) -> rollouts` with what the method needs.

    The state may be the parameters of a policy, as in evaluation.
    """
    settings, network, method = run.config.preference, run.network.without_params(), run.preference_method

    def of_policy(state):
        return run.whole(getattr(state, "params", state))

    def of_reference(state):
        return of_policy(state) if reference is None else run.whole(reference_params(state, reference))

    annotators = {"proximal": Annotator(network, of_policy), "reference": Annotator(network, of_reference)}
    if run.teacher is not None:
        annotators["teacher"] = Annotator(run.teacher.without_params(), lambda state: run.teacher.params)
    layout = {"width": settings.row_tokens, "parts": settings.micro_batches}
    annotate = make_annotate(run, scoring_passes(method, annotators), **layout)
    mismatched = make_annotate(run, _of_both(annotators), **layout) if MISMATCHED in method.needs else None
    texts = {} if texts_of(method) == PAIR else {"texts": texts_of(method)}

    def rows(state, examples, numbers, step: int = 0) -> Rollouts:
        made = preference_rollouts(run.tokenizer, examples, settings.row_tokens, numbers, **texts)
        made = annotate(state, made, step)
        if mismatched is None:
            return made
        others = mismatched(state, mismatched_rollouts(run.tokenizer, examples, settings.row_tokens), step)
        gap = np.where(others.mask > 0, others.extras["proximal_logp"] - others.extras["reference_logp"], 0.0)
        return made.replace(extras=made.extras | {MISMATCHED: gap.sum(axis=1)})

    return rows


def _of_both(annotators) -> list:
    return [statistics_pass(who, annotators[who], frozenset({"logp"})) for who in ("proximal", "reference")]


def _pack(run: Run, rollouts: Rollouts, method_state, number: int, **options) -> Batch:
    settings = run.config.preference
    options |= {"step": number, "coefficients": coefficients(run.preference_method, method_state, number)}
    return run.pack(rollouts, settings.row_tokens, settings.micro_batches, **options)


def pair_counts(pairs: Sequence[dict[str, Any]], rollouts: Rollouts) -> dict[str, float]:
    """Tokens of the step, and the share of pairs of two equal texts, which teach nothing."""
    equal = np.mean([pair.get("chosen") == pair.get("rejected") for pair in pairs])
    return {"tokens": float(np.sum(rollouts.length - 1)), "pairs_equal": float(equal)}


def make_pair_evaluation(run: Run, reference=None) -> Callable[[Any, int], dict[str, float]]:
    """Builds `evaluate(params, number) -> measures` of the first `evaluation.prompts` held-out pairs.

    Args:
      reference: parameters of the reference policy; None stands for those that are evaluated.
    """
    settings, method = run.config.preference, run.preference_method
    score, measure = jax.jit(make_pair_scorer(run)), jax.jit(method.objective)
    estimate, rows_of, fresh = make_estimate(method), _make_rows(run, reference), initial_method_state(method)

    def placed(params, piece: Batch) -> Scores:
        return score(params, run.place(piece))

    def evaluate(params, number: int, _=None) -> dict[str, float]:
        count = min(run.config.evaluation.prompts, len(run.test_source))
        totals = dict.fromkeys((*held_out_measures(run), "loss"), 0.0)
        for start in range(0, count, settings.batch):
            numbers = range(start, min(start + settings.batch, count))
            pairs = [run.test_source[index] for index in numbers]
            rollouts = rows_of(params, pairs, numbers)
            rollouts, _ = estimate(rollouts, fresh, jax.random.key(run.config.seed))
            batch = _pack(run, distributed.fetch(rollouts), fresh, number)
            loss, found = measure(in_parts(functools.partial(placed, run.whole(params)), batch), batch)
            found |= {"loss": loss}
            totals = {name: total + float(found.get(name, np.nan)) * len(pairs) for name, total in totals.items()}
        return summarise({name: total / count for name, total in totals.items()}, count)

    return evaluate


def summarise(means: dict[str, float], count: int) -> dict[str, float]:
    """Measures by metric name, with the half width of the 95% interval of the accuracy, the first of them, of `count` examples.

    A tie has the variance of the coin that it is counted as.
    """
    name, accuracy = next(iter(means.items()))
    error = 1.96 * math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / (count - 1)) if count > 1 else 0.0
    return {f"evaluation/{name}": value for name, value in means.items()} | {f"evaluation/{name}_error": error}
