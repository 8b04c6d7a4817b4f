"""Methods that differ from GRPO in what keeps the policy near: how a token of its ratio is bounded, or a drift."""

import jax.numpy as jnp

from jaxrl_llm import objectives
from jaxrl_llm.compose import composable, require
from jaxrl_llm.controllers import scheduled
from jaxrl_llm.estimators import Estimator, chain, cumulative_advantage, group_advantage, sequence_mean, token_mean, whiten
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import TRL, TRL_KL, VERL, VERL_KL, kl_parts, standardised
from jaxrl_llm.objectives import clip, importance_weight, kl, objective, policy, token_ratio, unclipped
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method(
    "Soft Adaptive Policy Optimization (Gao et al., 2025)",
    "arXiv:2511.20347",
    conventions={"trl-1.16": TRL | TRL_KL, "verl-0.10": VERL | VERL_KL},
)
def sapo(
    samples: int = 8, temperature_positive: float = 1.0, temperature_negative: float = 1.05, kl_coefficient: float = 0.0,
    kl_kind: str | None = None, kl_unbiased: bool | str | None = None, kl_bound: float | None = None,
    degrees_of_freedom: int | None = None, epsilon: float | None = None, alone: str | None = None,
):  # fmt: skip
    """GRPO with a smooth gate in place of the clip: gradients fade with the distance of the ratio from 1.

    Defaults: The temperatures are the paper's. `samples` is ours. `None` means what it does for `grpo`.
    """
    gate = objectives.sapo(positive=temperature_positive, negative=temperature_negative)
    _, terms = kl_parts(None, kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone), sequence_mean())
    return grouped(samples=samples), estimator, objective(policy(trust=gate), *terms)


def _preserving(samples, low, high, low_gradient, high_gradient, dual):
    trust = objectives.gradient_preserving_clip(
        low=low, high=high, low_gradient=low_gradient, high_gradient=high_gradient, dual=dual
    )
    return grouped(samples=samples), chain(group_advantage(), token_mean()), objective(policy(trust=trust))


@method("Klear-Reasoner (Su et al., 2025)", "arXiv:2508.07629")
def gppo(samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.28, clip_dual: float | None = 3.0):
    """GRPO whose clipped tokens keep the gradient that they would have at the bound.

    Defaults: The clip is DAPO's and the dual clip that of CE-GPPO's code. The paper adds a likelihood loss on right answers,
      which is left out here. `samples` is ours.
    """
    return _preserving(samples, clip_low, clip_high, 1.0, 1.0, clip_dual)


@method("CE-GPPO (Su et al., 2025)", "arXiv:2509.20712")
def ce_gppo(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.28, low_gradient: float = 0.75, high_gradient: float = 1.0,
    clip_dual: float | None = 3.0,
):  # fmt: skip
    """GPPO with two factors for the gradients of clipped tokens, by which the entropy is steered.

    Defaults: `low_gradient` (beta_1) 0.75 is the paper's for 7B models (0.5 for 1.5B), `high_gradient` (beta_2) 1 for both;
      the dual clip is that of the authors' code. The clip is DAPO's, `samples` is ours.
    """
    return _preserving(samples, clip_low, clip_high, low_gradient, high_gradient, clip_dual)


@method("DCPO: Dynamic Clipping Policy Optimization (Yang et al., 2025)", "arXiv:2509.02333")
def dcpo(samples: int = 16, prompts: int = 65536, clip_low: float = 0.16, clip_high: float = 0.2, clip_dual: float = 10.0):
    """GRPO with clip bounds that follow the token's probability, and advantages from all visits of a prompt so far.

    Defaults: All are the paper's but `prompts`, the number of prompts whose rewards are remembered.
    """
    loss = objective(policy(trust=objectives.probability_clip(low=clip_low, high=clip_high, dual=clip_dual)))
    return grouped(samples=samples), chain(cumulative_advantage(prompts=prompts), sequence_mean()), loss


@method("ASPO: Asymmetric Importance Sampling Policy Optimization (Wang et al., 2025)", "arXiv:2510.06062")
def aspo(samples: int = 16, clip_low: float = 0.2, clip_high: float = 0.2, weight_cap: float = 3.0):
    """GRPO that weighs tokens of positive advantage by the inverse of their ratio, so that the unlikely ones gain most.

    Defaults: All are those of the authors' scripts, but without their wider clip for tokens of high entropy and their KL term.
    """
    loss = objective(policy(trust=objectives.flipped(low=clip_low, high=clip_high, cap=weight_cap)))
    return grouped(samples=samples), chain(group_advantage(), token_mean()), loss


@method(
    "Rethinking the Trust Region in LLM Reinforcement Learning (Qi et al., 2026)",
    "arXiv:2602.04879",
    conventions={
        "verl-0.10": {"bound_low": 0.2, "bound_high": 0.2, "weight_cap": 3.0} | VERL,
        "prime-rl": {"bound_low": 0.2, "bound_high": 0.2, "scale": "none", "penalty": 2e-3},
    },
)
def dppo(
    samples: int = 8, divergence: str = "tv", bound_low: float = 0.15, bound_high: float = 0.15,
    weight_cap: float | None = None, penalty: float = 0.0, scale: str = "std", degrees_of_freedom: int | None = None,
    epsilon: float | None = None, alone: str | None = None,
):  # fmt: skip
    """GRPO that masks tokens by how far their probability has moved, not by its ratio: rare tokens may move further.

    Defaults: The bound 0.15 on the total variation is the paper's. `samples` is ours. `weight_cap=None` leaves the importance
      weight unbounded; verl bounds it by its dual clip, 3 in its configuration and 20 in the signature of the loss. `penalty`
      times half the squared log-ratio to the sampler is prime-rl's. Other `None` mean what they do for `grpo`.
    """
    mask = objectives.divergence_mask(kind=divergence, low=bound_low, high=bound_high)
    trust = unclipped() if weight_cap is None else objectives.cispo(high=weight_cap - 1.0)
    near = (kl(coefficient=penalty, kind="k2", against="behavior"),) if penalty else ()
    advantage = standardised("mean", scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone)
    return grouped(samples=samples), chain(advantage, token_mean()), objective(policy(trust=trust, factors=(mask,)), *near)


@method("On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning (Zhang et al., 2025)", "arXiv:2505.17508")
def rpg(
    samples: int = 16, max_rounds: int = 8, kl_coefficient: float = 1e-4, direction: str = "reverse", normalised: bool = False,
    style: str = "reinforce", clip_low: float = 0.2, clip_high: float = 0.28, clip_dual: float | None = 10.0,
):  # fmt: skip
    """Policy gradient of the reward with a KL penalty to the old policy, importance weights on both.

    Defaults: Those of the paper's experiments with RPG-REINFORCE on the unnormalised reverse KL; the dual clip is that of its
      scripts, `max_rounds` is ours.
    """
    trust = objectives.rpg(
        beta=kl_coefficient, direction=direction, normalised=normalised, style=style, low=clip_low, high=clip_high,
        dual=clip_dual,
    )  # fmt: skip
    strategy = dynamic_sampling(samples=samples, max_rounds=max_rounds)
    return strategy, chain(group_advantage(scale=None), token_mean()), objective(policy(trust=trust))


def _whitened() -> Estimator:
    """Differences from the mean of the group, standardised over the step: what PPO does to a critic's advantages."""
    return chain(group_advantage(scale=None), whiten(), token_mean())


@method("Discovered Policy Optimisation (Lu et al., 2022)", "arXiv:2210.05639")
def discovered_po(samples: int = 8, alpha: float = 2.0, beta: float = 0.6):
    """PPO with a drift in the place of the clip, which meta-learning found: asymmetric in the sign of the advantage.

    Defaults: `alpha` and `beta` are the paper's, and so is the standardisation of advantages over the batch. Group means in the
      place of a critic, and `samples`, are ours. The paper's LPO, whose drift is a network that evolution trained, is left out.
    """
    trust = objectives.discovered_drift(alpha=alpha, beta=beta)
    return grouped(samples=samples), _whitened(), objective(policy(trust=trust))


@composable
def inverse_step_size(step, *, steps_total: int):
    """1 / t, with t falling linearly from 1 at the first to 1 / `steps_total` at the last of so many steps, and beyond."""
    return 1.0 / jnp.maximum(1.0 - step / steps_total, 1.0 / steps_total)


@method("Mirror Descent Policy Optimization (Tomar et al., 2020)", "arXiv:2005.09814")
def mdpo(samples: int = 8, steps_total: int = 1000):
    """Unclipped ratios with a KL penalty to the policy that sampled, which grows as the step size of the descent is annealed.

    Defaults: The step size falls from 1 to 0 over the run, as in the authors' program; `steps_total` is to be the number of its
      steps. They take 10 updates a step: `rl.epochs` or `rl.minibatches`. Group means in the place of a critic and `samples`
      are ours.
    Unconfirmed: How the KL is estimated where it has no closed form. Here it is 1 - r + r log r of each token, of which both
      mean and gradient are those of the KL to the sampler. The off-policy variant, which needs a Q function, is left out.
    """
    require(steps_total >= 1, "steps_total", steps_total, "at least 1")
    proximity = kl(coefficient="inverse_step_size", kind="k3", against="behavior", ratio=token_ratio())
    schedule = scheduled(schedule=inverse_step_size(steps_total=steps_total))
    terms = objective(policy(trust=unclipped()), proximity)
    return grouped(samples=samples), _whitened(), terms, {"inverse_step_size": schedule}


@method(
    "GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping (Wang et al., 2025)",
    "arXiv:2510.22319",
)
def grpo_guard(samples: int = 8, by: str = "position", buckets: int = 8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose log-ratios have one mean and one deviation over the length of an answer, so that the clip binds everywhere.

    Defaults: All are ours.
    Unconfirmed: The paper is about steps of denoising, whose mean and deviation are known; for tokens, parts of the answer (or
      of the entropies, `by="entropy"`) and statistics of the batch are our reading. Its second factor, which makes the
      gradients of all steps alike, is left to the division by the deviation. The shares of clipped tokens of either sign of
      the advantage are among the metrics.
    """
    ratio = objectives.bucket_normalised(by=by, buckets=buckets)
    loss = objective(policy(ratio=ratio, trust=clip(low=clip_low, high=clip_high)))
    return grouped(samples=samples), chain(group_advantage(), token_mean()), loss


@method(
    "Delay-Adapted Policy Optimization and Improved Regret for Adversarial MDP (Lancewicki et al., 2023)", "arXiv:2305.07911"
)
def delay_adapted(samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose late samples count by min(p / q, 1), p of the policy when they arrive and q of the one that drew them.

    Defaults: All are ours. The name of the paper, DAPO, is that of another method.
    Unconfirmed: The ratio pi / max(q, p) is that of the paper's estimator; where its PPO clips is not known. Here the clip is
      round the policy p before the step's updates, so that it is TIS with the bound 1, for either sign of the advantage.
    """
    ratio, trust = token_ratio(against="proximal"), clip(low=clip_low, high=clip_high)
    adapted = policy(ratio=ratio, trust=trust, factors=(importance_weight(high=1.0),))
    return grouped(samples=samples), chain(group_advantage(), token_mean()), objective(adapted)
