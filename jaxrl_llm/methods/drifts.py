"""Methods in which something else than a fixed clip keeps the policy near the one that sampled."""

import jax.numpy as jnp

from jaxrl_llm import objectives
from jaxrl_llm.compose import composable, require
from jaxrl_llm.controllers import scheduled
from jaxrl_llm.estimators import chain, group_advantage, token_mean, whiten
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import clip, importance_weight, kl, objective, policy, token_ratio, unclipped
from jaxrl_llm.rollouts import grouped


def _whitened() -> tuple:
    """Differences from the mean of the group, standardised over the step: what PPO does to a critic's advantages."""
    return chain(group_advantage(scale=None), whiten(), token_mean())


@method(paper="Discovered Policy Optimisation (Lu et al., 2022)", url="https://arxiv.org/abs/2210.05639")
def discovered_po(*, samples: int = 8, alpha: float = 2.0, beta: float = 0.6):
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


@method(
    paper="Mirror Descent Policy Optimization (Tomar et al., 2020)", url="https://arxiv.org/abs/2005.09814", certainty="sketch"
)
def mdpo(*, samples: int = 8, steps_total: int = 1000):
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
    paper="GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping (Wang et al., 2025)",
    url="https://arxiv.org/abs/2510.22319",
    certainty="sketch",
)
def grpo_guard(*, samples: int = 8, by: str = "position", buckets: int = 8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose log-ratios have one mean and one deviation over the length of an answer, so that the clip binds everywhere.

    Defaults: All are ours.

    Unconfirmed: The paper is about steps of denoising, whose mean and deviation are known; for tokens, parts of the answer (or
      of the entropies, `by="entropy"`) and statistics of the batch are our reading. Its second factor, which makes the
      gradients of all steps alike, is left to the division by the deviation. The shares of clipped tokens of either sign of
      the advantage are among the metrics.
    """
    ratio = objectives.bucket_normalised(by=by, buckets=buckets)
    return (
        grouped(samples=samples),
        chain(group_advantage(), token_mean()),
        objective(policy(ratio=ratio, trust=clip(low=clip_low, high=clip_high))),
    )


@method(
    paper="Delay-Adapted Policy Optimization and Improved Regret for Adversarial MDP (Lancewicki et al., 2023)",
    url="https://arxiv.org/abs/2305.07911",
    certainty="sketch",
)
def delay_adapted(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose late samples count by min(p / q, 1), p of the policy when they arrive and q of the one that drew them.

    Defaults: All are ours. The name of the paper, DAPO, is that of another method.

    Unconfirmed: The ratio pi / max(q, p) is that of the paper's estimator; where its PPO clips is not known. Here the clip is
      round the policy p before the step's updates, so that it is TIS with the bound 1, for either sign of the advantage.
    """
    adapted = policy(
        ratio=token_ratio(against="proximal"), trust=clip(low=clip_low, high=clip_high), factors=(importance_weight(high=1.0),)
    )
    return grouped(samples=samples), chain(group_advantage(), token_mean()), objective(adapted)
