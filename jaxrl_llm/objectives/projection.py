"""TROLL: the trust region as a projection of each token's distribution."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked
from jaxrl_llm.objectives.candidates import distributions, expectation, log_difference, top
from jaxrl_llm.types import Batch, Scores

TOP = top(count=64, mass=1.0 - 1e-5, with_token=True, of="proximal")
_STEPS = 60  # of bisection: float32 has no more digits


@composable(needs=("candidate_logp",), annotations=("candidates", "proximal_candidate_logp"))
def projected(
    log_ratio, scores: Scores, batch: Batch, *, bound: float = 0.05, regression: float = 1.0, candidates: Composable = TOP
):
    """-(p(o) / q(o)) A + `regression` KL(pi || stop_gradient(p)): p is pi brought within `bound` nats of the old policy q.

    p minimises KL(p || pi) under KL(p || q) <= bound: log p = (log pi + eta log q) / (1 + eta) + constant, with the least
    eta >= 0 that meets the bound. Gradients flow through p, eta included. Distributions are those of the candidates, all other
    tokens being one outcome.

    Args:
      bound: in nats, above 0.
      regression: factor of the term that draws the policy to its projection.
      candidates: the rule that fills `batch.extras["candidates"]`; it has to include the token itself.

    Raises:
      ValueError: the bound is not above 0.

    Source: TROLL, https://arxiv.org/abs/2510.03817
    """
    del log_ratio, candidates
    if bound <= 0:
        raise ValueError(f"bound is {bound} nats; it must be above 0")
    inside = batch.mask[..., None]
    ours, theirs = (masked(x, inside) for x in (scores.candidate_logp, batch.extras["proximal_candidate_logp"]))
    old, policy = distributions(theirs, ours, "bucket")
    projection = project(policy, jax.lax.stop_gradient(old), bound)
    is_own = batch.extras["candidates"] == batch.tokens[..., None]
    own = jnp.argmax(is_own, axis=-1)[..., None]
    log_gain = jnp.take_along_axis(log_difference(projection, old), own, axis=-1)[..., 0]
    possible = (is_own & jnp.isfinite(ours) & jnp.isfinite(theirs)).any(axis=-1)
    pull = expectation(policy, log_difference(policy, jax.lax.stop_gradient(projection)))
    return -jnp.where(possible, jnp.exp(log_gain), 0.0) * batch.advantage + regression * pull


def project(policy, old, bound: float):
    """Log-probabilities [..., K] of the distribution nearest to `policy` whose KL (nats) to `old` is at most `bound`.

    Both are log-probabilities; outcomes of probability 0 under either have none in the result.
    """
    known = jnp.isfinite(policy) & jnp.isfinite(old)
    policy, old = (jnp.where(known, x, 0.0) for x in (policy, old))

    def mixture(log_eta, policy):
        """log p for share = eta / (1 + eta) of the old policy."""
        share = jax.nn.sigmoid(log_eta)[..., None]
        unscaled = jnp.where(known, (1.0 - share) * policy + share * old, -jnp.inf)
        total = jnp.where(known.any(axis=-1, keepdims=True), jax.nn.logsumexp(unscaled, axis=-1, keepdims=True), 0.0)
        return jnp.where(known, unscaled - total, -jnp.inf)

    def excess(log_eta, policy):
        p = mixture(log_eta, policy)
        return expectation(p, log_difference(p, jnp.where(known, old, -jnp.inf))) - bound

    fixed = jax.lax.stop_gradient(policy)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        outside = excess(middle, fixed) > 0
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    ends = jnp.full(policy.shape[:-1], -20.0), jnp.full(policy.shape[:-1], 20.0)
    root = jax.lax.stop_gradient(jax.lax.fori_loop(0, _STEPS, halve, ends)[1])
    # One Newton step that changes nothing but carries the derivative of the root (implicit function theorem).
    slope = jax.lax.stop_gradient(jax.grad(lambda log_eta: excess(log_eta, fixed).sum())(root))
    root -= jnp.where(slope < 0, excess(root, policy) / jnp.where(slope < 0, slope, 1.0), 0.0)
    free = jnp.where(known, policy, -jnp.inf)
    within = expectation(free, log_difference(free, jnp.where(known, old, -jnp.inf))) <= bound
    return jnp.where(within[..., None], free, mixture(jnp.where(within, 0.0, root), policy))
