"""Methods that differ in the baseline, what an answer is compared with, or that look at several answers as one."""

from jaxrl_llm import estimators
from jaxrl_llm.estimators import blend, chain, group_advantage, mean_baseline, sequence_mean, std_scale, token_mean, whiten
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.choices import AGGREGATIONS, BY_TOKEN, NEMO_KL, OPENRLHF_KL, TRL_KL, VERL_CLIP, VERL_KL, choice, kl_parts
from jaxrl_llm.objectives import Objective, clip, entropy_bonus, kl, objective, policy, score_function
from jaxrl_llm.rollouts import grouped, grouped_with_anchors, grouped_with_greedy

BESSEL = std_scale(degrees_of_freedom=1)


def clipped(
    low: float = 0.2, high: float = 0.2, *, dual: float | None = None, kl_coefficient: float = 0.0, kl_kind: str = "k3",
    entropy_coefficient: float = 0.0,
) -> Objective:  # fmt: skip
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
    "On-Policy RL with Optimal Reward Baseline (Hao et al., 2025)",
    "arXiv:2505.23585",
    conventions={"verl-0.10": {"alone": "none"} | VERL_CLIP},
)
def opo(
    samples: int = 8, alone: str = "own", clip_low: float | None = None, clip_high: float | None = None,
    clip_dual: float | None = None,
):  # fmt: skip
    """REINFORCE with the length-weighted mean of the group as baseline, which has the least variance; one update a step.

    Defaults: `samples` is ours. The mean over tokens is that of the authors' program; the derivation sums over them. Two
      bounds take the clipped surrogate of several updates, as verl does, in place of the plain gradient.
    """
    estimator = chain(group_advantage(baseline=estimators.length_weighted_baseline(alone=alone), scale=None), token_mean())
    return grouped(samples=samples), estimator, clipped_or_score(clip_low, clip_high, clip_dual)


@method("NGRPO: Negative-enhanced Group Relative Policy Optimization (Nan et al., 2025)", "arXiv:2509.18851")
def ngrpo(samples: int = 8, virtual_reward: float | None = 1.0, clip_low: float = 0.16, clip_high: float = 0.24):
    """GRPO with one more sample of the highest reward, which nobody drew, in mean and deviation: all wrong is bad, too.

    Defaults: All are the authors' script's. `virtual_reward=None` leaves the sample out. It also leaves out groups of right
      answers before the mean over tokens; here they count in it, with advantages of 0.
    """
    virtual = () if virtual_reward is None else (virtual_reward,)
    baseline, scale = mean_baseline(virtual=virtual), std_scale(degrees_of_freedom=1, virtual=virtual)
    estimator = chain(group_advantage(baseline=baseline, scale=scale), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method("Part I: Tricks or Traps? (Liu et al., 2025)", "arXiv:2508.08221", conventions={"trl-1.16": {"epsilon": 1e-4}})
def lite_ppo(samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, epsilon: float = 1e-6):
    """GRPO with the deviation of all rewards of the step in the place of the group's, and a mean over tokens; no KL.

    Defaults: All but `epsilon`, which is ours, are the paper's.
    """
    estimator = chain(group_advantage(scale=std_scale(over="batch", degrees_of_freedom=1, epsilon=epsilon)), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method("Stratified GRPO: Handling Structural Heterogeneity in RL of LLM Search Agents (Zhu et al., 2025)", "arXiv:2510.06214")
def stratified_grpo(samples: int = 8, stratum_share: float = 0.8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO within strata of the group, such as answers with as many searches, blended with GRPO over the whole group.

    Defaults: All are ours, epsilon and the kind of the deviation (Bessel's) too; the form is that of public code. `stratum` is
      the number of the row's stratum.
    """
    within = group_advantage(baseline=mean_baseline(over="stratum"), scale=std_scale(over="stratum", degrees_of_freedom=1))
    overall = group_advantage(scale=BESSEL)
    estimator = chain(blend((stratum_share, within), (round(1 - stratum_share, 9), overall)), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


# How the advantages of the whole step are standardised; the second is that of OpenRLHF and NeMo-RL.
WHITENING = {"bessel": whiten(), "population": whiten(degrees_of_freedom=0, epsilon=1e-4, placement="floor")}


@method(
    "REINFORCE++ (Hu et al., 2025)",
    "arXiv:2501.03262",
    conventions={
        "verl-0.10": {"alone": "none"} | VERL_CLIP | VERL_KL,
        "nemo-rl": {"whitening": "population"} | NEMO_KL,
        "openrlhf": {"whitening": "population"} | OPENRLHF_KL,
    },
)
def reinforce_plus_plus_baseline(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = None,
    kl_coefficient: float = 1e-3, kl_kind: str = "k2", kl_place: str | None = None, kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None, whitening: str = "bessel", alone: str = "own",
):  # fmt: skip
    """The group's mean as baseline, and the deviation of the advantages of the whole step as scale; a k2 penalty in the loss.

    Defaults: The kind of the penalty is the paper's; all numbers are ours. `None` means what it does for `grpo`. Both kinds of
      `whitening` are over tokens: Bessel's variance with 1e-8 in the root, or the population's, at least 1e-8.
    """
    kind = kl_kind if kl_coefficient or kl_kind != "k2" else None
    penalty, terms = kl_parts(kl_place, kl_coefficient, kind, kl_unbiased, kl_bound)
    advantage = group_advantage(baseline=mean_baseline(alone=alone), scale=None)
    estimator = chain(advantage, *penalty, choice("whitening", whitening, WHITENING), token_mean())
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms)
    return grouped(samples=samples), estimator, loss


@method(
    "GDPO: Group reward-Decoupled Normalization Policy Optimization (Liu et al., 2026)",
    "arXiv:2601.05242",
    conventions={
        "trl-1.16": BY_TOKEN | TRL_KL,
        "verl-0.10": BY_TOKEN | {"epsilon": 1e-6, "alone": "none", "whitening": "tokens"} | VERL_CLIP | VERL_KL,
        "nemo-rl": BY_TOKEN | {"epsilon": 1e-6, "placement": "where_positive", "whitening": "exact_rows"} | NEMO_KL,
    },
)
def gdpo(
    samples: int = 8, reward_weights: tuple[float, ...] | None = None, epsilon: float = 1e-4, placement: str = "outside",
    alone: str = "own", whitening: str = "rows", clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = None,
    kl_coefficient: float = 0.0, kl_kind: str | None = None, kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None, aggregation: str = "sequence_mean",
):  # fmt: skip
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
    baseline, weighting = mean_baseline(alone=alone), choice("aggregation", aggregation, AGGREGATIONS)
    advantage = estimators.component_advantage(baseline=baseline, scale=scale, reward_weights=reward_weights)
    estimator = chain(advantage, choice("whitening", whitening, final), weighting)
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual)), *terms)
    return grouped(samples=samples), estimator, loss


@method(
    "ReMax: A Simple, Effective, and Efficient RL Method for Aligning LLMs (Li et al., 2023)",
    "arXiv:2310.10505",
    conventions={"verl-0.10": {"aggregation": "token_mean"} | VERL_CLIP},
)
def remax(
    samples: int = 1, clip_low: float | None = None, clip_high: float | None = None, clip_dual: float | None = None,
    aggregation: str = "sequence_mean_token_sum",
):  # fmt: skip
    """REINFORCE with the reward of the greedy answer to the prompt as baseline.

    Defaults: One sample is the paper's. Its KL penalty in the reward is left out. Two bounds take the clipped surrogate of
      several updates, as verl does, in place of the plain gradient.
    """
    advantage = group_advantage(baseline=estimators.given_baseline(), scale=None)
    estimator = chain(advantage, choice("aggregation", aggregation, AGGREGATIONS))
    return grouped_with_greedy(samples=samples), estimator, clipped_or_score(clip_low, clip_high, clip_dual)


@method("PVPO: Pre-Estimated Value-Based Policy Optimization for Agentic Reasoning (Feng et al., 2025)", "arXiv:2508.21104")
def pvpo(samples: int = 8, anchors: int = 8, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO with a fixed baseline: the mean reward of a reference policy's answers to the same prompt; no scale.

    Defaults: samples, anchors and clip are ours; the paper's were not found. It samples the reference once for each prompt,
      here that happens when the prompt is drawn. The choice of prompts by it, and answers of a larger model for prompts that
      the reference never solves, are left to the data.
    """
    advantage = group_advantage(baseline=estimators.given_baseline(annotation="anchor_reward"), scale=None)
    strategy = grouped_with_anchors(samples=samples, anchors=anchors)
    return strategy, chain(advantage, sequence_mean()), clipped(clip_low, clip_high)


@method("Single-stream Policy Optimization (Xu and Ding, 2025)", "arXiv:2509.13232")
def spo(
    samples: int = 1, prompts: int = 100_000, drift_half_life: float | None = None, forgetting_low: float = 0.875,
    forgetting_high: float | None = None, clip_low: float = 0.2, clip_high: float = 0.28, clip_dual: float = 10.0,
):  # fmt: skip
    """One sample a prompt, compared with a running estimate of the prompt's success rate, and standardised over the step.

    Defaults: Samples, clip, dual clip and forgetting are those of the authors' recipe. `drift_half_life=None` is its constant
      forgetting, `forgetting_low`; the paper takes 0.06 nats, with forgetting up to 0.96 (`forgetting_high=None`), and then
      somebody must measure `drift`. `prompts`, the size of the table, is ours. The table begins at one half a success in one;
      the paper begins with 8 samples a prompt, and draws prompts by their uncertainty, which is left to the data.
    """
    constant = drift_half_life is None
    reject_inert(constant and forgetting_high is not None, "forgetting_high", forgetting_high, "drift_half_life is None")
    highest = forgetting_low if constant else 0.96 if forgetting_high is None else forgetting_high
    tracker = estimators.tracked_advantage(prompts=prompts, half_life=drift_half_life, forgetting=(forgetting_low, highest))
    estimator = chain(tracker, whiten(over="rows", placement="outside"), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, dual=clip_dual)


@method("SPIRAL: Self-Play on Zero-Sum Games Incentivizes Reasoning (Liu et al., 2025)", "arXiv:2506.24119")
def rae(samples: int = 1, roles: int = 2, decay: float = 0.95):
    """REINFORCE with a running mean of the scores of each role as baseline, for games that the policy plays with itself.

    Defaults: Roles and decay are the paper's; one sample a prompt is ours. `role` is the number of the row's player. As in the
      authors' code the mean is read before it is updated. They update it after each game and keep one for each kind of game;
      here that happens once a step, with the mean score of the role's rows.
    """
    estimator = chain(estimators.role_advantage(roles=roles, decay=decay), estimators.sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))


@method(
    "Optimizing Language Models for Inference Time Objectives using Reinforcement Learning (Tang et al., 2025)",
    "arXiv:2503.19595",
    conventions={"verl-0.10": {}},
)
def grpo_passk(samples: int = 8, clip_high: float = 0.2):
    """GRPO for the best of the group: only the best answer learns, by its lead over the second, divided by the deviation.

    Defaults: All are ours; the division is that of verl, from which the name is. There is no lower clip, which would bind for
      negative advantages alone.
    """
    return grouped(samples=samples), chain(estimators.best_lead_advantage(), token_mean()), clipped(high=clip_high)


@method("Pass@k Training for Adaptively Balancing Exploration and Exploitation (Chen et al., 2025)", "arXiv:2508.10751")
def pass_at_k(samples: int = 8, k: int = 2, threshold: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.28):
    """GRPO for right answers among k: the mean advantage over all sets of k samples that an answer belongs to.

    Defaults: All are ours.
    """
    estimator = chain(estimators.pass_at_k_advantage(k=k, threshold=threshold), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method(
    "RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training (Ren et al., 2025)", "arXiv:2510.00911"
)
def riskpo(
    samples: int = 10, bundle: int = 5, level_low: float = 0.2, level_high: float = 0.8, tail_weight: float = 1.5,
    rate: float = 0.1, credit: str = "share", clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """Mixed value at risk of bundles of prompts, marked as one exam: bad exams count most, and rows share what they earn.

    Defaults: All are those of the authors' script for DAPO-Math. Their program takes the quantiles of the bundle itself, as
      its tracked ones never reach the estimator; these are tracked, as in the paper.
    """
    estimator = estimators.risk_advantage(
        bundle=bundle, levels=(level_low, level_high), tail_weight=tail_weight, rate=rate, credit=credit
    )
    return grouped(samples=samples), chain(estimator, token_mean()), clipped(clip_low, clip_high)
