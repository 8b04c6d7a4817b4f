"""Methods that differ in credit: which tokens, turns and states of an answer its reward goes to."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    blend,
    chain,
    gae,
    group_advantage,
    length_adaptive_decay,
    optimal_token_baseline,
    prefix_tree_advantage,
    reward_to_go,
    sequence_mean,
    state_advantage,
    token_mean,
    turn_returns,
)
from jaxrl_llm.methods.advantages import BESSEL, clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import clip, objective, policy, value_loss
from jaxrl_llm.rollouts import grouped


@method(
    paper="VAPO: Efficient and Reliable RL for Advanced Reasoning Tasks (Yue et al., 2025)",
    url="https://arxiv.org/abs/2504.05118",
    certainty="sketch",
)
def vapo(
    *,
    samples: int = 16,
    decay_scale: float = 0.05,
    value_trace_decay: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    value_coefficient: float = 0.5,
    value_clip: float | None = 0.2,
):
    """PPO for long answers: a trace decay that grows with the length, another for the critic, clip-higher, a mean over tokens.

    Defaults: Samples, decays and the clip are the paper's; the coefficient and the clip of the value are ours.

    Unconfirmed: that this is enough of it. The likelihood of right answers in the paper's loss (weight 0.1) and the critic's
      training before that of the policy are left out.
    """
    return (
        grouped(samples=samples),
        chain(gae(trace_decay=length_adaptive_decay(scale=decay_scale), value_trace_decay=value_trace_decay), token_mean()),
        objective(policy(trust=clip(low=clip_low, high=clip_high)), value_loss(coefficient=value_coefficient, clip=value_clip)),
    )


@method(
    paper="Exploiting Tree Structure for Credit Assignment in RL Training of LLMs (Tran et al., 2025)",
    url="https://arxiv.org/abs/2509.18314",
)
def tempo(*, samples: int = 7, clip_low: float = 0.2, clip_high: float = 0.28, clip_dual: float = 3.0):
    """GRPO and, where answers of the group branch, the difference that a token makes to the mean reward of those that go on.

    Defaults: All are those of the authors' scripts.
    """
    return (
        grouped(samples=samples),
        chain(prefix_tree_advantage(), token_mean()),
        clipped(clip_low, clip_high, dual=clip_dual),
    )


@method(
    paper="Group-in-Group Policy Optimization for LLM Agent Training (Feng et al., 2025)",
    url="https://arxiv.org/abs/2505.10978",
)
def gigpo(
    *,
    samples: int = 8,
    discount: float = 0.95,
    step_weight: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
):
    """GRPO on whole episodes and, added to it, on the turns of the group that began in the same state.

    Defaults: All are those of the authors' ALFWorld script. Statistics of episodes count each once; in that program each of
      its turns counts. `state` is a hash of what a turn has seen.
    """
    terms = (1.0, group_advantage(scale=BESSEL)), (step_weight, state_advantage(discount=discount))
    return (
        grouped(samples=samples),
        chain(blend(*terms), token_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )


@method(paper="Information Gain-based Policy Optimization (Wang et al., 2025)", url="https://arxiv.org/abs/2510.14967")
def igpo(
    *, samples: int = 16, discount: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 1e-3
):
    """Each turn is rewarded for what it adds to the likelihood of the right answer, and learns from the sum of what follows.

    Defaults: Samples, discount and KL coefficient are the paper's; the clip is ours. The gains of turns stand in
      `token_rewards`, and whoever runs the turns puts them there.
    """
    return (
        grouped(samples=samples),
        chain(turn_returns(discount=discount), sequence_mean()),
        clipped(clip_low, clip_high, kl_coefficient=kl_coefficient),
    )


@method(
    paper="The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL (Li et al., 2026)",
    url="https://raw.githubusercontent.com/mlresearch/v306/main/assets/li26hy/li26hy.pdf",
    conventions={"verl-0.10": {"tail": "none", "by": "place", "clip_dual": 3.0}},
)
def otb(
    *,
    samples: int = 4,
    tail: str = "own",
    by: str = "action",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
):
    """Rewards-to-go with a baseline for each place, of least variance by the gradients of the logits up to it.

    Defaults: 4 samples are the paper's smallest group, the clip is ours. `tail="none"` is the option of verl that leaves the
      end of the longest answer without a baseline, and `by="place"` compares places rather than actions, as verl does where
      its estimator is not that for tools.
    """
    return (
        grouped(samples=samples),
        chain(reward_to_go(), optimal_token_baseline(tail=tail, by=by), token_mean()),
        clipped(clip_low, clip_high, dual=clip_dual),
    )
