"""A step of the RL phase without gradients: perturbed parameters answer the same prompts, and the better ones lead the way."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import distributed
from jaxrl_llm.data import Cursor
from jaxrl_llm.optimizers.evolution import evolution_gradient, member, perturbed
from jaxrl_llm.rollouts import joined
from jaxrl_llm.training.method_state import with_strategy_state
from jaxrl_llm.training.reinforcement import optimizer, strategy_io
from jaxrl_llm.training.rollout_metrics import rollout_metrics
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.scores import timeouts
from jaxrl_llm.training.state import TrainState
from jaxrl_llm.training.timing import timed


def make_evolution_step(run: Run) -> Callable:
    """Builds `step(state, cursor, number) -> (state, cursor, metrics, records)`; its noise is drawn from the step's key."""
    method, settings = run.method, run.method.evolution
    perturb, update = jax.jit(perturbed), _make_update(run)

    def step(state: TrainState, cursor: Cursor, number: int):
        key = jax.random.fold_in(state.key, number)
        remembered, failures, found = distributed.fetch(state.method_state["strategy"]), [], []
        tokens = 0
        for pair in range(settings.pairs):
            for sign in (1.0, -1.0):
                params = perturb(state.params, member(key, pair), sign * settings.scale)
                # All begin at one place in the data and with one number of samples: equal prompts, and equal noise.
                io = strategy_io(run, state.replace(params=params), None, number, failures, cursor=cursor)
                with distributed.sharded(run.mesh), timed("sample"):
                    collection, after, metrics = method.strategy.run(io, remembered, run.config.rl.prompts)
                found, tokens = [*found, collection], tokens + io.sampled_tokens
        fitness = np.array([np.nansum(each.rollouts.rewards, axis=1).mean() for each in found]).reshape(-1, 2)
        weights = method.evolution.shaping(fitness).astype(np.float32)
        everyone = joined(found)
        with timed("update"):
            state, measured = update(state, key, weights)
            measured = distributed.fetch(measured)
        metrics = metrics | rollout_metrics(run, everyone.rollouts, everyone.records)
        metrics |= {name: float(value) for name, value in measured.items()} | {"reward_timeouts": timeouts(failures)}
        metrics |= {
            "sampled_tokens": float(tokens),
            "loss": -float(fitness.mean()),
            "evolution/best": float(fitness.max()),
            "evolution/spread": float(fitness.std()),
        }
        state = state.replace(method_state=with_strategy_state(method, state.method_state, after))
        return state, io.cursor, metrics, everyone.records

    return step


def _make_update(run: Run):
    """`update(state, key, weights) -> (state, metrics)`, compiled; it takes the state over."""
    transform = optax.with_extra_args_support(optimizer(run))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, key, weights):
        gradient = evolution_gradient(state.params, key, weights, run.method.evolution.scale)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm)
        changes, opt_state = transform.update(gradient, state.opt_state, state.params)
        moved = optax.apply_updates(state.params, changes), opt_state
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, (state.params, state.opt_state))
        skipped = jnp.where(finite, 0, 1)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, skipped=state.skipped + skipped)
        return state, {"gradient_norm": norm, "skipped": skipped}

    return update
