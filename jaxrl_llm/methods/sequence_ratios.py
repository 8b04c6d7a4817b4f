"""Methods whose importance ratio is that of a sequence, of its tokens together, or of a prefix."""

from jaxrl_llm import estimators, objectives
from jaxrl_llm.estimators import chain, group_advantage, sequence_mean, sequence_mean_token_sum, token_mean
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.choices import TRL, TRL_KL, TUNIX, TUNIX_KL, VERL, kl_parts, kl_reward, standardised
from jaxrl_llm.objectives import clip, objective, policy, unclipped
from jaxrl_llm.rollouts import grouped, grouped_with_anchors


@method(
    "Group Sequence Policy Optimization (Zheng et al., 2025)",
    "arXiv:2507.18071",
    conventions={"tunix-0.1": {"clip_low": 0.2, "clip_high": 0.2, "ratio_cap": 10.0} | TUNIX | TUNIX_KL},
)
def gspo_token(
    samples: int = 8, clip_low: float = 3e-4, clip_high: float = 4e-4, ratio_cap: float | None = None,
    kl_coefficient: float = 0.0, kl_kind: str | None = None, degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
):  # fmt: skip
    """GSPO whose tokens keep advantages and gradients of their own under the ratio of their sequence.

    Defaults: The clip is the paper's. `samples` is ours. `None` means no cap of the log-ratio (nats), a KL of kind k3, 0
      degrees of freedom and an epsilon of 1e-6.
    """
    _, terms = kl_parts(None, kl_coefficient, kl_kind)
    ratio = objectives.sequence_token_ratio(highest=ratio_cap)
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon), sequence_mean())
    return grouped(samples=samples), estimator, objective(policy(ratio=ratio, trust=clip(low=clip_low, high=clip_high)), *terms)


@method(
    "Length-Unbiased Sequence Policy Optimization (Liu et al., 2026)",
    "arXiv:2602.05261",
    conventions={"trl-1.16": {"clip_low": 0.2, "clip_high": 0.2} | TRL},
)
def luspo(
    samples: int = 8, clip_low: float = 2e-3, clip_high: float = 2.5e-3, degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
):  # fmt: skip
    """GSPO with the loss of each sequence multiplied by its length, so that long answers are not under-weighted.

    Defaults: The clip is the paper's. `samples` is ours. `None` means 0 degrees of freedom and an epsilon of 1e-6.
    """
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon), sequence_mean_token_sum())
    loss = objective(policy(ratio=objectives.sequence_ratio(), trust=clip(low=clip_low, high=clip_high)))
    return grouped(samples=samples), estimator, loss


@method(
    "Geometric-Mean Policy Optimization (Zhao et al., 2025)",
    "arXiv:2507.20673",
    conventions={"trl-1.16": TRL, "verl-0.10": {"clip_low": 0.2, "clip_high": 0.2} | VERL},
)
def gmpo(
    samples: int = 8, clip_low: float = 0.4, clip_high: float = 0.4, kl_coefficient: float = 0.0, kl_kind: str | None = None,
    degrees_of_freedom: int | None = None, epsilon: float | None = None, alone: str | None = None,
):  # fmt: skip
    """GRPO on the geometric mean of the ratios of a sequence, each clipped in log space.

    Defaults: The clip, in nats, is the paper's. `samples` is ours. `None` means a KL of kind k3, which in TRL is not weighted
      here, and what it does for `grpo`. verl's name is "geo_mean".
    """
    _, terms = kl_parts(None, kl_coefficient, kl_kind)
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone), sequence_mean())
    loss = objective(policy(ratio=objectives.geometric_ratio(low=clip_low, high=clip_high), trust=unclipped()), *terms)
    return grouped(samples=samples), estimator, loss


@method("A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization (2026)", "arXiv:2601.22718")
def minpro(samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.28):
    """CISPO whose weight also holds the smallest ratio of the earlier tokens, for the product of all of them.

    Defaults: All are ours; the definition of the ratio is that of public code.
    """
    loss = objective(policy(ratio=objectives.prefix_ratio(), trust=objectives.cispo(low=clip_low, high=clip_high)))
    return grouped(samples=samples), chain(group_advantage(), token_mean()), loss


@method(
    "VESPO: Variational Sequence-Level Soft Policy Optimization (Shen et al., 2026)",
    "arXiv:2602.10693",
    conventions={"trl-1.16": TRL | TRL_KL},
)
def vespo(
    samples: int = 8, positive_shape: float = 2.0, positive_rate: float = 3.0, negative_shape: float = 3.0,
    negative_rate: float = 2.0, weight_high: float | None = None, weight_outside: str | None = None,
    kl_coefficient: float = 0.0, kl_kind: str | None = None, kl_unbiased: bool | str | None = None,
    degrees_of_freedom: int | None = None, epsilon: float | None = None,
):  # fmt: skip
    """REINFORCE with group advantages and a weight of whole sequences that falls off on both sides of ratio 1.

    Defaults: Shapes k and rates lambda are those of TRL 1.16, which follows the paper. `samples` is ours. With a bound
      `weight_high`, such as TRL's 3, the weight of the sequence also holds the weights of its tokens over the sampler's engine,
      which beyond it are cut ("truncate", the default) or 0 ("mask"). Other `None` mean what they do for `grpo`.
    """
    reject_inert(weight_high is None and weight_outside is not None, "weight_outside", weight_outside, "weight_high is None")
    ratio = objectives.sequence_total_ratio()
    if weight_high is not None:
        engine = objectives.importance_weight(high=weight_high, outside=weight_outside or "truncate")
        ratio = objectives.corrected_total_ratio(weight=engine)
    _, terms = kl_parts(None, kl_coefficient, kl_kind, kl_unbiased)
    weight = objectives.vespo(positive=(positive_shape, positive_rate), negative=(negative_shape, negative_rate))
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon), token_mean())
    return grouped(samples=samples), estimator, objective(policy(ratio=ratio, trust=weight), *terms)


@method("Pairwise Proximal Policy Optimization (Wu et al., 2023)", "arXiv:2310.00212")
def p3o(clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.05, kl_kind: str | None = None):
    """Clipped ratios of whole answers with half the difference of two rewards as advantage: a pairwise policy gradient.

    Defaults: Two samples are the method. Clip and coefficient are ours. `kl_kind=None` means k1.
    Unconfirmed: The exact surrogate. This is version 1, each answer clipped by itself; version 2 clips the pair as a whole.
    """
    estimator = chain(*kl_reward(kl_coefficient, kl_kind), group_advantage(scale=None), sequence_mean())
    loss = objective(policy(ratio=objectives.sequence_total_ratio(), trust=clip(low=clip_low, high=clip_high)))
    return grouped(samples=2), estimator, loss


@method("Improving Language Models with Advantage-based Offline Policy Gradients (Baheti et al., 2023)", "arXiv:2305.14718")
def a_lol(samples: int = 4, anchors: int = 4, clip_low: float = 0.9, clip_high: float = 0.9):
    """Likelihood of answers better than the reference's mean, times advantage and clipped ratio of the whole answer.

    Defaults: The clip is the paper's. `samples` and `anchors` are ours. The paper learns from a fixed data set, drawn in
      proportion to the advantage, and has a value head on the reference for its mean reward, which is sampled here
      ("anchor_reward").
    """
    advantage = group_advantage(baseline=estimators.given_baseline(annotation="anchor_reward"), scale=None)
    ratio, trust = objectives.sequence_total_ratio(against="reference"), objectives.cispo(low=clip_low, high=clip_high)
    loss = objective(policy(ratio=ratio, trust=trust, factors=(objectives.positive_advantage(),)))
    return grouped_with_anchors(samples=samples, anchors=anchors), chain(advantage, sequence_mean_token_sum()), loss
