"""The preference phase: pairs of texts into a batch, one update; and pair accuracy on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.data import Cursor, pack, preference_rollouts
from jaxrl_llm.scoring import Scorer, actor_critic_scorer, make_scorer
from jaxrl_llm.training.annotate import Annotator, in_parts, make_annotate, scoring_passes
from jaxrl_llm.training.build import build_optimizer
from jaxrl_llm.training.method_state import coefficients, initial_method_state, make_estimate, observe
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.state import TrainState
from jaxrl_llm.training.update import make_update
from jaxrl_llm.types import Batch, Rollouts, Scores

# Of the metrics of an objective on pairs, those that are also measured on held-out pairs.
_HELD_OUT = ("pair_accuracy", "pair_margin", "pair_chosen", "pair_rejected")


def initial_state(run: Run, params) -> TrainState:
    """State before the first update of the phase."""
    state = initial_method_state(run.preference_method)
    return TrainState.create(params, _optimizer(run), method_state=state, key=jax.random.key(run.config.seed))


def _optimizer(run: Run):
    return build_optimizer(run.config.preference.optimizer, run.config.preference.steps)


def make_preference_step(run: Run, reference=None) -> Callable:
    """Builds `step(state, cursor, number) -> (state, cursor, metrics, records)`.

    Args:
      run: the run.
      reference: parameters of the reference policy, or None where the method needs none.
    """
    settings, method = run.config.preference, run.preference_method
    annotate, estimate = _make_annotate(run, reference), make_estimate(method)
    pure = make_update(
        None, method.objective, _optimizer(run), micro_batches=settings.micro_batches, scorer=make_pair_scorer(run)
    )
    update = jax.jit(pure, donate_argnums=0)

    def step(state: TrainState, cursor: Cursor, number: int):
        pairs, numbers, cursor = run.draw(cursor, settings.batch)
        rollouts = annotate(state, preference_rollouts(run.tokenizer, pairs, settings.row_tokens, numbers), number)
        rollouts, method_state = estimate(rollouts, state.method_state, jax.random.fold_in(state.key, number))
        rollouts = jax.device_get(rollouts)
        batch = _pack(run, rollouts, method_state, number)
        state, metrics = update(state.replace(method_state=method_state), run.place(batch), run.frozen)
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        state = state.replace(method_state=observe(method, state.method_state, metrics))
        return state, cursor, metrics | pair_counts(pairs, rollouts), []

    return step


def make_pair_scorer(run: Run) -> Scorer:
    """The scorer that the update differentiates; it computes no logits for a method that reads none."""
    network, objective = run.network.without_params(), run.preference_method.objective
    if objective.reads_logp:
        return make_scorer(network, objective.needs)
    values = actor_critic_scorer(lambda _, batch: Scores(logp=jnp.zeros(batch.tokens.shape)), network)
    return lambda params, batch: values({"policy": None, "critic": params}, batch)


def _make_annotate(run: Run, reference) -> Callable[..., Rollouts]:
    """Builds `annotate(state, rollouts, step=0) -> rollouts`; the state may be the parameters of a policy, as in evaluation."""
    settings, network, method = run.config.preference, run.network.without_params(), run.preference_method

    def of_policy(state):
        return run.whole(getattr(state, "params", state))

    annotators = {"proximal": Annotator(network, of_policy)}
    annotators["reference"] = Annotator(network, of_policy if reference is None else lambda state: run.whole(reference))
    if run.teacher is not None:
        annotators["teacher"] = Annotator(run.teacher.without_params(), lambda state: run.teacher.params)
    passes = scoring_passes(method, annotators)
    return make_annotate(run, passes, width=settings.row_tokens, parts=settings.micro_batches)


def _pack(run: Run, rollouts: Rollouts, method_state, number: int) -> Batch:
    settings = run.config.preference
    scalars = coefficients(run.preference_method, method_state, number)
    multiple = run.row_multiple(settings.micro_batches)
    return pack(rollouts, settings.row_tokens, multiple=multiple, step=number, coefficients=scalars)


def pair_counts(pairs: Sequence[dict[str, Any]], rollouts: Rollouts) -> dict[str, float]:
    """Tokens of the step, and the share of pairs of two equal texts, which teach nothing."""
    equal = np.mean([pair["chosen"] == pair["rejected"] for pair in pairs])
    return {"tokens": float(np.sum(rollouts.length - 1)), "pairs_equal": float(equal)}


def make_pair_evaluation(run: Run, reference=None) -> Callable[[Any, int], dict[str, float]]:
    """Builds `evaluate(params, number) -> measures` of the first `evaluation.prompts` held-out pairs.

    Args:
      run: the run.
      reference: parameters of the reference policy; None stands for those that are evaluated.
    """
    settings, method = run.config.preference, run.preference_method
    score, measure = jax.jit(make_pair_scorer(run)), jax.jit(lambda scores, batch: method.objective(scores, batch)[1])
    estimate, annotate, fresh = make_estimate(method), _make_annotate(run, reference), initial_method_state(method)

    def evaluate(params, number: int) -> dict[str, float]:
        count = min(run.config.evaluation.prompts, len(run.test_source))
        totals = dict.fromkeys(_HELD_OUT, 0.0)
        for start in range(0, count, settings.batch):
            numbers = range(start, min(start + settings.batch, count))
            pairs = [run.test_source[index] for index in numbers]
            rollouts = annotate(params, preference_rollouts(run.tokenizer, pairs, settings.row_tokens, numbers))
            rollouts, _ = estimate(rollouts, fresh, jax.random.key(run.config.seed))
            batch = _pack(run, jax.device_get(rollouts), fresh, number)
            found = measure(in_parts(run, score, run.whole(params), batch, settings.micro_batches), batch)
            totals = {name: total + float(found.get(name, np.nan)) * len(pairs) for name, total in totals.items()}
        return summarise({name: total / count for name, total in totals.items()}, count)

    return evaluate


def summarise(means: dict[str, float], count: int) -> dict[str, float]:
    """Measures by metric name, with the half width of the 95% interval of the accuracy of `count` pairs.

    A tie has the variance of the coin that it is counted as.
    """
    accuracy = means["pair_accuracy"]
    error = 1.96 * math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / (count - 1)) if count > 1 else 0.0
    return {f"evaluation/{name}": value for name, value in means.items()} | {"evaluation/pair_accuracy_error": error}
