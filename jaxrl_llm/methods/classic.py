"""The classic methods: policy gradients with a reward-to-go or a critic, imitation, and models of rewards."""

from jaxrl_llm import estimators, objectives
from jaxrl_llm.compose import require
from jaxrl_llm.estimators import chain, gae, group_advantage, leave_one_out_baseline, pair_mean, reward_to_go, token_mean
from jaxrl_llm.methods.advantages import WHITENING
from jaxrl_llm.methods.base import When, method, reject_inert
from jaxrl_llm.methods.choices import AGGREGATIONS, OPENRLHF_KL, TUNIX_KL, VERL_CLIP, choice, kl_parts, kl_reward
from jaxrl_llm.methods.updates import Critic
from jaxrl_llm.objectives import bradley_terry, entropy_bonus, objective, policy, score_function, token_ratio, value_loss
from jaxrl_llm.rollouts import grouped


@method("Simple statistical gradient-following algorithms (Williams, 1992)", "https://doi.org/10.1007/BF00992696")
def reinforce(samples: int = 1, kl_coefficient: float = 0.0, kl_kind: str | None = None):
    """Score-function gradient of the reward-to-go, without a baseline.

    Defaults: The paper is about networks in general: all defaults are ours. `kl_kind=None` means k1.
    """
    estimator = chain(*kl_reward(kl_coefficient, kl_kind), reward_to_go(), estimators.sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))


# A clip of token ratios and a mean over tokens, as in the libraries whose loss is that of PPO for every advantage.
LIKE_PPO = {"clip": 0.2, "clip_level": "token", "aggregation": "token_mean"}


@method(
    "Back to Basics: Revisiting REINFORCE Style Optimization (Ahmadian et al., 2024)",
    "arXiv:2402.14740",
    conventions={
        "trl-1.16": {"samples": 2, "clip": 0.2},
        "verl-0.10": LIKE_PPO | {"clip_dual": 3.0, "alone": "none", "kl_coefficient": 0.0},
        "openrlhf": LIKE_PPO | OPENRLHF_KL,
        "tunix-0.1": LIKE_PPO | {"aggregation": "sequence_mean", "kl_place": When("kl_coefficient", "loss")} | TUNIX_KL,
    },
)
def rloo(
    samples: int = 4, kl_coefficient: float = 0.05, kl_kind: str | None = None, kl_place: str | None = None,
    kl_bound: float | None = None, clip: float | None = None, clip_level: str | None = None, clip_dual: float | None = None,
    alone: str = "own", aggregation: str | None = None,
):  # fmt: skip
    """REINFORCE on whole sequences with the mean reward of the other samples as baseline.

    Defaults: The paper tries 2 and 4 samples. The KL coefficient is ours. `None` means a KL of kind k1 in the reward, which the
      baseline sees, rather than in the "advantage" behind it or in the "loss" (k3 there). A number for `clip` takes the clipped
      ratio of whole sequences (`clip_level` "sequence"), as TRL does, or of tokens ("token") in place of the plain gradient,
      which it equals on policy. `aggregation=None` is the sum over the tokens of a sequence, as the ratio of the whole has it.
    """
    reject_inert(clip is None and clip_level is not None, "clip_level", clip_level, "clip is None")
    reject_inert(clip is None and clip_dual is not None, "clip_dual", clip_dual, "clip is None")
    ratios = {
        "sequence": (objectives.sequence_total_ratio(), "sequence_mean"),
        "token": (token_ratio(), "sequence_mean_token_sum"),
    }
    ratio, usual = (None, "sequence_mean_token_sum") if clip is None else choice("clip_level", clip_level or "sequence", ratios)
    trust = score_function() if clip is None else objectives.clip(low=clip, high=clip, dual=clip_dual)
    reject_inert(aggregation == usual, "aggregation", aggregation, "it is what the other options have by themselves")
    if kl_place is None:
        before, behind, terms = kl_reward(kl_coefficient, kl_kind, bound=kl_bound), (), ()
    else:
        reject_inert(kl_coefficient == 0, "kl_place", kl_place, "kl_coefficient is 0")
        place = choice("kl_place", kl_place, {"advantage": "advantage", "loss": None})
        before, (behind, terms) = (), kl_parts(place, kl_coefficient, kl_kind, None, kl_bound)
    advantage = group_advantage(baseline=leave_one_out_baseline(alone=alone), scale=None)
    estimator = chain(*before, advantage, *behind, choice("aggregation", aggregation or usual, AGGREGATIONS))
    return grouped(samples=samples), estimator, objective(policy(ratio=ratio, trust=trust), *terms)


@method(
    "Proximal Policy Optimization Algorithms (Schulman et al., 2017)",
    "arXiv:1707.06347",
    conventions={
        "verl-0.10": {"clip_dual": 3.0, "trace_decay": 1.0, "kl_coefficient": 0.0, "value_clip": 0.5},
        "openrlhf": {
            "trace_decay": 1.0, "value_clip": 0.5, "kl_coefficient": 0.01, "kl_bound": When("kl_coefficient", 10.0),
            "whitening": "population",
        },
        "tunix-0.1": {"kl_coefficient": 0.04, "kl_kind": When("kl_coefficient", "k3")},
    },
)  # fmt: skip
def ppo(
    samples: int = 1, discount: float = 1.0, trace_decay: float = 0.95, clip_low: float = 0.2, clip_high: float = 0.2,
    clip_dual: float | None = None, value_coefficient: float = 0.5, value_clip: float | None = 0.2,
    value_huber: float | None = None, entropy_coefficient: float = 0.0, kl_coefficient: float = 0.05,
    kl_kind: str | None = None, kl_bound: float | None = None, kl_target: float | None = None, whitening: str = "bessel",
):  # fmt: skip
    """Clipped surrogate with a learned critic, generalised advantage estimation and a KL penalty in the reward.

    Defaults: The clip 0.2 and `trace_decay` 0.95 are the paper's, for control tasks. There the discount is 0.99;
      for texts, whose reward comes at the end, it is 1. The KL penalty in the reward is that of Ziegler et al.
      (https://arxiv.org/abs/1909.08593); its coefficient, the value's coefficient and the value's clip are ours.
      `kl_kind=None` means k1, and `kl_target=None` a fixed coefficient; a number (nats an answer) is a KL that it follows.
      `whitening` is that of `reinforce_plus_plus_baseline`.
    """
    mend = "above 0: a critic that never learns gives no baseline, take 'grpo'"
    require(value_coefficient > 0, "value_coefficient", value_coefficient, mend)
    bonus = (entropy_bonus(coefficient=entropy_coefficient),) if entropy_coefficient else ()
    penalty = kl_reward(kl_coefficient, kl_kind, kl_target, kl_bound)
    advantage = gae(discount=discount, trace_decay=trace_decay)
    estimator = chain(*penalty, advantage, choice("whitening", whitening, WHITENING), token_mean())
    loss = objective(policy(trust=objectives.clip(low=clip_low, high=clip_high, dual=clip_dual)), *bonus)
    critic = Critic(loss=value_loss(coefficient=value_coefficient, clip=value_clip, huber=value_huber))
    return grouped(samples=samples), estimator, loss, critic


@method(
    "REINFORCE++ (Hu et al., 2025)",
    "arXiv:2501.03262",
    conventions={
        "verl-0.10": VERL_CLIP | {"kl_coefficient": 0.0},
        "openrlhf": {"kl_bound": When("kl_coefficient", 10.0), "whitening": "population"},
    },
)
def reinforce_plus_plus(
    samples: int = 1, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = None,
    kl_coefficient: float = 0.01, kl_kind: str | None = None, kl_bound: float | None = None, whitening: str = "bessel",
):  # fmt: skip
    """Clipped surrogate on rewards-to-go with a token KL penalty, standardised over the whole batch; no critic.

    Defaults: One sample and a KL penalty of kind k1 in the reward (`kl_kind=None`) are the paper's. Its text
      (version 9) states neither clip nor coefficient: both are ours. `whitening` is that of `reinforce_plus_plus_baseline`.
    """
    penalty = kl_reward(kl_coefficient, kl_kind, bound=kl_bound)
    estimator = chain(*penalty, reward_to_go(), choice("whitening", whitening, WHITENING), token_mean())
    loss = objective(policy(trust=objectives.clip(low=clip_low, high=clip_high, dual=clip_dual)))
    return grouped(samples=samples), estimator, loss


@method("Training language models to follow instructions (Ouyang et al., 2022)", "arXiv:2203.02155")
def sft():
    """Negative log-likelihood of given completions, each token alike."""
    return None, chain(token_mean()), objective(objectives.negative_log_likelihood())


@method("Learning to summarize from human feedback (Stiennon et al., 2020)", "arXiv:2009.01325")
def reward_model(center: float = 0.0):
    """Bradley-Terry model of preferences: a value head that scores the preferred answer above the other one.

    Defaults: The paper has no centring: `center` is that of https://arxiv.org/abs/2312.09244; TRL recommends 0.01
      where it is wanted.
    """
    return None, chain(pair_mean()), objective(bradley_terry(center=center))
