"""Methods that differ from GRPO in how a token of its ratio is bounded."""

from jaxrl_llm import objectives
from jaxrl_llm.estimators import chain, cumulative_advantage, group_advantage, sequence_mean, token_mean
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import kl_parts, standardised
from jaxrl_llm.methods.libraries import TRL, TRL_KL, VERL, VERL_KL
from jaxrl_llm.objectives import kl, objective, policy, unclipped
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method(
    paper="Soft Adaptive Policy Optimization (Gao et al., 2025)",
    url="https://arxiv.org/abs/2511.20347",
    conventions={"trl-1.16": TRL | TRL_KL, "verl-0.10": VERL | VERL_KL},
)
def sapo(
    *,
    samples: int = 8,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
    kl_coefficient: float = 0.0,
    kl_kind: str | None = None,
    kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None,
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    alone: str | None = None,
):
    """GRPO with a smooth gate in place of the clip: gradients fade with the distance of the ratio from 1.

    Defaults: The temperatures are the paper's. `samples` is ours. `None` means what it does for `grpo`.
    """
    gate = objectives.sapo(positive=temperature_positive, negative=temperature_negative)
    _, terms = kl_parts(None, kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    return (
        grouped(samples=samples),
        chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone), sequence_mean()),
        objective(policy(trust=gate), *terms),
    )


def _preserving(samples, low, high, low_gradient, high_gradient, dual):
    trust = objectives.gradient_preserving_clip(
        low=low, high=high, low_gradient=low_gradient, high_gradient=high_gradient, dual=dual
    )
    return grouped(samples=samples), chain(group_advantage(), token_mean()), objective(policy(trust=trust))


@method(paper="Klear-Reasoner (Su et al., 2025)", url="https://arxiv.org/abs/2508.07629")
def gppo(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.28, clip_dual: float | None = 3.0):
    """GRPO whose clipped tokens keep the gradient that they would have at the bound.

    Defaults: The clip is DAPO's and the dual clip that of CE-GPPO's code. The paper adds a likelihood loss on right answers,
      which is left out here. `samples` is ours.
    """
    return _preserving(samples, clip_low, clip_high, 1.0, 1.0, clip_dual)


@method(paper="CE-GPPO (Su et al., 2025)", url="https://arxiv.org/abs/2509.20712")
def ce_gppo(
    *,
    samples: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    low_gradient: float = 0.75,
    high_gradient: float = 1.0,
    clip_dual: float | None = 3.0,
):
    """GPPO with two factors for the gradients of clipped tokens, by which the entropy is steered.

    Defaults: `low_gradient` (beta_1) 0.75 is the paper's for 7B models (0.5 for 1.5B), `high_gradient` (beta_2) 1 for both;
      the dual clip is that of the authors' code. The clip is DAPO's, `samples` is ours.
    """
    return _preserving(samples, clip_low, clip_high, low_gradient, high_gradient, clip_dual)


@method(paper="DCPO: Dynamic Clipping Policy Optimization (Yang et al., 2025)", url="https://arxiv.org/abs/2509.02333")
def dcpo(*, samples: int = 16, prompts: int = 65536, clip_low: float = 0.16, clip_high: float = 0.2, clip_dual: float = 10.0):
    """GRPO with clip bounds that follow the token's probability, and advantages from all visits of a prompt so far.

    Defaults: All are the paper's but `prompts`, the number of prompts whose rewards are remembered.
    """
    return (
        grouped(samples=samples),
        chain(cumulative_advantage(prompts=prompts), sequence_mean()),
        objective(policy(trust=objectives.probability_clip(low=clip_low, high=clip_high, dual=clip_dual))),
    )


@method(
    paper="ASPO: Asymmetric Importance Sampling Policy Optimization (Wang et al., 2025)", url="https://arxiv.org/abs/2510.06062"
)
def aspo(*, samples: int = 16, clip_low: float = 0.2, clip_high: float = 0.2, weight_cap: float = 3.0):
    """GRPO that weighs tokens of positive advantage by the inverse of their ratio, so that the unlikely ones gain most.

    Defaults: All are those of the authors' scripts, but without their wider clip for tokens of high entropy and their KL term.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(), token_mean()),
        objective(policy(trust=objectives.flipped(low=clip_low, high=clip_high, cap=weight_cap))),
    )


@method(
    paper="Rethinking the Trust Region in LLM Reinforcement Learning (Qi et al., 2026)",
    url="https://arxiv.org/abs/2602.04879",
    conventions={
        "verl-0.10": {"bound_low": 0.2, "bound_high": 0.2, "weight_cap": 3.0} | VERL,
        "prime-rl": {"bound_low": 0.2, "bound_high": 0.2, "scale": "none", "penalty": 2e-3},
    },
)
def dppo(
    *,
    samples: int = 8,
    divergence: str = "tv",
    bound_low: float = 0.15,
    bound_high: float = 0.15,
    weight_cap: float | None = None,
    penalty: float = 0.0,
    scale: str = "std",
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    alone: str | None = None,
):
    """GRPO that masks tokens by how far their probability has moved, not by its ratio: rare tokens may move further.

    Defaults: The bound 0.15 on the total variation is the paper's. `samples` is ours. `weight_cap=None` leaves the importance
      weight unbounded; verl bounds it by its dual clip, 3 in its configuration and 20 in the signature of the loss. `penalty`
      times half the squared log-ratio to the sampler is prime-rl's. Other `None` mean what they do for `grpo`.
    """
    mask = objectives.divergence_mask(kind=divergence, low=bound_low, high=bound_high)
    trust = unclipped() if weight_cap is None else objectives.cispo(high=weight_cap - 1.0)
    near = (kl(coefficient=penalty, kind="k2", against="behavior"),) if penalty else ()
    return (
        grouped(samples=samples),
        chain(standardised("mean", scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone), token_mean()),
        objective(policy(trust=trust, factors=(mask,)), *near),
    )


@method(
    paper="On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning (Zhang et al., 2025)",
    url="https://arxiv.org/abs/2505.17508",
)
def rpg(
    *,
    samples: int = 16,
    max_rounds: int = 8,
    kl_coefficient: float = 1e-4,
    direction: str = "reverse",
    normalised: bool = False,
    style: str = "reinforce",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    clip_dual: float | None = 10.0,
):
    """Policy gradient of the reward with a KL penalty to the old policy, importance weights on both.

    Defaults: Those of the paper's experiments with RPG-REINFORCE on the unnormalised reverse KL; the dual clip is that of its
      scripts, `max_rounds` is ours.
    """
    trust = objectives.rpg(
        beta=kl_coefficient,
        direction=direction,
        normalised=normalised,
        style=style,
        low=clip_low,
        high=clip_high,
        dual=clip_dual,
    )
    return (
        dynamic_sampling(samples=samples, max_rounds=max_rounds),
        chain(group_advantage(scale=None), token_mean()),
        objective(policy(trust=trust)),
    )
