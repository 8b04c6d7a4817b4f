"""What a configuration lays over a method's loss: those on routers."""

from ml_collections import ConfigDict

from jaxrl_llm import networks
from jaxrl_llm.objectives import Objective, load_balancing, router_z
from jaxrl_llm.objectives import objective as make_objective


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
