"""A method's critic in training: what a configuration lays over it, how it is read, and when it learns."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxrl_llm import objectives
from jaxrl_llm.compose import Composable, keyword_defaults
from jaxrl_llm.methods import Method
from jaxrl_llm.networks import Network
from jaxrl_llm.objectives import heads

# The loss that belongs to each head which a configuration may give a critic in place of a plain one.
LOSSES = {
    "plain": objectives.value_loss,
    "bins": objectives.categorical_value_loss,
    "quantiles": objectives.quantile_value_loss,
    "gaussian": objectives.gaussian_value_loss,
    "ensemble": objectives.ensemble_value_loss,
}
# Parameters of a network that are those of its value head.
VALUE_HEAD = "value_head"


def with_settings(method: Method, settings: ConfigDict) -> Method:
    """The method with what `config.critic` lays over its critic.

    Raises ValueError: an unknown head, one in place of a head of the method's own, or options that would change nothing.
    """
    critic = method.critic
    if critic is None:
        return method
    head, loss = critic.head, critic.loss
    if settings.head and settings.head not in LOSSES:
        raise ValueError(f"config.critic.head is {settings.head!r}; it must be one of {sorted(LOSSES)}, or '' for the method's")
    if settings.head:
        if head != heads.plain():
            raise ValueError(f"config.critic.head is {settings.head!r}, but {method.name!r} has {head}; leave it ''")
        head = _made(getattr(heads, settings.head), settings.head_options.to_dict(), "head_options")
        loss = _loss_of(settings, head, loss)
    elif settings.head_options:
        head = _changed(heads, head, settings.head_options.to_dict(), "head_options")
    loss = _changed(objectives, loss, settings.options.to_dict(), "options")
    fitting = {name: value for name, value in head.options if name in ("low", "high")}
    if fitting and loss.function is objectives.categorical_value_loss.function:
        loss = _changed(objectives, loss, fitting, "head_options")
    warmup = critic.warmup_steps if settings.warmup_steps is None else settings.warmup_steps
    return method.with_critic(dataclasses.replace(critic, head=head, loss=loss, warmup_steps=warmup))


def _loss_of(settings: ConfigDict, head: Composable, loss: Composable) -> Composable:
    """The loss that belongs to a head, with those options of the method's own that both have."""
    make, before = LOSSES[settings.head], dict(loss.options)
    known = keyword_defaults(make.function)
    inert = [name for name, value in before.items() if name not in known and value is not None]
    if inert:
        raise ValueError(
            f"config.method.options.value_{inert[0]}={before[inert[0]]} would change nothing with "
            f"config.critic.head={settings.head!r}; set it to None"
        )
    own = {name: value for name, value in before.items() if name in known and value is not None}
    return make(**own, **{name: value for name, value in head.options if name in ("low", "high") and name in known})


def _changed(room, value: Composable, options: dict[str, Any], place: str) -> Composable:
    return _made(getattr(room, value.function.__name__), dict(value.options) | options, place) if options else value


def _made(factory, options: dict[str, Any], place: str) -> Composable:
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(f"config.critic.{place}: {error}") from error


def reading(network: Network, method: Method) -> Network:
    """The network, whose values are those that the head of the method's critic reads, where it has one."""
    plain = method.critic is None or method.critic.head == heads.plain()
    return network.without_params() if plain else _reading(network.without_params(), method.critic.head)


@functools.cache
def _reading(network: Network, head: Composable) -> Network:
    return dataclasses.replace(network, value=lambda params, hidden: head(network.value_outputs(params, hidden)))


def statistics_of_critic(who: str, method: Method) -> dict[str, str]:
    """Of "behavior", the critic as it is, or "target", its average: what the method needs, by the statistic that it is."""
    names = {f"{who}_{statistic}": statistic for statistic in ("value", "value_outputs")}
    return {name: statistic for name, statistic in names.items() if name in method.needs}


def within(transform: optax.GradientTransformation, first: int, end: int | None = None) -> optax.GradientTransformation:
    """The transform from update `first` on, and before update `end` where there is one; outside of them nothing moves.

    Args:
      transform: any.
      first: number of the first update, from 0.
      end: number of the first that is too late; None for none.
    """
    transform = optax.with_extra_args_support(transform)

    def init(params):
        return {"count": jnp.zeros((), jnp.int32), "inner": transform.init(params)}

    def update(updates, state, params=None, **extra):
        runs = (state["count"] >= first) & (True if end is None else state["count"] < end)
        found, inner = transform.update(updates, state["inner"], params, **extra)
        found = jax.tree.map(lambda leaf: jnp.where(runs, leaf, jnp.zeros_like(leaf)), found)
        inner = jax.tree.map(lambda new, old: jnp.where(runs, new, old), inner, state["inner"])
        return found, {"count": state["count"] + 1, "inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)


def labels(params: dict[str, Any], separate: bool) -> dict[str, str]:
    """ "critic" for what is the critic's alone among the parameters of the RL phase, "policy" for the rest."""
    own = "critic" if separate else VALUE_HEAD
    return {name: "critic" if name == own else "policy" for name in params}
