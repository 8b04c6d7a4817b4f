"""Methods that differ in the baseline: what a sampled answer is compared with, and what the difference is divided by."""

from jaxrl_llm.estimators import (
    blend,
    chain,
    component_advantage,
    group_advantage,
    length_weighted_baseline,
    mean_baseline,
    sequence_mean,
    std_scale,
    token_mean,
    whiten,
)
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.choices import AGGREGATIONS, choice, kl_parts
from jaxrl_llm.methods.libraries import BY_TOKEN, NEMO_KL, OPENRLHF_KL, TRL_KL, VERL_CLIP, VERL_KL
from jaxrl_llm.objectives import Objective, clip, entropy_bonus, kl, objective, policy, score_function
from jaxrl_llm.rollouts import grouped

BESSEL = std_scale(degrees_of_freedom=1)


def clipped(
    low: float = 0.2,
    high: float = 0.2,
    *,
    dual: float | None = None,
    kl_coefficient: float = 0.0,
    kl_kind: str = "k3",
    entropy_coefficient: float = 0.0,
) -> Objective:
    """The clipped surrogate on token ratios, with a KL term and an entropy bonus where their coefficients are not 0."""
    terms = (kl(coefficient=kl_coefficient, kind=kl_kind),) if kl_coefficient else ()
    terms += (entropy_bonus(coefficient=entropy_coefficient),) if entropy_coefficient else ()
    return objective(policy(trust=clip(low=low, high=high, dual=dual)), *terms)


def clipped_or_score(clip_low: float | None, clip_high: float | None, clip_dual: float | None) -> Objective:
    """The plain gradient, or, where bounds are given, the clipped surrogate on token ratios, which it equals on policy."""
    if clip_low is None and clip_high is None:
        reject_inert(clip_dual is not None, "clip_dual", clip_dual, "clip_low and clip_high are None")
        return objective(policy(ratio=None, trust=score_function()))
    if clip_low is None or clip_high is None:
        raise ValueError(f"clip_low={clip_low}, clip_high={clip_high}: give both bounds of the ratio, or neither for no ratio")
    return clipped(clip_low, clip_high, dual=clip_dual)


@method(
    paper="On-Policy RL with Optimal Reward Baseline (Hao et al., 2025)",
    url="https://arxiv.org/abs/2505.23585",
    conventions={"verl-0.10": {"alone": "none"} | VERL_CLIP},
)
def opo(
    *,
    samples: int = 8,
    alone: str = "own",
    clip_low: float | None = None,
    clip_high: float | None = None,
    clip_dual: float | None = None,
):
    """REINFORCE with the length-weighted mean of the group as baseline, which has the least variance; one update a step.

    Defaults: `samples` is ours. The mean over tokens is that of the authors' program; the derivation sums over them. Two
      bounds take the clipped surrogate of several updates, as verl does, in place of the plain gradient.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(baseline=length_weighted_baseline(alone=alone), scale=None), token_mean()),
        clipped_or_score(clip_low, clip_high, clip_dual),
    )


@method(
    paper="NGRPO: Negative-enhanced Group Relative Policy Optimization (Nan et al., 2025)",
    url="https://arxiv.org/abs/2509.18851",
)
def ngrpo(*, samples: int = 8, virtual_reward: float | None = 1.0, clip_low: float = 0.16, clip_high: float = 0.24):
    """GRPO with one more sample of the highest reward, which nobody drew, in mean and deviation: all wrong is bad, too.

    Defaults: All are the authors' script's. `virtual_reward=None` leaves the sample out. It also leaves out groups of right
      answers before the mean over tokens; here they count in it, with advantages of 0.
    """
    virtual = () if virtual_reward is None else (virtual_reward,)
    baseline, scale = mean_baseline(virtual=virtual), std_scale(degrees_of_freedom=1, virtual=virtual)
    return (
        grouped(samples=samples),
        chain(group_advantage(baseline=baseline, scale=scale), token_mean()),
        clipped(clip_low, clip_high),
    )


@method(
    paper="Part I: Tricks or Traps? (Liu et al., 2025)",
    url="https://arxiv.org/abs/2508.08221",
    conventions={"trl-1.16": {"epsilon": 1e-4}},
)
def lite_ppo(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, epsilon: float = 1e-6):
    """GRPO with the deviation of all rewards of the step in the place of the group's, and a mean over tokens; no KL.

    Defaults: All but `epsilon`, which is ours, are the paper's.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=std_scale(over="batch", degrees_of_freedom=1, epsilon=epsilon)), token_mean()),
        clipped(clip_low, clip_high),
    )


@method(
    paper="Stratified GRPO: Handling Structural Heterogeneity in RL of LLM Search Agents (Zhu et al., 2025)",
    url="https://arxiv.org/abs/2510.06214",
)
def stratified_grpo(*, samples: int = 8, stratum_share: float = 0.8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO within strata of the group, such as answers with as many searches, blended with GRPO over the whole group.

    Defaults: All are ours, epsilon and the kind of the deviation (Bessel's) too; the form is that of public code. `stratum` is
      the number of the row's stratum.
    """
    within = group_advantage(baseline=mean_baseline(over="stratum"), scale=std_scale(over="stratum", degrees_of_freedom=1))
    overall = group_advantage(scale=BESSEL)
    return (
        grouped(samples=samples),
        chain(blend((stratum_share, within), (round(1 - stratum_share, 9), overall)), sequence_mean()),
        clipped(clip_low, clip_high),
    )


# How the advantages of the whole step are standardised; the second is that of OpenRLHF and NeMo-RL.
WHITENING = {"bessel": whiten(), "population": whiten(degrees_of_freedom=0, epsilon=1e-4, placement="floor")}


@method(
    paper="REINFORCE++ (Hu et al., 2025)",
    url="https://arxiv.org/abs/2501.03262",
    conventions={
        "verl-0.10": {"alone": "none"} | VERL_CLIP | VERL_KL,
        "nemo-rl": {"whitening": "population"} | NEMO_KL,
        "openrlhf": {"whitening": "population"} | OPENRLHF_KL,
    },
)
def reinforce_plus_plus_baseline(
    *,
    samples: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    kl_coefficient: float = 1e-3,
    kl_kind: str = "k2",
    kl_place: str | None = None,
    kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None,
    whitening: str = "bessel",
    alone: str = "own",
):
    """The group's mean as baseline, and the deviation of the advantages of the whole step as scale; a k2 penalty in the loss.

    Defaults: The kind of the penalty is the paper's; all numbers are ours. `None` means what it does for `grpo`. Both kinds of
      `whitening` are over tokens: Bessel's variance with 1e-8 in the root, or the population's, at least 1e-8.
    """
    kind = kl_kind if kl_coefficient or kl_kind != "k2" else None
    penalty, terms = kl_parts(kl_place, kl_coefficient, kind, kl_unbiased, kl_bound)
    return (
        grouped(samples=samples),
        chain(
            group_advantage(baseline=mean_baseline(alone=alone), scale=None),
            *penalty,
            choice("whitening", whitening, WHITENING),
            token_mean(),
        ),
        objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms),
    )


@method(
    paper="GDPO: Group reward-Decoupled Normalization Policy Optimization (Liu et al., 2026)",
    url="https://arxiv.org/abs/2601.05242",
    conventions={
        "trl-1.16": BY_TOKEN | TRL_KL,
        "verl-0.10": BY_TOKEN | {"epsilon": 1e-6, "alone": "none", "whitening": "tokens"} | VERL_CLIP | VERL_KL,
        "nemo-rl": BY_TOKEN | {"epsilon": 1e-6, "placement": "where_positive", "whitening": "exact_rows"} | NEMO_KL,
    },
)
def gdpo(
    *,
    samples: int = 8,
    reward_weights: tuple[float, ...] | None = None,
    epsilon: float = 1e-4,
    placement: str = "outside",
    alone: str = "own",
    whitening: str = "rows",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    kl_coefficient: float = 0.0,
    kl_kind: str | None = None,
    kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None,
    aggregation: str = "sequence_mean",
):
    """GRPO for several rewards: each is standardised within the group by itself, and their sum over the step.

    Defaults: `epsilon` is TRL's; the other numbers are ours. `reward_weights=None` is 1 for each component, other `None` mean
      what they do for `grpo`. The sum is standardised over the "rows" with `epsilon`, over "exact_rows" without, or over the
      "tokens", with 1e-8 in the root, always with Bessel's variance.
    """
    scale = std_scale(degrees_of_freedom=1, epsilon=epsilon, placement=placement, alone=alone)
    final = {
        "rows": whiten(over="rows", epsilon=epsilon, placement="outside"),
        "exact_rows": whiten(over="rows", epsilon=0.0, placement="where_positive"),
        "tokens": whiten(),
    }
    _, terms = kl_parts(None, kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    return (
        grouped(samples=samples),
        chain(
            component_advantage(baseline=mean_baseline(alone=alone), scale=scale, reward_weights=reward_weights),
            choice("whitening", whitening, final),
            choice("aggregation", aggregation, AGGREGATIONS),
        ),
        objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms),
    )
