"""Controllers: scalars that change from step to step, by a schedule or by what was measured, with explicit state.

A controller is a pair of functions around a small state, which is part of the method's state in the checkpoint:
`value(state, step)` is the scalar that stands in `batch.coefficients` at a step, and `update(state, metrics)` takes in what
the step measured; `measure` is the name of one metric of it. All of this is pure; a changed scalar recompiles no update.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Concatenate

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, Factory, Options, factory_of


@dataclasses.dataclass(frozen=True)
class Controller:
    """One scalar of `batch.coefficients`."""

    init: Callable[[], Any]  # `init() -> state`, a pytree of arrays
    # `value(state, step) -> float32 []`; it has the options, and prints as the code that makes the controller
    value: Composable
    update: Callable[[Any, Mapping[str, Any]], Any]  # `update(state, metrics) -> state`, from the metrics of a step

    def __repr__(self) -> str:
        return repr(self.value)


_Value = Callable[Concatenate[Any, Any, Options], Any]


def controlled(
    *, init: Callable[..., Any] | None = None, update: Callable[..., Any] | None = None
) -> Callable[[_Value[Options]], Factory[Options, Controller]]:
    """Decorator: `value(state, step, **options)` becomes a factory of controllers.

    Args:
      init: `init(**options) -> state`; no state by default.
      update: `update(state, metrics, **options) -> state`; the state stays as it is by default.
    """

    def build(bound: Composable) -> Controller:
        first, following = Composable(init or _no_state, bound.options), Composable(update or _unchanged, bound.options)
        return Controller(init=first, value=bound, update=following)

    return lambda value: factory_of(value, build)


def _no_state(**options) -> tuple:
    return ()


def _unchanged(state, metrics, **options):
    return state


@controlled()
def scheduled(state, step, *, schedule: Callable[[Any], Any]):
    """The value of a schedule, such as those of optax, at the step.

    Args:
      schedule: step -> number; a composable one, so that equal methods stay equal.
    """
    return jnp.asarray(schedule(step), jnp.float32)


def _follow_kl(state, metrics, *, initial, target, horizon, measure):
    error = jnp.clip(metrics[measure] / target - 1.0, -0.2, 0.2)
    return jnp.float32(state * (1.0 + error / horizon))


@controlled(init=lambda *, initial, **options: jnp.float32(initial), update=_follow_kl)
def adaptive_kl(state, step, *, initial: float, target: float, horizon: float, measure: str = "reference_kl"):
    """A KL coefficient that rises where the KL is above its target and falls where it is below.

    c <- c (1 + clip(KL / target - 1, -0.2, 0.2) / horizon) after each step.

    Args:
      initial: first value.
      target: KL (nats) that is aimed at.
      horizon: steps in which an error of 1 would change c by the factor e.
      measure: name of the metric that holds the KL.

    Source: Ziegler et al., https://arxiv.org/abs/1909.08593, section 2.2, with steps in place of episodes
    """
    return state


def _entropy_state(*, initial: float, **options):
    return {"coefficient": jnp.float32(initial), "entropy": jnp.float32(jnp.inf)}


def _follow_entropy(state, metrics, *, initial, target, change, low, high, measure):
    entropy = jnp.float32(metrics[measure])
    moved = state["coefficient"] + jnp.where(entropy <= target, change, -change)
    return {"coefficient": jnp.clip(moved, low, high), "entropy": entropy}


@controlled(init=_entropy_state, update=_follow_entropy)
def adaptive_entropy(
    state, step, *, target: float, initial: float = 0.0, change: float = 0.005, low: float = 0.0, high: float = 1.0,
    measure: str = "entropy",
):  # fmt: skip
    """An entropy coefficient that grows by `change` while the entropy is at or below its target, and shrinks above it.

    It is 0 in a step whose predecessor was above the target: the bonus acts only where it is wanted.

    Args:
      target: entropy (nats) that is to be kept.
      initial: first coefficient.
      change: of each step.
      low: least coefficient.
      high: largest coefficient.
      measure: name of the metric that holds the entropy.

    Source: Skywork-OR1, https://arxiv.org/abs/2505.22312, section 4
    """
    return jnp.where(state["entropy"] <= target, state["coefficient"], 0.0)


def _follow_band(state, metrics, *, initial, low, high, rate, least, most, warmup, measure):
    entropy = jnp.float32(metrics[measure])
    error = jnp.minimum(0.0, entropy - low) + jnp.maximum(0.0, entropy - high)
    moved = jnp.clip(state["coefficient"] - rate * error, least, most)
    ready = state["steps"] >= warmup
    return {"coefficient": jnp.where(ready, moved, state["coefficient"]), "steps": state["steps"] + 1}


def _band_state(*, initial: float, **options):
    return {"coefficient": jnp.float32(initial), "steps": jnp.int32(0)}


@controlled(init=_band_state, update=_follow_band)
def entropy_band(
    state, step, *, low: float, high: float, initial: float = 2e-4, rate: float = 1e-3, least: float = 1e-5, most: float = 3e-3,
    warmup: int = 29, measure: str = "top_entropy",
):  # fmt: skip
    """An entropy coefficient that keeps an entropy within a band: c <- clip(c - rate (min(0, H - low) + max(0, H - high))).

    Args:
      low: lower end of the band, nats.
      high: upper end.
      initial: first coefficient, kept for `warmup` steps.
      rate: of change.
      least: lower bound of the coefficient.
      most: upper bound.
      warmup: steps before the first change.
      measure: name of the metric that holds the entropy.

    Source: AEnt, https://arxiv.org/abs/2509.03493
    """
    return state["coefficient"]


def _add_to_history(state, metrics, *, measure):
    return {"total": state["total"] + jnp.float32(metrics[measure]), "count": state["count"] + 1.0}


@controlled(init=lambda **options: {"total": jnp.float32(0.0), "count": jnp.float32(0.0)}, update=_add_to_history)
def running_mean(state, step, *, measure: str):
    """Mean of a metric over the steps so far; 0 before the first.

    Source: EPO, https://arxiv.org/abs/2509.22576 (mean entropy of earlier steps); BCO, https://arxiv.org/abs/2404.04656
    """
    return state["total"] / jnp.maximum(state["count"], 1.0)


@controlled(
    init=lambda **options: jnp.float32(0.0), update=lambda state, metrics, *, measure: state + jnp.float32(metrics[measure])
)
def running_total(state, step, *, measure: str):
    """Sum of a metric over the steps so far; 0 before the first."""
    return state


def _empty_window(*, window: int, **options):
    return {"seen": jnp.full((window,), jnp.nan, jnp.float32), "count": jnp.int32(0), "drifted": jnp.bool_(False)}


def _watch(state, metrics, *, value, window, threshold, measure):
    new, seen = jnp.float32(metrics[measure]), state["seen"]
    full = state["count"] >= window
    deviation = jnp.maximum(jnp.nanstd(seen), 1e-8)
    drifted = state["drifted"] | (full & (jnp.abs(new - jnp.nanmean(seen)) > threshold * deviation))
    return {"seen": seen.at[state["count"] % window].set(new), "count": state["count"] + 1, "drifted": drifted}


@controlled(init=_empty_window, update=_watch)
def until_drift(state, step, *, value: float, window: int = 10, threshold: float = 3.0, measure: str = "entropy"):
    """`value` until a metric leaves its recent past by `threshold` standard deviations, and 0 from then on.

    Args:
      value: as long as nothing drifts.
      window: number of earlier steps that mean and deviation are taken over; nothing drifts before it is full.
      threshold: largest |z| of a step.

    Source: SFPO, https://arxiv.org/abs/2510.04072, whose window and threshold could not be confirmed
    """
    return jnp.where(state["drifted"], 0.0, jnp.float32(value))


def _average(state, metrics, *, decay, measure, factor):
    kept = {"mean": jnp.float32(metrics[measure]), "share": jnp.float32(1.0)}
    return {name: decay * state[name] + (1.0 - decay) * kept[name] for name in state}


@controlled(init=lambda **options: {"mean": jnp.float32(0.0), "share": jnp.float32(0.0)}, update=_average)
def moving_average(state, step, *, decay: float, measure: str, factor: float = 1.0):
    """`factor` times the exponential average of a metric over the steps before, without bias to its beginning; 0 at first.

    Args:
      decay: share of what was known that each step keeps, from 0 up to 1.
      factor: of the average.
    """
    return factor * state["mean"] / jnp.maximum(state["share"], 1e-6)
