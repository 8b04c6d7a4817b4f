"""Per-token statistics of a policy on a batch; those of a network with `hidden` never build the logits, see `head`."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_llm.dense import DENSE, dense_statistics, pick_candidates
from jaxrl_llm.head import Head, token_statistics
from jaxrl_llm.networks.axes import constrain
from jaxrl_llm.types import Array, Batch, Scores

Scorer = Callable[[Any, Batch], Scores]
STATISTICS = frozenset({"entropy", "mean_logp", "max_logp", "value", "value_outputs", "hidden", "router_logits", *DENSE})
# Those that a bare function from tokens to logits cannot give.
_OF_NETWORKS = frozenset({"value", "value_outputs", "hidden", "router_logits"})


def make_scorer(
    policy: Any,
    needs: Iterable[str] = (),
    *,
    temperature: float = 1.0,
    replay_routes: bool = False,
    value: Callable[..., Any] | None = None,
) -> Scorer:
    """A pure function `scorer(params, batch) -> Scores` for a policy.

    Args:
      policy: a network with `hidden` and `unembedding` (chunked path), or any callable
        `apply(params, tokens, positions, segments) -> logits [B, T, V]`.
      needs: statistics beyond `logp`: "entropy", "mean_logp", "max_logp", "value", "value_outputs", "hidden", "router_logits",
        and those of `dense.dense_statistics`: "candidate_logp", "log_collision" and "top_entropy:0.3", 0.3 being the share
        that is cut.
      temperature: the logits are divided by it; the policy that is scored is the one that is sampled at this temperature.
      replay_routes: whether tokens go to the experts of `batch.extras["routes"]` [B, T, layers, k], those that the sampler
        sent them to (https://arxiv.org/abs/2510.11370); -1 leaves the choice to the router.
      value: `value(params, tokens, positions, segments) -> [B, T]`, what a policy that is a bare `apply` expects after
        reading each token, from the same parameters; see `actor_critic_scorer` for a critic with parameters of its own.

    Raises ValueError: an unknown statistic, a statistic that the policy cannot give, routes for a policy without experts, or a
      temperature of 0 or less.
    """
    needs = frozenset(needs)
    unknown = sorted(name for name in needs if name.partition(":")[0] not in STATISTICS)
    if unknown:
        raise ValueError(f"needs has unknown statistics {unknown}; known are {sorted(STATISTICS)}")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; a policy can be scored only at a temperature above 0")
    chunked = getattr(policy, "hidden", None) is not None and getattr(policy, "unembedding", None) is not None
    if (replay_routes or "router_logits" in needs) and getattr(policy, "routed", None) is None:
        asked = "replay_routes is True" if replay_routes else "needs has 'router_logits'"
        raise ValueError(f"{asked}, but the policy has no experts; leave it out")
    if chunked:
        return functools.partial(_score_network, policy, needs, temperature, replay_routes)
    beyond = sorted(needs & _OF_NETWORKS - ({"value"} if value is not None else set()))
    if beyond:
        mend = "a bare apply gives logits, and values where value=... is given"
        raise ValueError(f"needs has {beyond}, which only a network with `hidden` gives; {mend}")
    plain = functools.partial(_score_logits, policy, needs, temperature)
    if "value" not in needs:
        return plain
    of_values = actor_critic_scorer(plain, value)
    return lambda params, batch: of_values({"policy": params, "critic": params}, batch)


def actor_critic_scorer(actor: Scorer, critic: Any, needs: Iterable[str] = ("value",)) -> Scorer:
    """A scorer over `params = {"policy": ..., "critic": ...}` whose values come from a network of their own.

    Args:
      actor: scorer of the policy.
      critic: a network with `hidden` and `value`, or a function `critic(params, tokens, positions, segments) -> [B, T]`:
        what it expects after reading each token.
      needs: what is asked of the critic: "value", "value_outputs" or both; a function gives "value" alone.

    Raises ValueError: "value_outputs" are asked of a function.
    """
    if getattr(critic, "hidden", None) is None:
        if set(needs) - {"value"}:
            raise ValueError(f"needs is {sorted(needs)}; a critic that is a bare function gives 'value' alone")
        return functools.partial(_with_values, actor, critic)

    def scorer(params, batch: Batch) -> Scores:
        hidden = _read(critic, critic.hidden, params["critic"], batch)
        return actor(params["policy"], batch).replace(**_values(critic, params["critic"], hidden, batch, needs))

    return scorer


def _with_values(actor: Scorer, critic: Callable, params, batch: Batch) -> Scores:
    """Scores of the actor with the values that a bare function gives, each moved to the token that follows."""
    read = (batch if batch.forest is None else batch.forest).tokens.shape
    found = _read(critic, getattr(critic, "apply", critic), params["critic"], batch)
    if found.shape != read:
        raise ValueError(f"the critic gives values of shape {found.shape}; it must be {read}, one a token")
    value = _none_at(is_first(batch), _previous(found.astype(jnp.float32), batch))
    return actor(params["policy"], batch).replace(value=value)


def is_first(batch: Batch) -> Array:
    """1 where a token opens its sequence (or is padding): nothing comes before it, so it has no log-probability."""
    if batch.forest is not None:
        return (batch.index < 0) | (batch.segment == 0)
    previous = jnp.pad(batch.segment[:, :-1], ((0, 0), (1, 0)))
    return (previous != batch.segment) | (batch.segment == 0)


def _read(policy, function: Callable, params, batch: Batch, **options):
    """What a function of the policy's says of the tokens that it reads: those of the batch's forest, or its own.

    Raises ValueError: the batch has a forest, and the policy reads sequences alone.
    """
    if batch.forest is None:
        return function(params, batch.tokens, batch.positions, batch.segment, **options)
    if not getattr(policy, "reads_forests", False):
        raise ValueError("the batch has a forest, but this network takes segments alone; lay rollouts out by data.pack")
    return function(params, batch.forest.tokens, batch.forest.positions, reach=batch.forest.reach, **options)


def _previous(values, batch: Batch):
    """Of [B, W, ...], at each token of the batch what the network said after the one before it, [B, T, ...]."""
    if batch.forest is None:
        return jnp.roll(values, 1, axis=1)
    return _taken(values, jnp.maximum(batch.index, 0))


def _own(values, batch: Batch):
    """Of [B, W, ...], at each token of the batch what the network said when it read that token, [B, T, ...]."""
    if batch.forest is None:
        return values
    if batch.column is None:
        raise ValueError("the batch has a forest, but no column; data.pack_forest says where each token stands")
    return _taken(values, batch.column)


def _taken(values, columns):
    """Of [B, W, ...] those in `columns` [B, T]; on a mesh each device has the ones of its own part of T."""
    taken = jax.vmap(lambda row, columns: row[columns])(values, columns)
    return constrain(taken, "batch", "length", *[None] * (taken.ndim - 2))


def _values(network, params, hidden, batch: Batch, needs) -> dict[str, jax.Array]:
    """Those of "value" and "value_outputs" that are needed, of the state before each token."""
    first = is_first(batch)
    found = {name: getattr(network, name)(params, hidden) for name in ("value", "value_outputs") if name in needs}
    return {name: _none_at(first, _previous(values, batch)) for name, values in found.items()}


def _none_at(first, values):
    """Values [B, T, ...] with 0 at the first tokens."""
    return jnp.where(first.reshape(*first.shape, *[1] * (values.ndim - 2)), 0.0, values)


def _score_network(network, needs: frozenset[str], temperature: float, replay_routes: bool, params, batch: Batch) -> Scores:
    hidden, router_logits = _hidden_and_routing(network, needs, replay_routes, params, batch)
    before, cap = _previous(hidden, batch), getattr(network, "logit_softcap", None)
    statistics = token_statistics(before, network.unembedding(params), batch.tokens, temperature, needs, softcap=cap)
    first = is_first(batch)
    head = Head(network.unembedding(params).shape[0], 1.0 / temperature, cap)
    statistics |= dense_statistics(head.all_logits, (before, network.unembedding(params)), batch, needs)
    scores = {name: _none_at(first, values) for name, values in statistics.items()}
    scores |= _values(network, params, hidden, batch, needs)
    if "hidden" in needs:
        scores["hidden"] = jnp.where(first[..., None], 0.0, before)
    return Scores(**scores, router_logits=router_logits)


def _hidden_and_routing(network, needs: frozenset[str], replay_routes: bool, params, batch: Batch):
    """Hidden states [B, W, D] of what is read, and the routers' logits [B, T, layers, E] where they are wanted."""
    if not replay_routes and "router_logits" not in needs:
        return _read(network, network.hidden, params, batch), None
    routes = batch.extras.get("routes") if batch.forest is None else batch.forest.routes
    routes = jnp.moveaxis(routes, 2, 0) if replay_routes else None
    hidden, routing = _read(network, network.routed, params, batch, routes=routes)
    return hidden, _own(jnp.moveaxis(routing.logits, 0, 2), batch) if "router_logits" in needs else None


def _score_logits(policy, needs: frozenset[str], temperature: float, params, batch: Batch) -> Scores:
    logits = _read(policy, getattr(policy, "apply", policy), params, batch).astype(jnp.float32) / temperature
    before = _previous(logits, batch)
    log_probabilities = jax.nn.log_softmax(before)
    taken = jnp.take_along_axis(log_probabilities, batch.tokens[..., None], axis=-1)[..., 0]
    statistics = {"logp": taken}
    if "entropy" in needs:
        probabilities = jnp.exp(log_probabilities)
        finite = jnp.where(probabilities > 0, log_probabilities, 0.0)
        statistics["entropy"] = -jnp.sum(probabilities * finite, axis=-1)
    if "mean_logp" in needs:
        statistics["mean_logp"] = log_probabilities.mean(axis=-1)
    if "max_logp" in needs:
        statistics["max_logp"] = jax.lax.stop_gradient(log_probabilities.max(axis=-1))
    statistics |= dense_statistics(lambda logits: logits, (before,), batch, needs)
    first = is_first(batch)
    return Scores(**{name: _none_at(first, values) for name, values in statistics.items()})


def make_picker(
    policy: Any, pick: Callable[..., jax.Array], *, temperature: float = 1.0
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Builds `candidates(params, batch, key) -> ids [B, T, K]`: tokens that the policy might have said, without gradient.

    Args:
      policy: as in `make_scorer`.
      pick: `pick(log_probabilities [n, V], tokens [n], keys [n]) -> ids [n, K]`, see `objectives.candidates`.
      temperature: the logits are divided by it.
    """
    chunked = getattr(policy, "hidden", None) is not None and getattr(policy, "unembedding", None) is not None

    def candidates(params, batch: Batch, key) -> jax.Array:
        if not chunked:
            logits = _read(policy, getattr(policy, "apply", policy), params, batch) / temperature
            return pick_candidates(lambda logits: logits, (_previous(logits, batch),), batch, key, pick)
        hidden = _read(policy, policy.hidden, params, batch)
        head = Head(policy.unembedding(params).shape[0], 1.0 / temperature, getattr(policy, "logit_softcap", None))
        return pick_candidates(head.all_logits, (_previous(hidden, batch), policy.unembedding(params)), batch, key, pick)

    return candidates
