"""Critic-free methods that compare the answers to one prompt: GRPO and its kin."""

from jaxrl_llm.estimators import chain, constant, drop_uniform_groups, overlong_penalty, token_mean
from jaxrl_llm.methods import choices
from jaxrl_llm.methods.base import When, method, reject_inert
from jaxrl_llm.methods.choices import choice, kl_loss, kl_parts, standardised
from jaxrl_llm.objectives import cispo as cispo_bound
from jaxrl_llm.objectives import clip, objective, policy, sequence_ratio
from jaxrl_llm.rollouts import grouped


@method(
    "DeepSeekMath (Shao et al., 2024)",
    "arXiv:2402.03300",
    conventions={
        "trl-1.16": choices.TRL | choices.TRL_KL | choices.BY_TOKEN,
        "verl-0.10": choices.VERL | choices.VERL_CLIP | choices.VERL_KL | choices.BY_TOKEN,
        "nemo-rl": choices.NEMO | choices.NEMO_KL | choices.BY_TOKEN,
        "openrlhf": choices.OPENRLHF | choices.OPENRLHF_KL | choices.BY_TOKEN,
        "tunix-0.1": choices.TUNIX | choices.TUNIX_KL,
        "oat": {"degrees_of_freedom": 1, "epsilon": 1e-8, "kl_coefficient": 0.0},
        "pipeline-rl": {
            "baseline": "leave_one_out", "degrees_of_freedom": 1, "epsilon": 1e-4, "kl_coefficient": 0.1,
            "kl_ratio_bound": When("kl_coefficient", 10.0), "aggregation": "sequence_mean_token_sum",
        },
        "areal": {"baseline": "batch_mean", "scale": "batch_std", "kl_coefficient": 0.0} | choices.BY_TOKEN,
    },
)  # fmt: skip
def grpo(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = None,
    kl_coefficient: float = 0.04, kl_kind: str | None = None, kl_place: str | None = None,
    kl_unbiased: bool | str | None = None, kl_bound: float | None = None, kl_ratio_bound: float | None = None,
    baseline: str = "mean", scale: str = "std", degrees_of_freedom: int | None = None, epsilon: float | None = None,
    placement: str | None = None, alone: str | None = None, aggregation: str = "sequence_mean",
):  # fmt: skip
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
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms)
    return grouped(samples=samples), chain(advantage, *penalty, choice("aggregation", aggregation, choices.AGGREGATIONS)), loss


@method(
    "Understanding R1-Zero-Like Training (Liu et al., 2025)",
    "arXiv:2503.20783",
    conventions={
        "trl-1.16": {"scale": "std"} | choices.TRL | choices.TRL_KL,
        "verl-0.10": {"alone": "none"} | choices.VERL_CLIP | choices.VERL_KL,
        "openrlhf": choices.OPENRLHF_KL | choices.BY_TOKEN,
        "tunix-0.1": choices.TUNIX_KL,
    },
)
def dr_grpo(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = None,
    kl_coefficient: float = 0.0, kl_kind: str | None = None, kl_place: str | None = None, kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None, scale: str = "none", degrees_of_freedom: int | None = None, epsilon: float | None = None,
    alone: str | None = None, aggregation: str = "constant", max_length: int = 3000,
):  # fmt: skip
    """GRPO without division by the deviation and by the length, which bias it to hard questions and long answers.

    Defaults: 8 samples, 3000 tokens and no KL are those of the authors' published training script. The clip is ours. In a
      run of the program, `max_length` is `rl.max_new_tokens` unless it is set. `None` means what it does for `grpo`. TRL's
      `loss_type="dr_grpo"`, also in its recipe for the paper, still divides by the deviation; OpenRLHF's "dr_grpo" is the
      advantage alone, under a mean over all tokens.
    """
    penalty, terms = kl_parts(kl_place, kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    advantage = standardised("mean", scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone)
    weighting = choice("aggregation", aggregation, {"constant": constant(length=max_length)} | choices.AGGREGATIONS)
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms)
    return grouped(samples=samples), chain(advantage, *penalty, weighting), loss


@method(
    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale (Yu et al., 2025)",
    "arXiv:2503.14476",
    conventions={
        # TRL's `loss_type="dapo"` is the loss alone.
        "trl-1.16": {"max_rounds": None, "overlong_size": 0.0} | choices.TRL | choices.TRL_KL,
        "verl-0.10": {"max_rounds": 10, "clip_dual": 10.0, "degrees_of_freedom": 1} | choices.VERL_KL,
        "tunix-0.1": {"max_rounds": None} | choices.TUNIX,
    },
)
def dapo(
    samples: int = 16, max_rounds: int | None = 8, clip_low: float = 0.2, clip_high: float = 0.28,
    clip_dual: float | None = None, max_length: int = 20480, overlong_buffer: int | None = None, overlong_size: float = 1.0,
    kl_coefficient: float = 0.0, kl_kind: str | None = None, kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None, degrees_of_freedom: int | None = None, epsilon: float | None = None,
):  # fmt: skip
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
    advantage = standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)
    terms = kl_loss(kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms)
    return choices.sampled(samples, max_rounds), chain(*filters, *penalty, advantage, token_mean()), loss


@method(
    "Group Sequence Policy Optimization (Zheng et al., 2025)",
    "arXiv:2507.18071",
    conventions={
        "trl-1.16": {"clip_low": 0.2, "clip_high": 0.2} | choices.TRL | choices.BY_TOKEN,
        "verl-0.10": {"clip_low": 0.2, "clip_high": 0.2, "ratio_cap": 10.0} | choices.VERL,
        "nemo-rl": {"clip_low": 0.2, "clip_high": 0.2} | choices.NEMO,
        "openrlhf": {"clip_low": 0.2, "clip_high": 0.2} | choices.OPENRLHF | choices.OPENRLHF_KL,
    },
)
def gspo(
    samples: int = 8, clip_low: float = 3e-4, clip_high: float = 4e-4, ratio_cap: float | None = None,
    kl_coefficient: float = 0.0, kl_kind: str | None = None, kl_place: str | None = None, kl_bound: float | None = None,
    baseline: str = "mean", scale: str = "std", degrees_of_freedom: int | None = None, epsilon: float | None = None,
    placement: str | None = None, alone: str | None = None, aggregation: str = "sequence_mean",
):  # fmt: skip
    """GRPO with one length-normalised importance ratio for each sequence, clipped as a whole.

    Defaults: The clip is the paper's. `samples` is ours. `None` means what it does for `grpo`. With TRL's own defaults beside
      its sequence level, long sequences weigh more: the convention "trl-1.16" is that. Of verl it is the mean that its loss
      has without a configuration, whose default is the mean over tokens; `ratio_cap` is its largest log-ratio (nats).
    """
    penalty, terms = kl_parts(kl_place, kl_coefficient, kl_kind, None, kl_bound)
    advantage = standardised(
        baseline, scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, placement=placement, alone=alone
    )
    loss = objective(policy(ratio=sequence_ratio(highest=ratio_cap), trust=clip(low=clip_low, high=clip_high)), *terms)
    return grouped(samples=samples), chain(advantage, *penalty, choice("aggregation", aggregation, choices.AGGREGATIONS)), loss


@method(
    "MiniMax-M1 (Chen et al., 2025)",
    "arXiv:2506.13585",
    conventions={
        # choices.TRL takes its `epsilon_high` for the bound itself: by default every weight, 1 on policy, is cut to 0.2.
        "trl-1.16": {"clip_high": -0.8} | choices.TRL | choices.TRL_KL,
        "verl-0.10": {"clip_low": 0.2, "clip_high": 0.2} | choices.VERL | choices.VERL_KL,
        "nemo-rl": {"clip_low": 1.0, "clip_high": 5.0} | choices.NEMO,
        "skyrl": {"clip_low": 1.0, "clip_high": 4.0, "degrees_of_freedom": 1},
        "open-instruct": {"clip_high": 0.2},
    },
)
def cispo(
    samples: int = 8, clip_low: float | None = None, clip_high: float = 4.0, kl_coefficient: float = 0.0,
    kl_kind: str | None = None, kl_unbiased: bool | str | None = None, kl_bound: float | None = None, baseline: str = "mean",
    scale: str = "std", degrees_of_freedom: int | None = None, epsilon: float | None = None, placement: str | None = None,
    alone: str | None = None,
):  # fmt: skip
    """REINFORCE with group advantages and a clipped, detached importance weight: no token loses its gradient.

    Defaults: The paper sets no lower bound, tunes the upper one and does not publish it. The weight here is at most
      1 + `clip_high` = 5, as in ScaleRL (https://arxiv.org/abs/2510.13786), which found little difference between
      bounds of 4, 5 and 8. The paper adds DAPO's dynamic sampling and length penalty, which are left out here.
      `samples` is ours. `None` means no lower bound, and what it does for `grpo`. The convention of NeMo-RL is its recipe.
    """
    advantage = standardised(
        baseline, scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, placement=placement, alone=alone
    )
    terms = kl_loss(kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    loss = objective(policy(trust=cispo_bound(low=clip_low, high=clip_high)), *terms)
    return grouped(samples=samples), chain(advantage, token_mean()), loss
