"""What a configuration lays over a method's loss: the loss of the critic's head, and those on routers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from jaxrl_llm import networks
from jaxrl_llm.objectives import Objective, categorical_value_loss, load_balancing, quantile_value_loss, router_z, value_loss
from jaxrl_llm.objectives import objective as make_objective


def critic_head(config: ConfigDict) -> dict[str, Any]:
    """Fields of `DecoderConfig` for the head of a critic."""
    critic = config.critic
    limits = tuple(map(float, critic.range)) if critic.head == "bins" else None
    return {"value_head": critic.outputs, "value_kind": critic.head, "value_range": limits}


def with_critic_loss(config: ConfigDict, objective: Objective) -> Objective:
    """The objective with the value loss that belongs to the critic's head.

    Raises:
      ValueError: an option of the value loss is set that the head's own loss does not have.
    """
    critic = config.critic
    if critic.head == "plain" and not critic.options:
        return objective
    return make_objective(*(_critic_term(critic, term) for term in objective.terms))


def _critic_term(critic: ConfigDict, term):
    if term.function.__name__ != "value_loss":
        return term
    options, chosen = dict(term.options), critic.options.to_dict()
    if critic.head == "plain":
        return _with_options(value_loss, options | chosen)
    inert = [name for name in ("clip", "huber") if options[name] is not None]
    if inert:
        raise ValueError(
            f"config.method.options.value_{inert[0]}={options[inert[0]]} would change nothing with "
            f"config.critic.head={critic.head!r}; set it to None"
        )
    if critic.head == "bins":
        low, high = map(float, critic.range)
        return _with_options(categorical_value_loss, {"low": low, "high": high, "coefficient": options["coefficient"]} | chosen)
    return _with_options(quantile_value_loss, {"coefficient": options["coefficient"]} | chosen)


def _with_options(loss: Callable, options: dict[str, Any]):
    try:
        return loss(**options)
    except TypeError as error:
        raise ValueError(f"config.critic.options: {error}") from error


def with_router_losses(config: ConfigDict, network: networks.Network, objective: Objective) -> Objective:
    """The objective and the losses on routers that the configuration asks for.

    Raises:
      ValueError: it asks for some, or for replayed routes, and the network has no experts.
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
