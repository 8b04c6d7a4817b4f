"""Supervised methods beyond the plain likelihood, and mixtures of imitation with a policy gradient."""

import jax.numpy as jnp

from jaxrl_llm import objectives
from jaxrl_llm.compose import composable
from jaxrl_llm.controllers import scheduled
from jaxrl_llm.estimators import among, chain, group_advantage, sequence_mean, token_mean
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import blended, by_source, clip, negative_log_likelihood, objective, policy, probability, uncertainty
from jaxrl_llm.rollouts import guided


@method(
    "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification (Wu et al., 2025)",
    "arXiv:2508.05629",
)
def dft():
    """SFT whose tokens count by their probability, which takes the implicit reward 1 / probability away."""
    return None, chain(token_mean()), objective(negative_log_likelihood(factors=(probability(),)))


@method("Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015)", "arXiv:1512.00567")
def smoothed_sft(smoothing: float = 0.1):
    """SFT with soft targets: a share of each token's mass is spread over the whole vocabulary.

    Defaults: The paper's, for images.
    """
    return None, chain(token_mean()), objective(objectives.label_smoothing(smoothing=smoothing))


@composable
def warm_cosine(step, *, warmup: int, decay: int, peak: float, valley: float):
    """Rises linearly from 0 to `peak` in `warmup` steps, then falls along a cosine to `valley` within `decay` steps."""
    rising = peak * jnp.minimum(step / max(warmup, 1), 1.0)
    progress = jnp.clip((step - warmup) / max(decay, 1), 0.0, 1.0)
    falling = valley + (peak - valley) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, rising, falling)


def _chord(imitation, *, samples: int, demonstrations: int, clip_low: float, clip_high: float, **schedule) -> tuple:
    """(1 - mu) times the policy term on samples plus mu times imitation of demonstrations, each a mean of its own.

    The samples alone are the group of a prompt; the imitation is the mean over all tokens of demonstrations.
    """
    own = by_source(terms=((0, policy(trust=clip(low=clip_low, high=clip_high))),))
    loss = objective(blended(first=own, second=by_source(terms=((1, imitation),)), share="imitation"))
    estimator = chain(among(0, chain(group_advantage(), sequence_mean())), among(1, token_mean()))
    controllers = {"imitation": scheduled(schedule=warm_cosine(**schedule))}
    return guided(samples=samples, demonstrations=demonstrations), estimator, loss, controllers


@method("On-Policy RL Meets Off-Policy Experts (Zhang et al., 2025)", "arXiv:2508.11408")
def chord(
    samples: int = 8, demonstrations: int = 1, clip_low: float = 0.2, clip_high: float = 0.2, warmup: int = 200,
    decay: int = 400, peak: float = 0.5, valley: float = 0.02,
):  # fmt: skip
    """GRPO on samples and SFT on demonstrations, in a mixture whose share of imitation rises and then decays.

    Defaults: The clip is the paper's. The schedule and the numbers of samples are ours; the authors' framework has
      a constant share of 0.1. There demonstrations come from a buffer of their own and have no part in any group, as here.
    """
    return _chord(
        negative_log_likelihood(), samples=samples, demonstrations=demonstrations, clip_low=clip_low, clip_high=clip_high,
        warmup=warmup, decay=decay, peak=peak, valley=valley,
    )  # fmt: skip


@method("On-Policy RL Meets Off-Policy Experts (Zhang et al., 2025)", "arXiv:2508.11408")
def chord_phi(samples: int = 8, demonstrations: int = 1, clip_low: float = 0.2, clip_high: float = 0.2, share: float = 0.1):
    """CHORD whose demonstrations count by p (1 - p) of each token: neither what is known nor what seems impossible.

    Defaults: The clip is the paper's, the constant share of imitation that of the authors' framework. The numbers of
      samples are ours.
    """
    return _chord(
        negative_log_likelihood(factors=(uncertainty(),)), samples=samples, demonstrations=demonstrations,
        clip_low=clip_low, clip_high=clip_high, warmup=0, decay=1, peak=share, valley=share,
    )  # fmt: skip
