"""What the phases share: the loss, optimizer and update that a configuration makes of a method, and the step that learns."""

from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from jaxrl_llm import distributed, networks
from jaxrl_llm.methods import Method
from jaxrl_llm.objectives import Objective, load_balancing, router_z
from jaxrl_llm.objectives import objective as make_objective
from jaxrl_llm.training.build import build_optimizer
from jaxrl_llm.training.fitting import make_fitted
from jaxrl_llm.training.method_state import after_step
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.state import TrainState
from jaxrl_llm.training.timing import timed
from jaxrl_llm.training.wrapping import with_front, wrap_of, wrapped_optimizer, wrapped_update
from jaxrl_llm.types import Rollouts


def with_router_losses(config: ConfigDict, network: networks.Network, objective: Objective) -> Objective:
    """The objective and the losses on routers that the configuration asks for.

    Raises ValueError: it asks for some, or for replayed routes, and the network has no experts.
    """
    router, experts = config.network.router, getattr(network.config, "experts", None)
    if experts is None and (router.load_balancing or router.z or router.replay):
        raise ValueError(f"config.network.router is {router.to_dict()}, but the network has no experts; leave it as it is")
    terms = []
    if router.load_balancing:
        options = {"coefficient": router.load_balancing, "pooled": router.pooled}
        terms.append(load_balancing(experts_per_token=experts.per_token, **options))
    if router.z:
        terms.append(router_z(coefficient=router.z))
    return make_objective(*objective.terms, *terms) if terms else objective


def phase_optimizer(run: Run, phase: str, method: Method, params=None) -> optax.GradientTransformation:
    """The optimizer of a phase with one update a step; `params` are those with which it begins, for `init` alone."""
    wrap = wrap_of(run.config[phase].optimizer, method)
    plain = build_optimizer(run.config[phase].optimizer, run.config[phase].steps, wrap=wrap)
    return with_front(wrapped_optimizer(plain, wrap, params, run.base_params), wrap)


def compiled(run: Run, phase: str, method: Method, update: Callable) -> Callable:
    """An update of a phase with its wrappers, `(state, batch, frozen) -> (state, metrics)`; it takes the state over."""
    return jax.jit(wrapped_update(update, wrap_of(run.config[phase].optimizer, method)), donate_argnums=0)


def make_phase_update(run: Run, phase: str, method: Method, update: Callable) -> Callable:
    """`updated(state, pack) -> (state, metrics)`, of the batch of `pack()` in micro-batches that fit; metrics are numbers."""
    fitted = make_fitted(run, compiled(run, phase, method, update), run.config[phase].micro_batches)

    def updated(state: TrainState, pack: Callable):
        state, metrics = fitted(state, pack, run.frozen)
        with timed("update"):
            return state, {name: float(value) for name, value in distributed.fetch(metrics).items()}

    return updated


def learned(method: Method, estimate: Callable, state: TrainState, rollouts: Rollouts, key, updates: Callable):
    """Estimates, updates, and what the method's state becomes: `(state, rollouts, metrics)`.

    Args:
      method: of the phase.
      estimate: see `make_estimate`.
      state: before the step.
      rollouts: of the step, with all that the method needs.
      key: of the step.
      updates: `(state, rollouts) -> (state, metrics)`, those of the step; the controllers look at its metrics.
    """
    before = distributed.fetch(state.method_state["estimator"])
    with timed("annotate"):
        rollouts, method_state = estimate(rollouts, state.method_state, key)
        rollouts = distributed.fetch(rollouts)
    state, metrics = updates(state.replace(method_state=method_state), rollouts)
    return state.replace(method_state=after_step(method, before, state.method_state, metrics)), rollouts, metrics
