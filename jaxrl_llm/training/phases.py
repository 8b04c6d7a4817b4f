"""The phases of a run in their order: how each begins, steps and is measured."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import methods, rewards
from jaxrl_llm.progress import paced
from jaxrl_llm.training import company, metrics, preference, reinforcement, supervised
from jaxrl_llm.training.ahead import Ahead
from jaxrl_llm.training.evaluation import evaluate_source
from jaxrl_llm.training.evolution import make_evolution_step
from jaxrl_llm.training.report import say
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.scores import timeouts
from jaxrl_llm.training.state import PREFERENCE, REINFORCEMENT, SUPERVISED, TrainState

HELD_OUT = "held_out"  # folder of what the policy answered to held-out prompts, with the file names of `completions`
Params = Any
Step = Callable[..., tuple[TrainState, Any, dict[str, float], list[dict[str, Any]]]]
Evaluate = Callable[..., dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of training."""

    name: str  # as in `Progress.phase`
    steps: int  # of the whole phase; 0 leaves it out
    method: methods.Method  # what is trained by
    initial_state: Callable[[Params], TrainState]  # parameters -> state before the first step
    params: Callable[[TrainState], Params]  # state -> parameters that are measured, and that the next phase begins with
    # parameters of the reference policy, or None, and what samples ahead -> `step(state, cursor, number)`, which gives the next
    # state, the next cursor, metrics and records of completions
    make_step: Callable[[Params, Ahead], Step]
    # parameters of the reference policy, or None, -> `evaluate(params, number, state=None)`, which gives measures; without the
    # state of the phase, as before it, everybody has these parameters
    make_evaluation: Callable[[Params], Evaluate]
    measure: str  # the one of them that says how good the parameters are
    needs_reference: bool = False  # whether anybody needs the parameters of the beginning


def all_phases(run: Run) -> dict[str, Phase]:
    """The phases by name, in the order in which those that have steps follow each other."""
    config = run.config
    by_reward = Phase(
        name=REINFORCEMENT,
        steps=config.rl.steps,
        method=run.method,
        initial_state=functools.partial(reinforcement.initial_state, run),
        params=functools.partial(company.policy_params, run),
        make_step=lambda reference, ahead: (
            make_evolution_step(run) if run.method.evolution else reinforcement.make_reinforcement_step(run, reference, ahead)
        ),
        make_evaluation=lambda reference: functools.partial(evaluate_samples, run, reference),
        measure="evaluation/accuracy",
        needs_reference=company.needs_reference(run),
    )
    by_pairs = Phase(
        name=PREFERENCE,
        steps=config.preference.steps,
        method=run.preference_method,
        initial_state=functools.partial(preference.initial_state, run),
        params=_all_params,
        make_step=lambda reference, _: preference.make_preference_step(run, reference),
        make_evaluation=functools.partial(preference.make_pair_evaluation, run),
        measure=f"evaluation/{preference.held_out_measures(run)[0]}",
        needs_reference=run.preference_method.needs_reference,
    )
    after = by_pairs if by_pairs.steps else by_reward if by_reward.steps or samples_are_scored(config) else None
    by_imitation = Phase(
        name=SUPERVISED,
        steps=config.sft.steps,
        method=run.supervised_method,
        initial_state=lambda params: supervised.initial_state(run),
        params=_all_params,
        make_step=lambda *_: supervised.make_supervised_step(run),
        # It is measured as what comes after it, which then knows where it began; alone, by its loss too.
        make_evaluation=functools.partial(_evaluation_of_imitation, run, after),
        measure=after.measure if after else "evaluation/loss",
    )
    return {phase.name: phase for phase in (by_imitation, by_pairs, by_reward)}


def samples_are_scored(config: ConfigDict) -> bool:
    """Whether a run that only imitates is also measured by what the policy answers."""
    return bool(config.rewards.names or config.evaluation.reward)


def _evaluation_of_imitation(run: Run, after: Phase | None, reference: Params) -> Evaluate:
    """The measures of the phase that comes after the supervised one, or, without one, the loss and the answers."""
    alone = not (run.config.preference.steps or run.config.rl.steps)
    parts = [after.make_evaluation(reference)] if after else []
    if alone and (after is None or supervised.can_be_learned(run.test_source)):
        parts.append(supervised.make_loss_evaluation(run))
    return lambda params, number, _=None: {name: value for part in parts for name, value in part(params, number).items()}


def following(phases: dict[str, Phase], name: str | None) -> Phase | None:
    """The next phase with steps behind that of the name, or the first one for None; None at the end."""
    ordered = list(phases.values())
    rest = ordered if name is None else ordered[ordered.index(phases[name]) + 1 :]
    return next((phase for phase in rest if phase.steps), None)


def _all_params(state: TrainState) -> Params:
    return state.params


def evaluate_samples(
    run: Run, reference: Params, params: Params, number: int, state: TrainState | None = None
) -> dict[str, float]:
    """Measures of what a policy answers to held-out prompts, in the company of those that the state has."""
    failures: list[rewards.RewardFailure] = []
    if state is None:
        policies = company.policies_at_first(run, params)
    else:
        policies = company.policies_of(run, state, reference)
    io = run.evaluation_io(params, number, failures, policies=policies)
    reward = run.rewards[run.config.evaluation.reward or run.config.rewards.names[0]]
    tell, what = functools.partial(say, enabled=run.config.log.live), f"evaluating held-out prompts at step {number}"
    tell(what)
    network = run.network.with_params(run.whole(params))
    told = paced(tell, what)
    measured, records = evaluate_source(run.config, io.sample, run.test_source, reward, network, run.mesh, told=told)
    if run.config.log.completions_every:
        metrics.write_table(run.workdir / HELD_OUT / f"step_{number:06d}.jsonl", records)
    return measured | {"evaluation/timeouts": timeouts(failures)}
