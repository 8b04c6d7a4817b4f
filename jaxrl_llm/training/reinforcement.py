"""One step of the RL phase: rollouts, annotations, advantages, updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jaxrl_llm.data import Cursor, pack
from jaxrl_llm.data.packing import has_weight, unpack
from jaxrl_llm.networks import Network, decoder
from jaxrl_llm.rollouts import select_rows
from jaxrl_llm.scoring import actor_critic_scorer, make_scorer
from jaxrl_llm.training.build import build_optimizer
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.state import TrainState
from jaxrl_llm.training.update import make_update
from jaxrl_llm.types import Batch, Rollouts


def initial_state(run: Run, params) -> TrainState:
    """State before the first RL update; a critic begins as a copy of the policy with a value head of zeros."""
    params = {"policy": params, "critic": critic_params(run, params)} if run.method.needs_critic else params
    state = run.method.estimator.init()
    return TrainState.create(params, optimizer(run), method_state=state, key=jax.random.key(run.config.seed))


def policy_params(run: Run, state: TrainState):
    """The policy's part of the parameters in the RL phase."""
    return state.params["policy"] if run.method.needs_critic else state.params


def critic_network(run: Run) -> Network:
    """The policy's architecture with a value head."""
    return decoder(dataclasses.replace(run.network.config, value_head=True))


def critic_params(run: Run, params):
    """A copy of the policy's parameters, with the parameters of the value head that they lack."""
    missing = jax.eval_shape(critic_network(run).init, jax.random.key(0)).keys() - params.keys()
    heads = {name: critic_network(run).init(jax.random.key(run.config.seed))[name] for name in sorted(missing)}
    # The policy's buffers are donated to updates: the critic needs its own.
    return jax.tree.map(lambda leaf: leaf.copy(), params) | heads


def optimizer(run: Run) -> optax.GradientTransformation:
    """The optimizer of the RL phase; policy and critic are clipped apart and may learn at different rates."""
    rl = run.config.rl
    updates = rl.steps * rl.epochs * rl.minibatches
    policy = build_optimizer(rl.optimizer, updates)
    if not run.method.needs_critic:
        return policy
    critic = build_optimizer(rl.optimizer, updates, factor=run.config.critic.learning_rate_factor)
    return optax.partition({"policy": policy, "critic": critic}, {"policy": "policy", "critic": "critic"})


def make_reinforcement_step(run: Run, reference) -> Callable:
    """Builds `step(state, cursor, number) -> (state, cursor, metrics, records)`.

    Args:
      run: the run.
      reference: parameters of the reference policy, or None where the method needs none.
    """
    rl, method = run.config.rl, run.method
    annotate = make_annotate(run, reference)
    estimate = jax.jit(method.estimator.update)
    pure = make_update(None, method.objective, optimizer(run), micro_batches=rl.micro_batches, scorer=_scorer(run))
    update = jax.jit(pure, donate_argnums=0)

    def step(state: TrainState, cursor: Cursor, number: int):
        collect = run.collector(policy_params(run, state), number)
        collection, cursor, metrics = method.strategy(run.draw, collect, cursor, rl.prompts)
        rollouts = annotate(state, collection.rollouts)
        metrics |= rollout_metrics(run, rollouts, collection.records)
        key = jax.random.fold_in(state.key, number)
        rollouts, method_state = estimate(rollouts, state.method_state, key)
        rollouts = jax.device_get(rollouts)
        state, update_metrics = _updates(run, update, state.replace(method_state=method_state), rollouts, number)
        return state, cursor, update_metrics | metrics, collection.records

    return step


def row_tokens(run: Run) -> int:
    """Width of packed rows: as configured, or just enough for the longest rollout."""
    return run.config.rl.row_tokens or run.config.task.max_prompt_tokens + run.config.rl.max_new_tokens


def _scorer(run: Run):
    """The scorer that the update differentiates: at the sampling temperature, with the critic where there is one."""
    needs = run.method.objective.needs - ({"value"} if run.method.needs_critic else set())
    actor = make_scorer(run.network.without_params(), needs, temperature=run.config.rl.temperature)
    return actor_critic_scorer(actor, critic_network(run)) if run.method.needs_critic else actor


def make_annotate(run: Run, reference) -> Callable[[TrainState, Rollouts], Rollouts]:
    """Builds `annotate(state, rollouts) -> rollouts` with what the method needs in `extras`, one pass for each network."""
    passes: dict[str, Any] = {}
    if run.method.needs_reference:
        scorer = jax.jit(make_scorer(run.network.without_params(), temperature=run.config.rl.temperature))
        passes["reference_logp"] = lambda state, batch: scorer(reference, batch).logp
    if run.method.needs_critic:
        critic = jax.jit(make_scorer(critic_network(run), {"value"}))
        passes["behavior_value"] = lambda state, batch: critic(state.params["critic"], batch).value

    def annotate(state: TrainState, rollouts: Rollouts) -> Rollouts:
        if not passes:
            return rollouts
        batch = pack(rollouts, row_tokens(run), multiple=run.row_multiple(run.config.rl.micro_batches))
        extras = dict(rollouts.extras)
        for name, score in passes.items():
            extras[name] = unpack(_in_parts(run, score, state, batch), batch, *rollouts.tokens.shape)
        return rollouts.replace(extras=extras)

    return annotate


def _in_parts(run: Run, score, state, batch: Batch) -> np.ndarray:
    """Scores the rows in as many equal parts as an update, so that it takes no more memory."""
    parts = run.config.rl.micro_batches
    rows, scalars = batch.replace(step=None, coefficients={}), {"step": batch.step, "coefficients": batch.coefficients}
    pieces = [jax.tree.map(lambda leaf, part=part: np.array_split(leaf, parts)[part], rows) for part in range(parts)]
    return np.concatenate([jax.device_get(score(state, run.place(piece.replace(**scalars)))) for piece in pieces])


def _updates(run: Run, update, state: TrainState, rollouts: Rollouts, number: int):
    """All updates of a step: `epochs` passes over the rollouts in `minibatches` parts each."""
    rl, seen = run.config.rl, []
    schedules = {name: np.float32(schedule(number)) for name, schedule in run.method.schedules}
    for epoch in range(rl.epochs):
        for rows in _minibatch_rows(run, len(rollouts.length), number, epoch):
            part = rollouts if rl.minibatches == 1 else select_rows(rollouts, rows)
            # The weights of a part sum to its share of the step; the update takes each part for a whole.
            part = part.replace(weight=part.weight * rl.minibatches)
            multiple = run.row_multiple(rl.micro_batches)
            keep = has_weight(part)
            batch = pack(part, row_tokens(run), keep=keep, multiple=multiple, step=number, coefficients=schedules)
            state, metrics = update(state, run.place(batch))
            seen.append(metrics)
    seen = jax.device_get(seen)
    means = {name: float(np.mean([metrics[name] for metrics in seen])) for name in seen[0]}
    return state, means | {"logp_gap": float(seen[0]["logp_gap"])}


def _minibatch_rows(run: Run, rows: int, number: int, epoch: int) -> list[np.ndarray]:
    """Rows of each minibatch: a permutation that depends on seed, step and epoch alone."""
    if run.config.rl.minibatches == 1:
        return [np.arange(rows)]
    key = np.array([run.config.seed % 2**64, number * run.config.rl.epochs + epoch], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")
    return np.array_split(order, run.config.rl.minibatches)


def rollout_metrics(run: Run, rollouts: Rollouts, records) -> dict[str, float]:
    """Rewards, lengths and entropy of what was sampled; see `metrics.DEFINITIONS`."""
    rewards = np.array([record["rewards"] for record in records], np.float64)
    totals = np.nansum(np.asarray(rollouts.rewards, np.float64), axis=1)
    groups = [totals[rollouts.group == group] for group in np.unique(rollouts.group)]
    actions = rollouts.mask.sum()
    components = {
        f"reward/{name}": float(np.nanmean(column)) if not np.isnan(column).all() else float("nan")
        for name, column in zip(run.config.rewards.names, rewards.T, strict=True)
    }
    lengths = rollouts.mask.sum(axis=1)
    return components | {
        "reward": float(totals.mean()),
        "reward_std": float(np.mean([group.std() for group in groups])),
        "reward_missing": float(np.isnan(rewards).mean()),
        "uniform_groups": float(np.mean([np.ptp(group) == 0 for group in groups])),
        "entropy": float(-(rollouts.behavior_logp * rollouts.mask).sum() / max(actions, 1.0)),
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "truncated": float(np.mean([record["finish_reason"] == "length" for record in records])),
        "tokens": float(rollouts.length.sum()),
    }
