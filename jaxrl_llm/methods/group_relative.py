"""Critic-free methods that compare the answers to one prompt: GRPO and its kin."""

from __future__ import annotations

from jaxrl_llm.estimators import (
    chain,
    constant,
    drop_uniform_groups,
    group_advantage,
    overlong_penalty,
    token_mean,
)
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.choices import AGGREGATIONS, BASELINES, choice, kl_loss, scale_of
from jaxrl_llm.objectives import cispo as cispo_bound
from jaxrl_llm.objectives import clip, objective, policy, sequence_ratio
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method(
    paper="DeepSeekMath (Shao et al., 2024)",
    url="https://arxiv.org/abs/2402.03300",
    conventions={
        "trl-1.16": {"degrees_of_freedom": 1, "epsilon": 1e-4, "kl_coefficient": 0.0, "aggregation": "token_mean"},
        "verl-0.10": {"degrees_of_freedom": 1, "kl_coefficient": 0.0, "aggregation": "token_mean", "clip_dual": 3.0},
        "nemo-rl": {"baseline": "leave_one_out", "degrees_of_freedom": 1, "placement": "where_positive"},
        "openrlhf": {"degrees_of_freedom": 1, "epsilon": 1e-9},
        "oat": {"degrees_of_freedom": 1, "epsilon": 1e-8},
        "pipeline-rl": {"baseline": "leave_one_out", "degrees_of_freedom": 1, "epsilon": 1e-4},
        "areal": {"baseline": "batch_mean", "scale": "batch_std"},
        "prime-rl": {"scale": "none"},
    },
)
def grpo(
    *,
    samples: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    kl_coefficient: float = 0.04,
    kl_kind: str | None = None,
    kl_unbiased: bool | None = None,
    kl_bound: float | None = None,
    baseline: str = "mean",
    scale: str = "std",
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    placement: str | None = None,
    aggregation: str = "sequence_mean",
):
    """Clipped surrogate with rewards standardised within each group of answers, and a KL penalty in the loss.

    Defaults: The KL coefficient 0.04 is the paper's, which takes 64 samples, not 8. It does not state the clip; 0.2
      is PPO's. `None` means: `kl_kind` k3, as in the paper; `degrees_of_freedom` 0 (the population's deviation);
      `epsilon` 1e-6, outside of the root; no dual clip; a KL that is neither weighted by the ratio nor bounded. Conventions
      change what those libraries are known to change; clip, samples and KL stay the paper's where theirs are not known.
    """
    deviation = scale_of(scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, placement=placement)
    return (
        grouped(samples=samples),
        chain(
            group_advantage(baseline=choice("baseline", baseline, BASELINES), scale=deviation),
            choice("aggregation", aggregation, AGGREGATIONS),
        ),
        objective(
            policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)),
            *kl_loss(kl_coefficient, kl_kind, kl_unbiased, kl_bound),
        ),
    )


@method(paper="Understanding R1-Zero-Like Training (Liu et al., 2025)", url="https://arxiv.org/abs/2503.20783")
def dr_grpo(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, max_length: int = 3000):
    """GRPO without division by the deviation and by the length, which bias it to hard questions and long answers.

    Defaults: 8 samples and 3000 tokens are those of the authors' published training script. The clip is ours. In a
      run of the program, `max_length` is `rl.max_new_tokens` unless it is set.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=None), constant(length=max_length)),
        objective(policy(trust=clip(low=clip_low, high=clip_high))),
    )


@method(
    paper="DAPO: An Open-Source LLM Reinforcement Learning System at Scale (Yu et al., 2025)",
    url="https://arxiv.org/abs/2503.14476",
    # TRL's `loss_type="dapo"` is the loss alone.
    conventions={"trl-1.16": {"max_rounds": None, "overlong_size": 0.0, "degrees_of_freedom": 1, "epsilon": 1e-4}},
)
def dapo(
    *,
    samples: int = 16,
    max_rounds: int | None = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    max_length: int = 20480,
    overlong_buffer: int | None = None,
    overlong_size: float = 1.0,
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
):
    """GRPO with a higher upper clip, token mean, dynamic sampling of informative groups and a soft overlong penalty.

    Defaults: The clip, 16 samples and the lengths are the paper's: 16384 tokens expected and a buffer of 4096
      behind them, so `max_length` is 20480. `overlong_buffer` is by default a fifth of `max_length`, which is the
      same share. `max_rounds` is ours: the paper samples until the batch is full; None samples each prompt once and
      keeps groups without signal. In a run of the program,
      `max_length` is `rl.max_new_tokens` unless it is set. `None` means 0 degrees of freedom and an epsilon of 1e-6.
    """
    reject_inert(overlong_size == 0 and overlong_buffer is not None, "overlong_buffer", overlong_buffer, "overlong_size is 0")
    buffer = max(max_length // 5, 1) if overlong_buffer is None else overlong_buffer
    penalty = (overlong_penalty(max_length=max_length, buffer=buffer, penalty=overlong_size),) if overlong_size else ()
    filters = () if max_rounds is None else (drop_uniform_groups(),)
    return (
        grouped(samples=samples) if max_rounds is None else dynamic_sampling(samples=samples, max_rounds=max_rounds),
        chain(
            *filters,
            *penalty,
            group_advantage(scale=scale_of("std", degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)),
            token_mean(),
        ),
        objective(policy(trust=clip(low=clip_low, high=clip_high))),
    )


@method(
    paper="Group Sequence Policy Optimization (Zheng et al., 2025)",
    url="https://arxiv.org/abs/2507.18071",
    conventions={
        "trl-1.16": {
            "clip_low": 0.2, "clip_high": 0.2, "degrees_of_freedom": 1, "epsilon": 1e-4, "aggregation": "token_mean",
        },
        "verl-0.10": {"degrees_of_freedom": 1},
    },
)  # fmt: skip
def gspo(
    *,
    samples: int = 8,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    aggregation: str = "sequence_mean",
):
    """GRPO with one length-normalised importance ratio for each sequence, clipped as a whole.

    Defaults: The clip is the paper's. `samples` is ours. `None` means 0 degrees of freedom and an epsilon of 1e-6. With
      TRL's own defaults beside its sequence level, long sequences weigh more: the convention "trl-1.16" is that.
    """
    return (
        grouped(samples=samples),
        chain(
            group_advantage(scale=scale_of("std", degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)),
            choice("aggregation", aggregation, AGGREGATIONS),
        ),
        objective(policy(ratio=sequence_ratio(), trust=clip(low=clip_low, high=clip_high))),
    )


@method(
    paper="MiniMax-M1 (Chen et al., 2025)",
    url="https://arxiv.org/abs/2506.13585",
    conventions={
        # TRL takes its `epsilon_high` for the bound itself: by default every weight, 1 on policy, is cut to 0.2.
        "trl-1.16": {"clip_high": -0.8, "degrees_of_freedom": 1, "epsilon": 1e-4},
        "verl-0.10": {"clip_low": 0.2, "clip_high": 0.2, "degrees_of_freedom": 1},
        "skyrl": {"clip_low": 1.0, "clip_high": 4.0, "degrees_of_freedom": 1},
        "open-instruct": {"clip_high": 0.2},
    },
)
def cispo(
    *,
    samples: int = 8,
    clip_low: float | None = None,
    clip_high: float = 4.0,
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
):
    """REINFORCE with group advantages and a clipped, detached importance weight: no token loses its gradient.

    Defaults: The paper sets no lower bound, tunes the upper one and does not publish it. The weight here is at most
      1 + `clip_high` = 5, as in ScaleRL (https://arxiv.org/abs/2510.13786), which found little difference between
      bounds of 4, 5 and 8. The paper adds DAPO's dynamic sampling and length penalty, which are left out here.
      `samples` is ours. `None` means no lower bound, 0 degrees of freedom and an epsilon of 1e-6.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=scale_of("std", degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)), token_mean()),
        objective(policy(trust=cispo_bound(low=clip_low, high=clip_high))),
    )
