"""Divergences between whole distributions of the next token, losses over candidates, and the projection of TROLL."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable, require
from jaxrl_llm.numerics import masked, without_infinities
from jaxrl_llm.objectives.base import coefficient_value, weighted_sum
from jaxrl_llm.objectives.candidates import distributions, expectation, log_difference, top, vocabulary
from jaxrl_llm.types import Batch, Scores

DIRECTIONS = ("forward", "reverse")


@composable
def forward_divergence(other, policy):
    """KL(other || policy) in nats: the policy covers what the other does."""
    return expectation(other, log_difference(other, policy))


@composable
def reverse_divergence(other, policy):
    """KL(policy || other) in nats: the policy stays where the other is."""
    return expectation(policy, log_difference(policy, other))


@composable
def cross_entropy(other, policy):
    """-sum policy log other, in nats: KL(policy || other) plus the policy's entropy, so that it may be as sure as it likes.

    Outcomes that the other cannot have carry nothing.

    Source: the support constraint of SPOT, https://arxiv.org/abs/2202.06239, over all tokens
    """
    return -expectation(policy, without_infinities(other))


@composable
def jensen_shannon(other, policy, *, beta: float = 0.5):
    """beta KL(other || m) + (1 - beta) KL(policy || m), m = beta other + (1 - beta) policy.

    At `beta` 0 it is KL(other || policy), and at 1 KL(policy || other): the limits of the divergence over beta (1 - beta),
    which is itself 0 there.

    Raises ValueError: `beta` is not in [0, 1].
    Source: generalised knowledge distillation, https://arxiv.org/abs/2306.13649, equation 1
    """
    require(0 <= beta <= 1, "beta", beta, "from 0 to 1")
    if beta in (0, 1):
        return (reverse_divergence if beta else forward_divergence).function(other, policy)
    mixture = jnp.logaddexp(*(jnp.where(jnp.isfinite(x), x, -1e9) + jnp.log(b) for x, b in ((other, beta), (policy, 1 - beta))))
    to_other, to_policy = (expectation(x, log_difference(x, mixture)) for x in (other, policy))
    return beta * to_other + (1 - beta) * to_policy


@composable
def alpha_divergence(other, policy, *, alpha: float = 0.5):
    """(1 - sum policy^alpha other^(1 - alpha)) / (alpha (1 - alpha)): forward at alpha -> 0, reverse at alpha -> 1.

    Raises ValueError: `alpha` is 0 or 1, which have functions of their own.
    Source: Amari, Differential-Geometrical Methods in Statistics (1985), chapter 3
    """
    if alpha in (0, 1):
        raise ValueError(f"alpha is {alpha}; take forward_divergence() for 0 or reverse_divergence() for 1")
    overlap = expectation(other, jnp.exp(alpha * log_difference(policy, other)))
    return (1.0 - overlap) / (alpha * (1.0 - alpha))


@composable
def generalised_divergence(other, policy, *, direction: str = "forward"):
    """KL divergence of two measures whose masses may differ: sum [p log(p / q) - p + q] in nats, 0 only where p = q.

    Over candidates alone, without any renormalising, the plain sum of p log(p / q) has no minimum at p = q, and the policy
    lowers it by moving mass to or from the other tokens; this one has its least there. For masses that are equal, and so over
    the whole vocabulary, it is the plain divergence. Outcomes that one of the two cannot have count by their masses alone.

    Args:
      direction: "forward", p = other and q = policy; or "reverse", p = policy and q = other.

    Raises ValueError: an unknown direction.
    Source: Csiszar, I-divergence geometry (1975), https://doi.org/10.1214/aop/1176996454, for measures as in
      https://doi.org/10.1214/aos/1176348385
    """
    require(direction in DIRECTIONS, "direction", direction, f"one of {DIRECTIONS}")
    p, q = (other, policy) if direction == "forward" else (policy, other)
    return expectation(p, log_difference(p, q) - 1.0) + expectation(q, jnp.ones_like(q))


VOCABULARY, JENSEN_SHANNON = vocabulary(of="teacher"), jensen_shannon()


@composable(needs=("candidate_logp",), annotations=lambda options: ("candidates", f"{options['against']}_candidate_logp"))
def divergence(
    scores: Scores, batch: Batch, *, kind: Composable = JENSEN_SHANNON, candidates: Composable = VOCABULARY,
    against: str = "teacher", rest: str = "bucket", floor: float | None = None, coefficient: float | str = 1.0,
):  # fmt: skip
    """`coefficient` times a divergence (nats) between the policy's distribution of the token and that of another policy.

    Args:
      kind: `(other, policy) -> divergence`, both log-probabilities [..., K].
      candidates: the rule that fills `batch.extras["candidates"]`; the whole vocabulary gives the exact divergence.
      against: "teacher", "reference" or "proximal".
      rest: what becomes of other tokens, see `candidates.distributions`.
      floor: least log-probability (nats) of a candidate, below which it has no gradient, on both sides; None for none. Those
        that are not there stay so.

    Raises ValueError: `generalised_divergence` with a `rest` that makes masses equal, as it would change nothing.
    Source: https://arxiv.org/abs/2306.13649
    """
    del candidates  # who fills the batch reads it
    if kind.function is generalised_divergence.function and rest != "ignore":
        raise ValueError(f"{kind!r} would be the plain divergence with rest={rest!r}; set rest='ignore', or take the plain one")
    inside = batch.mask[..., None]
    ours, theirs = masked(scores.candidate_logp, inside), masked(batch.extras[f"{against}_candidate_logp"], inside)
    other, policy = distributions(theirs, ours, rest)
    if floor is not None:
        other, policy = (jnp.where(jnp.isfinite(logp), jnp.maximum(logp, floor), logp) for logp in (other, policy))
    value = kind(other, policy)
    name = f"divergence/{against}"
    return coefficient_value(coefficient, batch) * value, {name: weighted_sum(value, batch)}


@composable(needs=("candidate_logp",), annotations=("candidates",))
def one_token_rollouts(scores: Scores, batch: Batch, *, candidates: Composable, wrong: float = -0.1):
    """-(1/K) sum over candidates a of R(a) log pi(a), R = 1 for the token that stands there and `wrong` for any other.

    Args:
      candidates: the rule that draws them, such as `sampled(count=256, temperature=1.3)`.

    Source: One-Token Rollout, https://arxiv.org/abs/2509.26313
    """
    ids, logp = batch.extras["candidates"], without_infinities(masked(scores.candidate_logp, batch.mask[..., None]))
    reward = jnp.where(ids == batch.tokens[..., None], 1.0, wrong) * (ids >= 0)
    count = jnp.maximum((ids >= 0).sum(axis=-1), 1)
    return -jnp.sum(reward * logp, axis=-1) / count, {}


# The least mass behind the candidates, as in `candidates.distributions`.
_LEAST = 1e-6


@composable(needs=("candidate_logp",), annotations=("candidates", "proximal_candidate_logp"))
def score_centering(
    scores: Scores, batch: Batch, *, candidates: Composable, low: float | None = None, high: float | None = None
):
    """A sum_{v in H} sg(m(v) - alpha p(v)) log p(v): what makes the score of -A log p(token) one of mean 0 under the sampler.

    p is the policy that trains, q the policy before the step's updates, which stands for the sampler, H the candidates, and
    rho = (1 - q(H)) / (1 - p(H)): behind the candidates q is taken for rho p. Without bounds m = q and alpha = rho. With bounds
    of the importance weight p / q that the policy term has, m(v) = clip(p(v), low q(v), high q(v)) and alpha = clip(1, low rho,
    high rho). On policy it is 0. Masses behind the candidates count as 1e-6 at least.

    Args:
      candidates: the rule that fills `batch.extras["candidates"]`, `top(of="proximal", ...)`.
      low: lower bound of the importance weight; None with None for `high` where the policy term has no weight.
      high: upper bound of the importance weight.

    Raises ValueError: bounds of a weight that are negative or not in order.
    Source: https://arxiv.org/abs/2609.20807
    """
    del candidates  # who fills the batch reads it
    if low is not None and low < 0 or high is not None and high < (low or 0.0):
        raise ValueError(f"low={low}, high={high}: bounds of a weight are 0 or more and in order")
    inside = batch.mask[..., None]
    ours, theirs = masked(scores.candidate_logp, inside), masked(batch.extras["proximal_candidate_logp"], inside)
    p, q = jnp.exp(jax.lax.stop_gradient(ours)), jnp.exp(theirs)
    rho = _behind(q) / _behind(p)
    unweighted = low is None and high is None
    mean = q if unweighted else _bounded(p, q, low, high)
    alpha = rho if unweighted else _bounded(1.0, rho, low, high)
    return batch.advantage * jnp.sum((mean - alpha * p) * without_infinities(ours), axis=-1), {}


def _behind(probabilities):
    """Mass [..., 1] of the tokens that are no candidates."""
    return jnp.maximum(1.0 - probabilities.sum(axis=-1, keepdims=True), _LEAST)


def _bounded(value, scale, low: float | None, high: float | None):
    """`value` within `low` and `high` times `scale`."""
    return jnp.clip(value, None if low is None else low * scale, None if high is None else high * scale)


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

    Raises ValueError: the bound is not above 0.
    Source: TROLL, https://arxiv.org/abs/2510.03817
    """
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
