"""The methods: each a few lines that read like its paper."""

from __future__ import annotations

from jaxrl_llm.compose import Composable
from jaxrl_llm.estimators import (
    adaptive_kl_in_reward,
    chain,
    constant,
    drop_uniform_groups,
    gae,
    group_advantage,
    kl_in_reward,
    leave_one_out_baseline,
    mean_baseline,
    overlong_penalty,
    pair_mean,
    reward_to_go,
    sequence_mean,
    sequence_mean_token_sum,
    std_scale,
    token_mean,
    whiten,
)
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.objectives import (
    bradley_terry,
    clip,
    entropy_bonus,
    kl,
    negative_log_likelihood,
    objective,
    policy,
    score_function,
    sequence_ratio,
    sequence_total_ratio,
    token_ratio,
    value_loss,
)
from jaxrl_llm.objectives import (
    cispo as cispo_bound,
)
from jaxrl_llm.objectives import (
    clip as ratio_clip,
)
from jaxrl_llm.rollouts import dynamic_sampling, grouped

# Over which rows the deviation of each kind of scale is taken.
SCALES = {"std": "group", "batch_std": "batch", "none": None}
BASELINES = {
    "mean": mean_baseline(),
    "leave_one_out": leave_one_out_baseline(),
    "batch_mean": mean_baseline(over="batch"),
}
AGGREGATIONS = {
    "sequence_mean": sequence_mean(),
    "token_mean": token_mean(),
    "sequence_mean_token_sum": sequence_mean_token_sum(),
}


def _choice(name: str, value: str, known: dict):
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {tuple(known)}")
    return known[value]


def _kl_loss(coefficient: float, kind: str | None, unbiased: bool | None = None, bound: float | None = None) -> tuple:
    """The KL term of a loss; nothing, and no reference model, where the coefficient is 0."""
    for name, value in {"kl_kind": kind, "kl_unbiased": unbiased, "kl_bound": bound}.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")
    if not coefficient:
        return ()
    return (kl(coefficient=coefficient, kind=kind or "k3", ratio=token_ratio() if unbiased else None, bound=bound),)


def _kl_reward(coefficient: float, kind: str | None, target: float | None = None) -> tuple:
    """The KL penalty of a reward, its coefficient fixed or following a target; nothing where the coefficient is 0."""
    for name, value in {"kl_kind": kind, "kl_target": target}.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")
    if target is not None:
        return (adaptive_kl_in_reward(initial=coefficient, target=target, kind=kind or "k1"),)
    return (kl_in_reward(coefficient=coefficient, kind=kind or "k1"),) if coefficient else ()


def _scale(kind: str, **options) -> Composable | None:
    """The scale of that name, with those options that are not None."""
    over = _choice("scale", kind, SCALES)
    chosen = {name: value for name, value in options.items() if value is not None}
    for name, value in chosen.items():
        reject_inert(kind == "none", name, value, "scale is 'none'")
    return None if kind == "none" else std_scale(over=over, **chosen)


@method(paper="Simple statistical gradient-following algorithms (Williams, 1992)", url="https://doi.org/10.1007/BF00992696")
def reinforce(*, samples: int = 1, kl_coefficient: float = 0.0, kl_kind: str | None = None):
    """Score-function gradient of the reward-to-go, without a baseline.

    Defaults: The paper is about networks in general: all defaults are ours. `kl_kind=None` means k1.
    """
    return (
        grouped(samples=samples),
        chain(*_kl_reward(kl_coefficient, kl_kind), reward_to_go(), sequence_mean_token_sum()),
        objective(policy(ratio=None, trust=score_function())),
    )


@method(
    paper="Back to Basics: Revisiting REINFORCE Style Optimization (Ahmadian et al., 2024)",
    url="https://arxiv.org/abs/2402.14740",
    conventions={"trl-1.16": {"samples": 2, "clip": 0.2}},
)
def rloo(*, samples: int = 4, kl_coefficient: float = 0.05, kl_kind: str | None = None, clip: float | None = None):
    """REINFORCE on whole sequences with the mean reward of the other samples as baseline.

    Defaults: The paper tries 2 and 4 samples. The KL coefficient is ours. `kl_kind=None` means k1. A number for `clip` takes,
      as TRL does, the clipped ratio of whole sequences in place of the plain gradient, which it equals on policy.
    """
    if clip is None:
        ratio, trust, weighting = None, score_function(), sequence_mean_token_sum()
    else:
        ratio, trust, weighting = sequence_total_ratio(), ratio_clip(low=clip, high=clip), sequence_mean()
    return (
        grouped(samples=samples),
        chain(
            *_kl_reward(kl_coefficient, kl_kind),
            group_advantage(baseline=leave_one_out_baseline(), scale=None),
            weighting,
        ),
        objective(policy(ratio=ratio, trust=trust)),
    )


@method(
    paper="Proximal Policy Optimization Algorithms (Schulman et al., 2017)",
    url="https://arxiv.org/abs/1707.06347",
    conventions={"verl-0.10": {"clip_dual": 3.0, "trace_decay": 1.0, "kl_coefficient": 0.0, "value_clip": 0.5}},
)
def ppo(
    *,
    samples: int = 1,
    discount: float = 1.0,
    trace_decay: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    value_coefficient: float = 0.5,
    value_clip: float | None = 0.2,
    value_huber: float | None = None,
    entropy_coefficient: float = 0.0,
    kl_coefficient: float = 0.05,
    kl_kind: str | None = None,
    kl_target: float | None = None,
):
    """Clipped surrogate with a learned critic, generalised advantage estimation and a KL penalty in the reward.

    Defaults: The clip 0.2 and `trace_decay` 0.95 are the paper's, for control tasks. There the discount is 0.99;
      for texts, whose reward comes at the end, it is 1. The KL penalty in the reward is that of Ziegler et al.
      (https://arxiv.org/abs/1909.08593); its coefficient, the value's coefficient and the value's clip are ours.
      `kl_kind=None` means k1, and `kl_target=None` a fixed coefficient; a number (nats an answer) is a KL that it follows.
    """
    if value_coefficient <= 0:
        raise ValueError(f"value_coefficient is {value_coefficient}; a critic that never learns gives no baseline: take 'grpo'")
    bonus = (entropy_bonus(coefficient=entropy_coefficient),) if entropy_coefficient else ()
    return (
        grouped(samples=samples),
        chain(
            *_kl_reward(kl_coefficient, kl_kind, kl_target),
            gae(discount=discount, trace_decay=trace_decay),
            whiten(),
            token_mean(),
        ),
        objective(
            policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)),
            value_loss(coefficient=value_coefficient, clip=value_clip, huber=value_huber),
            *bonus,
        ),
    )


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
    deviation = _scale(scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, placement=placement)
    return (
        grouped(samples=samples),
        chain(
            group_advantage(baseline=_choice("baseline", baseline, BASELINES), scale=deviation),
            _choice("aggregation", aggregation, AGGREGATIONS),
        ),
        objective(
            policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)),
            *_kl_loss(kl_coefficient, kl_kind, kl_unbiased, kl_bound),
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
            group_advantage(scale=_scale("std", degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)),
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
            group_advantage(scale=_scale("std", degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)),
            _choice("aggregation", aggregation, AGGREGATIONS),
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
        chain(group_advantage(scale=_scale("std", degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)), token_mean()),
        objective(policy(trust=cispo_bound(low=clip_low, high=clip_high))),
    )


@method(paper="REINFORCE++ (Hu et al., 2025)", url="https://arxiv.org/abs/2501.03262")
def reinforce_plus_plus(
    *,
    samples: int = 1,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
    kl_kind: str | None = None,
):
    """Clipped surrogate on rewards-to-go with a token KL penalty, standardised over the whole batch; no critic.

    Defaults: One sample and a KL penalty of kind k1 in the reward (`kl_kind=None`) are the paper's. Its text
      (version 9) states neither clip nor coefficient: both are ours.
    """
    return (
        grouped(samples=samples),
        chain(*_kl_reward(kl_coefficient, kl_kind), reward_to_go(), whiten(), token_mean()),
        objective(policy(trust=clip(low=clip_low, high=clip_high))),
    )


@method(paper="Training language models to follow instructions (Ouyang et al., 2022)", url="https://arxiv.org/abs/2203.02155")
def sft():
    """Negative log-likelihood of given completions, each token alike."""
    return None, chain(token_mean()), objective(negative_log_likelihood())


@method(paper="Learning to summarize from human feedback (Stiennon et al., 2020)", url="https://arxiv.org/abs/2009.01325")
def reward_model(*, center: float = 0.0):
    """Bradley-Terry model of preferences: a value head that scores the preferred answer above the other one.

    Defaults: The paper has no centring: `center` is that of https://arxiv.org/abs/2312.09244; TRL recommends 0.01
      where it is wanted.
    """
    return None, chain(pair_mean()), objective(bradley_terry(center=center))
