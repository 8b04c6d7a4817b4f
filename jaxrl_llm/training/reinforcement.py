"""One step of the RL phase: rollouts, annotations, advantages, updates."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
import optax

from jaxrl_llm import distributed
from jaxrl_llm.data import Cursor
from jaxrl_llm.data.packing import has_weight, scale_weights
from jaxrl_llm.methods import Method
from jaxrl_llm.networks import Network, decoder
from jaxrl_llm.networks.combined import of_first
from jaxrl_llm.objectives import objective as make_objective
from jaxrl_llm.objectives import policy_gap
from jaxrl_llm.optimizers import Average, polyak
from jaxrl_llm.rewards import answer_of, final_answer
from jaxrl_llm.rollouts import Collection, Io, select_rows
from jaxrl_llm.scoring import actor_critic_scorer, make_scorer
from jaxrl_llm.training import annotate, critics, learning, preference
from jaxrl_llm.training.ahead import Ahead, Sampled, snapshot
from jaxrl_llm.training.annotate import scoring_passes
from jaxrl_llm.training.build import build_optimizer, with_new_parts
from jaxrl_llm.training.combining import depth
from jaxrl_llm.training.fitting import make_fitted
from jaxrl_llm.training.modules import made_pairs, settings_of
from jaxrl_llm.training.method_state import (
    coefficients, initial_method_state, make_estimate, moving_reference, with_strategy_state,
)  # fmt: skip
from jaxrl_llm.training.company import (
    critic_part, module_method, of_pairs, policies_of, policy_annotators, policy_params, separate_critic,
)  # fmt: skip
from jaxrl_llm.training.rollout_metrics import rollout_metrics
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.scores import timeouts
from jaxrl_llm.training.state import REINFORCEMENT, TrainState
from jaxrl_llm.training.timing import timed
from jaxrl_llm.training.update import make_update
from jaxrl_llm.training.wrapping import with_front, wrap_of, wrapped_optimizer
from jaxrl_llm.types import Rollouts


def initial_state(run: Run, params) -> TrainState:
    """State before the first RL update, of the modules too; a critic of its own begins as a copy with a value head of zeros."""
    modules = {name: _module_state(module, params, run) for name, module in run.modules.items()}
    params = {"policy": params, "critic": critic_params(run, params)} if separate_critic(run) else params
    method_state = initial_method_state(run.method)
    average = moving_reference(run.method, run.config.rl.reference)
    if average is not None:
        method_state |= {"reference": average.init(params["policy"] if separate_critic(run) else params)}
    if (follows := moving_critic(run)) is not None:
        method_state |= {"target": follows.init(params["critic"] if separate_critic(run) else params)}
    key = jax.random.key(run.config.seed)
    return TrainState.create(params, optimizer(run, params), method_state=method_state, key=key, modules=modules)


def _module_state(module: Run, params, run: Run) -> TrainState:
    """State of a module before its first update; without parameters of its own it begins as a copy of the policy's `params`."""
    own = module.network.params
    if own is None:
        copied = jax.tree.map(lambda leaf: leaf.copy(), params)
        own = with_new_parts(module.network, copied, run.whole(params), run.config.seed)
    return preference.initial_state(module, own) if of_pairs(module) else initial_state(module, own)


def with_answers(method: Method, collection: Collection, answer: Callable[[str], Hashable | None] = final_answer) -> Rollouts:
    """The rollouts, for methods that compare answers with `extras["answer"]`: equal numbers for equal answers.

    A completion without an answer has -1.
    """
    if "answer" not in method.needs:
        return collection.rollouts
    answers = [answer(record["completion"]) for record in collection.records]
    numbers = {answer: number for number, answer in enumerate(dict.fromkeys(found for found in answers if found is not None))}
    found = np.array([numbers.get(answer, -1) for answer in answers], np.int32)
    return collection.rollouts.replace(extras=collection.rollouts.extras | {"answer": found})


def critic_network(run: Run) -> Network:
    """The policy's architecture with the value head of the method's critic."""
    found = critics.reading(decoder(dataclasses.replace(run.network.config, value_head=run.method.critic.outputs)), run.method)
    return functools.reduce(lambda network, _: of_first(network), range(depth(run.config)), found)


def moving_critic(run: Run) -> Average | None:
    """How the average of the critic follows it; None where the method looks at none."""
    follow = None if run.method.critic is None else run.method.critic.follow
    return None if follow is None else polyak(share=follow)


def critic_params(run: Run, params):
    """A copy of the policy's parameters, with the parameters of the value head that they lack."""
    # The policy's buffers are donated to updates: the critic needs its own.
    own = jax.tree.map(lambda leaf: leaf.copy(), params)
    return with_new_parts(critic_network(run), own, run.whole(params), run.config.seed)


def optimizer(run: Run, params=None) -> optax.GradientTransformation:
    """The optimizer of the RL phase; policy and critic are clipped apart and may learn at different rates.

    Args:
      params: with which the phase begins, for what `wrap` takes from them; only `init` looks at them.
    """
    rl = run.config.rl
    updates = rl.steps * rl.epochs * rl.minibatches
    wrap, separate = wrap_of(rl.optimizer, run.method), separate_critic(run)
    plain = build_optimizer(rl.optimizer, updates, wrap=wrap)
    alone = run.method.critic.warmup_steps * rl.epochs * rl.minibatches if run.method.critic else 0
    if not separate and not alone:
        return with_front(wrapped_optimizer(plain, wrap, params, run.base_params), wrap)

    def of_policy(params):
        """The tree that `optax.partition` shows the policy's transform."""
        own = params and ({"policy": params, "critic": None} if separate else params)
        named = own and critics.labels(own, separate)
        return own and {name: part if named[name] == "policy" else optax.MaskedNode() for name, part in own.items()}

    start = of_policy(params["policy"] if separate and params else params)
    policy = wrapped_optimizer(plain, wrap, start, lambda directory: of_policy(run.base_params(directory)))
    critic = build_optimizer(rl.optimizer, updates, factor=run.config.critic.learning_rate_factor)
    if alone:
        policy = critics.within(policy, alone)
    if alone and run.method.critic.frozen:
        critic = critics.within(critic, 0, alone)
    both = optax.partition({"policy": policy, "critic": critic}, lambda params: critics.labels(params, separate))
    return with_front(both, wrap)


def make_reinforcement_step(run: Run, reference, ahead: Ahead | None = None) -> Callable:
    """Builds `step(state, cursor, number) -> (state, cursor, metrics, records)`.

    Args:
      reference: parameters of the reference policy, or None where nobody needs one.
      ahead: the samples of the coming steps; None where none is made before its turn.
    """
    ahead = Ahead() if ahead is None else ahead
    rl, method = run.config.rl, run.method
    statistics = annotate.make_statistics(
        run, method.name, policy_annotators(run, reference), width=rl.row_tokens, parts=rl.micro_batches
    )
    learn = make_learner(run, reference)
    learners = {name: make_module_learner(run, name, reference) for name in run.modules}

    def answering(state: TrainState, version: int) -> Callable[[int], dict[str, Any]]:
        """Attributes of an `Io` of samples of a step, by its number, under the parameters that `version` steps have changed."""
        policies = policies_of(run, state, reference)
        if rl.overlap and run.config.mesh.actors and jax.process_count() > 1:
            # Now: the devices of parameters that go to those of others later would learn first.
            with distributed.sharded(run.sampling_mesh):
                policies["policy"]()
        scored = functools.partial(statistics, state)
        return lambda number: {"policies": policies, "statistics": functools.partial(scored, number), "version": version}

    def sample(held: list, cursor: Cursor, remembered, number: int, before: Callable[[], Sampled | None], newer) -> Sampled:
        """The samples of step `number`, behind those of the step before it.

        Args:
          held: has what answers, see `answering`, and is emptied: with it go the parameters, once newer ones take their place.
          cursor: place in the data, where there is no step before, as the next.
          remembered: state of the strategy.
          number: of the step.
          before: see `ahead.Sample`, as the next.
        """
        last, failures = before(), []
        cursor, remembered = (cursor, distributed.fetch(remembered)) if last is None else (last.cursor, last.remembered)
        with distributed.sharded(run.mesh), timed("sample"):
            io = sampling_io(run, number, failures, cursor=cursor, **held.pop()(number))
            if changes(io.version, number):
                io.in_flight = rl.in_flight, lambda: newer()(number)
            collection, remembered, metrics = method.strategy.run(io, remembered, rl.prompts)
        metrics = metrics | {"sampled_tokens": float(io.sampled_tokens)}
        return Sampled(collection, metrics, io.cursor, remembered, failures)

    def changes(version: int, number: int) -> bool:
        """Whether the parameters that sample step `number` and begin with that version change; the first ones are older."""
        return rl.in_flight > 0 and version == number - rl.staleness

    latest = None  # what answers under the parameters of the last step, where samples go on with it

    def step(state: TrainState, cursor: Cursor, number: int):
        nonlocal latest
        if coming := ahead.missing(number, rl.staleness):
            latest = latest or answering(snapshot(state, copied=rl.staleness > 0), number)
            # Who needs it has samples of this step, which are there before an update takes its buffers over.
            remembered = state.method_state["strategy"]
            for step_of in coming:
                ahead.begin(functools.partial(sample, [latest], cursor, remembered, step_of), changes(number, step_of))
        latest = None  # With it, and with what sampling made of it, go the parameters that were sampled with.
        with timed("sample"):
            collection, metrics, cursor, remembered, failures = ahead.take()
        state = state.replace(method_state=with_strategy_state(method, state.method_state, remembered))
        state, metrics = learn(state, collection, metrics | {"reward_timeouts": timeouts(failures)}, number, ahead.go_on)
        for name, learner in learners.items():
            own, found = learner(state.modules[name], collection, number)
            state = state.replace(modules=state.modules | {name: own})
            metrics |= {f"{name}/{measure}": value for measure, value in found.items()}
        if ahead.waits:
            latest = answering(snapshot(state, copied=True), number + 1)
            ahead.renew(latest)
        return state, cursor, metrics, collection.records

    return step


def make_learner(run: Run, reference) -> Callable:
    """Builds `learn(state, collection, metrics, number, meanwhile=tuple) -> (state, metrics)`: what a step teaches.

    Rows that a module of the run wrote are left out. `metrics` are those of sampling, and are among those that it gives;
    devices are at work `meanwhile`.

    Args:
      run: of the policy, or of a module.
      reference: parameters of its reference policy, or None where its method needs none.
    """
    rl, method = run.config.rl, run.method
    annotated, estimate = make_annotate(run, reference), make_estimate(method)
    follow = {"reference": (moving_reference(method, rl.reference), policy_params)}
    follow |= {"target": (moving_critic(run), critic_part)}
    follow = {name: (jax.jit(average.update), part) for name, (average, part) in follow.items() if average is not None}
    answer = answer_of(run.rewards[run.config.rewards.names[0]])
    update = make_fitted(run, compiled_update(run), rl.micro_batches)

    def learn(state: TrainState, collection: Collection, metrics: dict, number: int, meanwhile: Callable[[], Any] = tuple):
        others = collection.written_by(tuple(run.modules)) if run.modules else ()
        if len(others):
            collection = collection.take(np.setdiff1d(np.arange(len(collection.records)), others))
        modules, state = state.modules, state.replace(modules={})
        rollouts = annotated(state, with_answers(method, collection, answer), number)
        metrics = metrics | rollout_metrics(run, rollouts, collection.records)
        if rl.staleness:
            ages = number - rollouts.version[rollouts.mask > 0]
            metrics["staleness"] = float(ages.mean()) if ages.size else 0.0

        def updates(state: TrainState, rollouts: Rollouts):
            state, found = _updates(run, update, state, rollouts, number, meanwhile)
            return state, found | metrics

        key = jax.random.fold_in(state.key, number)
        state, _, found = learning.learned(method, estimate, state, rollouts, key, updates)
        moved = {name: move(part(run, state), state.method_state[name])[1] for name, (move, part) in follow.items()}
        return state.replace(method_state=state.method_state | moved, modules=modules), found

    return learn


def make_module_learner(run: Run, name: str, reference) -> Callable:
    """Builds `learn(state, collection, number) -> (state, metrics)`: what a step of the run teaches one of its modules.

    It learns from the rows that it wrote, or from pairs of all; without any, and in steps that are not its own, from nothing.

    Args:
      run: of the policy.
      name: of the module.
      reference: parameters with which the policy began the phase, or None where nobody needs them.
    """
    module, chosen = run.modules[name], settings_of(run.config, name)
    earlier = run.config.sft.steps + run.config.preference.steps
    begin = module.network.params if chosen["directory"] else reference
    # A copy: the first update is given the buffers of those that there are.
    begin = jax.tree.map(jax.numpy.copy, begin) if module_method(module).needs_reference else None
    if of_pairs(module):
        learn_pairs = preference.make_pair_learner(module, begin)
        component, success = list(run.config.rewards.names).index(chosen["reward"]), run.config.evaluation.success
    else:
        learn_rows = make_learner(module, begin)

    def learn(state: TrainState, collection: Collection, number: int) -> tuple[TrainState, dict[str, float]]:
        since = number - earlier - chosen["first"]
        if since < 0 or since % chosen["every"]:
            return state, {}
        if of_pairs(module):
            groups = np.asarray(collection.rollouts.group).tolist()
            pairs, numbers = made_pairs(collection.records, groups, component, success, run.source)
            return learn_pairs(state, pairs, numbers, number) if pairs else (state, {})
        rows = collection.written_by((name,))
        if not len(rows):
            return state, {}
        own = collection.take(rows)
        source = np.zeros_like(own.rollouts.source)
        return learn_rows(state, dataclasses.replace(own, rollouts=own.rollouts.replace(source=source)), {}, number)

    return learn


def compiled_update(run: Run):
    """The update of the phase, `(state, batch, frozen) -> (state, metrics)`, compiled; it takes the state over."""
    objective = learning.with_router_losses(run.config, run.network, run.method.objective)
    if run.config.rl.measure_gap:
        objective = make_objective(*objective.terms, policy_gap())
    pure = make_update(None, objective, optimizer(run), scorer=_scorer(run, objective.needs))
    return learning.compiled(run, REINFORCEMENT, run.method, pure)


def strategy_io(run: Run, state: TrainState, reference, number: int, failures: list | None = None, **changes) -> Io:
    """What the strategy may do in a step: all policies of the run answer, under the parameters of the state."""
    return sampling_io(run, number, failures, policies=policies_of(run, state, reference), **changes)


def sampling_io(run: Run, number: int, failures: list | None, **changes) -> Io:
    """The `Io` of the RL phase; `changes`, which have its policies, are attributes."""
    return run.io(None, number, failures, keeps_entropy="behavior_entropy" in run.method.needs, **changes)


def _scorer(run: Run, needs: frozenset[str]):
    """The scorer that the update differentiates: at the sampling temperature, with the critic where it is one of its own."""
    separate = separate_critic(run)
    options = {"temperature": run.config.rl.temperature, "replay_routes": run.config.network.router.replay}
    of_critic = needs & {"value", "value_outputs"}
    network = run.network.without_params() if separate else critics.reading(run.network, run.method)
    actor = make_scorer(network, needs - of_critic if separate else needs, **options)
    return actor_critic_scorer(actor, critic_network(run), of_critic) if separate else actor


def make_annotate(run: Run, reference) -> Callable[[TrainState, Rollouts, int], Rollouts]:
    """Builds `annotate(state, rollouts, step) -> rollouts` with what the method needs in `extras`."""
    return annotate.make_annotate(
        run, all_passes(run, reference), width=run.config.rl.row_tokens, parts=run.config.rl.micro_batches,
        from_groups=annotate.group_rule(run.method),
    )  # fmt: skip


def all_passes(run: Run, reference) -> list[annotate.Pass]:
    """The scoring passes of a step, in their order."""
    passes = scoring_passes(run.method, policy_annotators(run, reference))
    critic = [(who, critics.statistics_of_critic(who, run.method)) for who in ("behavior", "target")]
    return passes + [_values_pass(run, who, statistics) for who, statistics in critic if statistics]


def _values_pass(run: Run, who: str, statistics: dict[str, str]):
    """What the critic, or its average, says of the states; `statistics` by the name that each has among the annotations."""
    critic = jax.jit(make_scorer(critic_network(run), set(statistics.values())))

    def scored(state, batch):
        params = critic_part(run, state) if who == "behavior" else state.method_state["target"]["average"]
        scores = critic(run.whole(params), batch)
        return {name: getattr(scores, statistic) for name, statistic in statistics.items()}

    return scored


def _updates(run: Run, update, state: TrainState, rollouts: Rollouts, number: int, meanwhile: Callable[[], Any] = tuple):
    """All updates of a step: `epochs` passes over the rollouts in `minibatches` parts each; devices are at work `meanwhile`."""
    rl, seen = run.config.rl, []
    scalars = coefficients(run.method, state.method_state, number)
    scalars |= {"reward": np.float32(np.nansum(rollouts.rewards, axis=1).mean())}
    for epoch in range(rl.epochs):
        for rows in minibatch_rows(run, len(rollouts.length), number, epoch):
            pack = functools.partial(update_batch, run, rollouts, rows, number, scalars)
            state, metrics = update(state, pack, frozen_params(run))
            seen.append(metrics)
    meanwhile()
    with timed("update"):
        seen = distributed.fetch(seen)
    means = {name: float(np.mean([metrics[name] for metrics in seen])) for name in seen[0]}
    return state, means | {"logp_gap": float(seen[0]["logp_gap"])}


def update_batch(run: Run, rollouts: Rollouts, rows: np.ndarray, number: int, scalars: dict[str, np.ndarray], **options):
    """The batch of one update, of these rows of a step's rollouts; `options` are of `Run.pack`."""
    rl = run.config.rl
    part = rollouts if rl.minibatches == 1 else select_rows(rollouts, rows)
    # The weights of a part sum to its share of the step; the update takes each part for a whole.
    part = scale_weights(part, rl.minibatches)
    options |= {"keep": has_weight(part), "step": number, "coefficients": scalars}
    return run.pack(part, rl.row_tokens, rl.micro_batches, **options)


def frozen_params(run: Run):
    """What `update` joins with the parameters that train; policy and critic share the same arrays."""
    if run.frozen is None or not separate_critic(run):
        return run.frozen
    return {"policy": run.frozen, "critic": run.frozen}


def minibatch_rows(run: Run, rows: int, number: int, epoch: int) -> list[np.ndarray]:
    """Rows of each minibatch: a permutation that depends on seed, step and epoch alone."""
    if run.config.rl.minibatches == 1:
        return [np.arange(rows)]
    key = np.array([run.config.seed % 2**64, number * run.config.rl.epochs + epoch], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")
    return np.array_split(order, run.config.rl.minibatches)
