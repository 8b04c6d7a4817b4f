"""Critic-free methods that compare the answers to one prompt: GRPO and its kin."""

from __future__ import annotations

from jaxrl_llm.estimators import chain, constant, drop_uniform_groups, overlong_penalty, token_mean
from jaxrl_llm.methods.base import When, method, reject_inert
from jaxrl_llm.methods.choices import AGGREGATIONS, choice, kl_loss, kl_parts, standardised
from jaxrl_llm.methods.libraries import (
    BY_TOKEN,
    NEMO,
    NEMO_KL,
    OPENRLHF,
    OPENRLHF_KL,
    TRL,
    TRL_KL,
    TUNIX,
    TUNIX_KL,
    VERL,
    VERL_CLIP,
    VERL_KL,
)
from jaxrl_llm.objectives import cispo as cispo_bound
from jaxrl_llm.objectives import clip, objective, policy, sequence_ratio
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method(
    paper="DeepSeekMath (Shao et al., 2024)",
    url="https://arxiv.org/abs/2402.03300",
    conventions={
        "trl-1.16": TRL | TRL_KL | BY_TOKEN,
        "verl-0.10": VERL | VERL_CLIP | VERL_KL | BY_TOKEN,
        "nemo-rl": NEMO | NEMO_KL | BY_TOKEN,
        "openrlhf": OPENRLHF | OPENRLHF_KL | BY_TOKEN,
        "tunix-0.1": TUNIX | TUNIX_KL,
        "oat": {"degrees_of_freedom": 1, "epsilon": 1e-8, "kl_coefficient": 0.0},
        "pipeline-rl": {
            "baseline": "leave_one_out", "degrees_of_freedom": 1, "epsilon": 1e-4, "kl_coefficient": 0.1,
            "kl_ratio_bound": When("kl_coefficient", 10.0), "aggregation": "sequence_mean_token_sum",
        },
        "areal": {"baseline": "batch_mean", "scale": "batch_std", "kl_coefficient": 0.0} | BY_TOKEN,
    },
)  # fmt: skip
def grpo(
    *,
    samples: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    kl_coefficient: float = 0.04,
    kl_kind: str | None = None,
    kl_place: str | None = None,
    kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None,
    kl_ratio_bound: float | None = None,
    baseline: str = "mean",
    scale: str = "std",
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    placement: str | None = None,
    alone: str | None = None,
    aggregation: str = "sequence_mean",
):
    """Clipped surrogate with rewards standardised within each group of answers, and a KL penalty in the loss.

    Defaults: The KL coefficient 0.04 is the paper's, which takes 64 samples, not 8. It does not state the clip; 0.2
      is PPO's. `None` means: a KL in the loss, of kind k3, as in the paper (in the "advantage", behind the baseline, k1);
      `degrees_of_freedom` 0 (the population's deviation); `epsilon` 1e-6, outside of the root; a row alone learns nothing;
      no dual clip; a KL that is neither bounded nor weighted: `kl_unbiased` `True` multiplies it by the importance ratio,
      "own" by the ratio of the policy to itself, both differentiated; its log-ratios are bounded at 20 nats. The loss that
      prime-rl has beside its group means is that of `dppo`.
    """
    penalty, terms = kl_parts(kl_place, kl_coefficient, kl_kind, kl_unbiased, kl_bound, kl_ratio_bound)
    advantage = standardised(
        baseline, scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, placement=placement, alone=alone
    )
    return (
        grouped(samples=samples),
        chain(advantage, *penalty, choice("aggregation", aggregation, AGGREGATIONS)),
        objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms),
    )


@method(
    paper="Understanding R1-Zero-Like Training (Liu et al., 2025)",
    url="https://arxiv.org/abs/2503.20783",
    conventions={
        "trl-1.16": {"scale": "std"} | TRL | TRL_KL,
        "verl-0.10": {"alone": "none"} | VERL_CLIP | VERL_KL,
        "openrlhf": OPENRLHF_KL | BY_TOKEN,
        "tunix-0.1": TUNIX_KL,
    },
)
def dr_grpo(
    *,
    samples: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    kl_coefficient: float = 0.0,
    kl_kind: str | None = None,
    kl_place: str | None = None,
    kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None,
    scale: str = "none",
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    alone: str | None = None,
    aggregation: str = "constant",
    max_length: int = 3000,
):
    """GRPO without division by the deviation and by the length, which bias it to hard questions and long answers.

    Defaults: 8 samples, 3000 tokens and no KL are those of the authors' published training script. The clip is ours. In a
      run of the program, `max_length` is `rl.max_new_tokens` unless it is set. `None` means what it does for `grpo`. TRL's
      `loss_type="dr_grpo"`, also in its recipe for the paper, still divides by the deviation; OpenRLHF's "dr_grpo" is the
      advantage alone, under a mean over all tokens.
    """
    penalty, terms = kl_parts(kl_place, kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    advantage = standardised("mean", scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone)
    length = constant(length=max_length) if aggregation == "constant" else choice("aggregation", aggregation, AGGREGATIONS)
    return (
        grouped(samples=samples),
        chain(advantage, *penalty, length),
        objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms),
    )


@method(
    paper="DAPO: An Open-Source LLM Reinforcement Learning System at Scale (Yu et al., 2025)",
    url="https://arxiv.org/abs/2503.14476",
    conventions={
        # TRL's `loss_type="dapo"` is the loss alone.
        "trl-1.16": {"max_rounds": None, "overlong_size": 0.0} | TRL | TRL_KL,
        "verl-0.10": {"max_rounds": 10, "clip_dual": 10.0, "degrees_of_freedom": 1} | VERL_KL,
        "tunix-0.1": {"max_rounds": None} | TUNIX,
    },
)
def dapo(
    *,
    samples: int = 16,
    max_rounds: int | None = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    clip_dual: float | None = None,
    max_length: int = 20480,
    overlong_buffer: int | None = None,
    overlong_size: float = 1.0,
    kl_coefficient: float = 0.0,
    kl_kind: str | None = None,
    kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None,
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
):
    """GRPO with a higher upper clip, token mean, dynamic sampling of informative groups and a soft overlong penalty.

    Defaults: The clip, 16 samples and the lengths are the paper's: 16384 tokens expected and a buffer of 4096
      behind them, so `max_length` is 20480. `overlong_buffer` is by default a fifth of `max_length`, which is the
      same share. `max_rounds` is ours: the paper samples until the batch is full; None samples each prompt once and
      keeps groups without signal. In a run of the program, `max_length` is `rl.max_new_tokens` unless it is set. `None` means
      no dual clip, 0 degrees of freedom, an epsilon of 1e-6 and of a KL, which the paper leaves out, what it does for `grpo`.
      The convention of verl is its recipe of that name. Tunix counts the characters of an answer in its penalty.
    """
    reject_inert(overlong_size == 0 and overlong_buffer is not None, "overlong_buffer", overlong_buffer, "overlong_size is 0")
    buffer = max(max_length // 5, 1) if overlong_buffer is None else overlong_buffer
    penalty = (overlong_penalty(max_length=max_length, buffer=buffer, penalty=overlong_size),) if overlong_size else ()
    filters = () if max_rounds is None else (drop_uniform_groups(),)
    return (
        grouped(samples=samples) if max_rounds is None else dynamic_sampling(samples=samples, max_rounds=max_rounds),
        chain(*filters, *penalty, standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon), token_mean()),
        objective(
            policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)),
            *kl_loss(kl_coefficient, kl_kind, kl_unbiased, kl_bound),
        ),
    )


@method(
    paper="Group Sequence Policy Optimization (Zheng et al., 2025)",
    url="https://arxiv.org/abs/2507.18071",
    conventions={
        "trl-1.16": {"clip_low": 0.2, "clip_high": 0.2} | TRL | BY_TOKEN,
        "verl-0.10": {"clip_low": 0.2, "clip_high": 0.2, "ratio_cap": 10.0} | VERL,
        "nemo-rl": {"clip_low": 0.2, "clip_high": 0.2} | NEMO,
        "openrlhf": {"clip_low": 0.2, "clip_high": 0.2} | OPENRLHF | OPENRLHF_KL,
    },
)
def gspo(
    *,
    samples: int = 8,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    ratio_cap: float | None = None,
    kl_coefficient: float = 0.0,
    kl_kind: str | None = None,
    kl_place: str | None = None,
    kl_bound: float | None = None,
    baseline: str = "mean",
    scale: str = "std",
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    placement: str | None = None,
    alone: str | None = None,
    aggregation: str = "sequence_mean",
):
    """GRPO with one length-normalised importance ratio for each sequence, clipped as a whole.

    Defaults: The clip is the paper's. `samples` is ours. `None` means what it does for `grpo`. With TRL's own defaults beside
      its sequence level, long sequences weigh more: the convention "trl-1.16" is that. Of verl it is the mean that its loss
      has without a configuration, whose default is the mean over tokens; `ratio_cap` is its largest log-ratio (nats).
    """
    penalty, terms = kl_parts(kl_place, kl_coefficient, kl_kind, None, kl_bound)
    advantage = standardised(
        baseline, scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, placement=placement, alone=alone
    )
    return (
        grouped(samples=samples),
        chain(advantage, *penalty, choice("aggregation", aggregation, AGGREGATIONS)),
        objective(policy(ratio=sequence_ratio(highest=ratio_cap), trust=clip(low=clip_low, high=clip_high)), *terms),
    )


@method(
    paper="MiniMax-M1 (Chen et al., 2025)",
    url="https://arxiv.org/abs/2506.13585",
    conventions={
        # TRL takes its `epsilon_high` for the bound itself: by default every weight, 1 on policy, is cut to 0.2.
        "trl-1.16": {"clip_high": -0.8} | TRL | TRL_KL,
        "verl-0.10": {"clip_low": 0.2, "clip_high": 0.2} | VERL | VERL_KL,
        "nemo-rl": {"clip_low": 1.0, "clip_high": 5.0} | NEMO,
        "skyrl": {"clip_low": 1.0, "clip_high": 4.0, "degrees_of_freedom": 1},
        "open-instruct": {"clip_high": 0.2},
    },
)
def cispo(
    *,
    samples: int = 8,
    clip_low: float | None = None,
    clip_high: float = 4.0,
    kl_coefficient: float = 0.0,
    kl_kind: str | None = None,
    kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None,
    baseline: str = "mean",
    scale: str = "std",
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    placement: str | None = None,
    alone: str | None = None,
):
    """REINFORCE with group advantages and a clipped, detached importance weight: no token loses its gradient.

    Defaults: The paper sets no lower bound, tunes the upper one and does not publish it. The weight here is at most
      1 + `clip_high` = 5, as in ScaleRL (https://arxiv.org/abs/2510.13786), which found little difference between
      bounds of 4, 5 and 8. The paper adds DAPO's dynamic sampling and length penalty, which are left out here.
      `samples` is ours. `None` means no lower bound, and what it does for `grpo`. The convention of NeMo-RL is its recipe.
    """
    advantage = standardised(
        baseline, scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, placement=placement, alone=alone
    )
    return (
        grouped(samples=samples),
        chain(advantage, token_mean()),
        objective(
            policy(trust=cispo_bound(low=clip_low, high=clip_high)), *kl_loss(kl_coefficient, kl_kind, kl_unbiased, kl_bound)
        ),
    )
