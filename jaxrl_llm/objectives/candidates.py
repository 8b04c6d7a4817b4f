"""Which tokens a loss looks at beside the one that stands there: rules that pick K candidates from a distribution.

A rule is `pick(log_probabilities [n, V], tokens [n], keys [n]) -> ids [n, K]`, with -1 for no candidate; `of` names the policy
whose distribution it sees. `scoring.make_picker` runs a rule over a batch; the ids stand in `batch.extras["candidates"]`, and
what a policy says of them in `Scores.candidate_logp` or `batch.extras["teacher_candidate_logp"]`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import masked
from jaxrl_llm.types import Rollouts

RESTS = ("bucket", "renormalise", "ignore")


def _picks(function):
    """Marks a rule, so that it is found among the options of a term."""
    function.picks = True
    return function


def of_groups(rule: Composable) -> bool:
    """Whether a rule's candidates are made from whole groups, by `group_tokens`."""
    return rule.function is tokens_of_group.function


@composable
@_picks
def vocabulary(log_probabilities, tokens, keys, *, of: str = "proximal"):
    """Every token: exact divergences, for vocabularies that are small enough to be stored at each place."""
    return jnp.broadcast_to(jnp.arange(log_probabilities.shape[-1]), (*tokens.shape, log_probabilities.shape[-1]))


@composable
@_picks
def top(log_probabilities, tokens, keys, *, count: int, mass: float = 1.0, with_token: bool = False, of: str = "teacher"):
    """The `count` likeliest tokens.

    Args:
      count: K; the whole vocabulary where that is smaller.
      mass: candidates that come after this share of the probability are left out (-1); 1 leaves out none.
      with_token: the token that stands there is always a candidate, in the place of the least likely one if need be.
      of: whose distribution.
    """
    values, ids = jax.lax.top_k(log_probabilities, min(count, log_probabilities.shape[-1]))
    if mass < 1:
        shares = jnp.exp(values)
        ids = jnp.where(jnp.cumsum(shares, axis=-1) - shares < mass, ids, -1)
    if not with_token:
        return ids
    absent = (ids != tokens[..., None]).all(axis=-1)
    return ids.at[..., -1].set(jnp.where(absent, tokens, ids[..., -1]))


@composable
@_picks
def sampled(log_probabilities, tokens, keys, *, count: int, temperature: float = 1.0, of: str = "proximal"):
    """K = `count` independent samples, with repetitions, of log-probabilities divided by the `temperature`."""

    def draw(logp, key):
        return jax.random.categorical(key, logp / temperature, shape=(count,))

    return jax.vmap(draw)(log_probabilities, keys)


@composable
@_picks
def tokens_of_group(log_probabilities, tokens, keys, *, of: str = "proximal"):
    """Every token that occurs among the actions of the group, the same ids at each of its places.

    It looks at whole groups, not at distributions: `group_tokens` makes the candidates from rollouts, before any packing.

    Raises ValueError: when it is run on single tokens.
    """
    raise ValueError("tokens_of_group looks at whole groups; fill extras['candidates'] by objectives.group_tokens(rollouts)")


def group_tokens(rollouts: Rollouts) -> np.ndarray:
    """Candidates of `tokens_of_group`: the ids among the actions of each row's group, int32 [N, T, K], -1 behind them.

    K is the largest number of ids of a group, rounded up to a multiple of 64, so that few sizes are ever compiled. The result
    is a view that takes no memory along T.

    Args:
      rollouts: host arrays of N rows.
    """
    group, tokens, taken = np.asarray(rollouts.group), np.asarray(rollouts.tokens), np.asarray(rollouts.mask) > 0
    ids = {number: np.unique(tokens[(group == number)[:, None] & taken]) for number in np.unique(group)}
    width = -(-max(1, *(found.size for found in ids.values())) // 64) * 64
    rows = np.full((group.size, 1, width), -1, np.int32)
    for row, number in enumerate(group):
        rows[row, 0, : ids[number].size] = ids[number]
    return np.broadcast_to(rows, (*rollouts.tokens.shape, width))


def picks_of(value) -> frozenset[Composable]:
    """All rules among the options of `value`, nested ones included."""
    if isinstance(value, tuple):
        return frozenset().union(*map(picks_of, value))
    if not isinstance(value, Composable):
        return frozenset()
    if getattr(value.function, "picks", False):
        return frozenset({value})
    return picks_of(tuple(option for _, option in value.options))


def distributions(first, second, rest: str):
    """Two distributions over the same outcomes, as log-probabilities [..., K or K + 1], from those of K candidates.

    Args:
      first: log-probabilities [..., K] of one policy; -inf for no candidate.
      second: those of another.
      rest: what becomes of the other tokens: one more outcome, a "bucket" with their mass; "renormalise" by the mass of the
        candidates; or "ignore", which leaves two measures with less mass than 1.

    Raises ValueError: an unknown kind of rest.
    """
    require(rest in RESTS, "rest", rest, f"one of {RESTS}")
    both = []
    for logp in (first, second):
        known = jnp.isfinite(logp)
        finite = jnp.where(known, logp, 0.0)
        if rest == "renormalise":
            total = jax.nn.logsumexp(jnp.where(known, finite, -jnp.inf), axis=-1, keepdims=True)
            finite -= jnp.where(known.any(axis=-1, keepdims=True), total, 0.0)
        logp = jnp.where(known, finite, -jnp.inf)
        if rest == "bucket":
            left = 1.0 - jnp.sum(jnp.where(known, jnp.exp(finite), 0.0), axis=-1, keepdims=True)
            logp = jnp.concatenate([logp, jnp.log(jnp.maximum(left, 1e-6))], axis=-1)
        both.append(logp)
    return tuple(both)


def expectation(weights_logp, values):
    """sum over outcomes of exp(weights_logp) * values, [...]; outcomes without mass contribute 0, whatever their value."""
    mass = jnp.isfinite(weights_logp)
    return jnp.sum(masked(jnp.exp(jnp.where(mass, weights_logp, 0.0)) * jnp.where(mass, values, 0.0), mass), axis=-1)


def log_difference(first, second):
    """first - second where both are finite, and 0 elsewhere."""
    known = jnp.isfinite(first) & jnp.isfinite(second)
    return jnp.where(known, jnp.where(known, first, 0.0) - jnp.where(known, second, 0.0), 0.0)
