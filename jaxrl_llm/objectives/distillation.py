"""Divergences between whole distributions of the next token, and losses over candidates."""

import jax.numpy as jnp

from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.numerics import masked, without_infinities
from jaxrl_llm.objectives.base import coefficient_value, weighted_sum
from jaxrl_llm.objectives.candidates import distributions, expectation, log_difference, vocabulary
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

    Raises:
      ValueError: `beta` is not in [0, 1].

    Source: generalised knowledge distillation, https://arxiv.org/abs/2306.13649, equation 1
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; it must be from 0 to 1")
    if beta in (0, 1):
        return (reverse_divergence if beta else forward_divergence).function(other, policy)
    mixture = jnp.logaddexp(*(jnp.where(jnp.isfinite(x), x, -1e9) + jnp.log(b) for x, b in ((other, beta), (policy, 1 - beta))))
    to_other, to_policy = (expectation(x, log_difference(x, mixture)) for x in (other, policy))
    return beta * to_other + (1 - beta) * to_policy


@composable
def alpha_divergence(other, policy, *, alpha: float = 0.5):
    """(1 - sum policy^alpha other^(1 - alpha)) / (alpha (1 - alpha)): forward at alpha -> 0, reverse at alpha -> 1.

    Raises:
      ValueError: `alpha` is 0 or 1, which have functions of their own.

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

    Raises:
      ValueError: an unknown direction.

    Source: Csiszar, I-divergence geometry (1975), https://doi.org/10.1214/aop/1176996454, for measures as in
      https://doi.org/10.1214/aos/1176348385
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; it must be one of {DIRECTIONS}")
    p, q = (other, policy) if direction == "forward" else (policy, other)
    return expectation(p, log_difference(p, q) - 1.0) + expectation(q, jnp.ones_like(q))


VOCABULARY, JENSEN_SHANNON = vocabulary(of="teacher"), jensen_shannon()


@composable(needs=("candidate_logp",), annotations=lambda options: ("candidates", f"{options['against']}_candidate_logp"))
def divergence(
    scores: Scores,
    batch: Batch,
    *,
    kind: Composable = JENSEN_SHANNON,
    candidates: Composable = VOCABULARY,
    against: str = "teacher",
    rest: str = "bucket",
    floor: float | None = None,
    coefficient: float | str = 1.0,
):
    """`coefficient` times a divergence (nats) between the policy's distribution of the token and that of another policy.

    Args:
      kind: `(other, policy) -> divergence`, both log-probabilities [..., K].
      candidates: the rule that fills `batch.extras["candidates"]`; the whole vocabulary gives the exact divergence.
      against: "teacher", "reference" or "proximal".
      rest: what becomes of other tokens, see `candidates.distributions`.
      floor: least log-probability (nats) of a candidate, below which it has no gradient, on both sides; None for none. Those
        that are not there stay so.
      coefficient: a number, or the name of a scalar in `batch.coefficients`.

    Raises:
      ValueError: `generalised_divergence` with a `rest` that makes masses equal, as it would change nothing.

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
      wrong: reward of a candidate that is not the given token.

    Source: One-Token Rollout, https://arxiv.org/abs/2509.26313
    """
    del candidates
    ids, logp = batch.extras["candidates"], without_infinities(masked(scores.candidate_logp, batch.mask[..., None]))
    reward = jnp.where(ids == batch.tokens[..., None], 1.0, wrong) * (ids >= 0)
    count = jnp.maximum((ids >= 0).sum(axis=-1), 1)
    return -jnp.sum(reward * logp, axis=-1) / count, {}
