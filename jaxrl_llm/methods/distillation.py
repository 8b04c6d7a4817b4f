"""Methods that look at whole distributions and states: distillation, projection, entropies, hidden rewards."""

from __future__ import annotations

import functools

from jaxrl_llm.controllers import adaptive_entropy, entropy_band, running_mean
from jaxrl_llm.estimators import (
    chain,
    group_advantage,
    hidden_reward_weighting,
    reward_to_go,
    sequence_mean,
    sequence_mean_token_sum,
    teacher_advantage,
    token_mean,
)
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import AGGREGATIONS, choice, standardised
from jaxrl_llm.methods.libraries import TRL
from jaxrl_llm.objectives import (
    clip,
    divergence,
    entropy_bonus,
    forward_divergence,
    generalised_divergence,
    jensen_shannon,
    kl,
    objective,
    one_token_rollouts,
    overconfidence,
    policy,
    projected,
    reverse_divergence,
    sampled,
    score_function,
    smoothed_entropy,
    tokens_of_group,
    top,
    top_entropy_bonus,
    vocabulary,
)
from jaxrl_llm.rollouts import grouped

KINDS = {
    "reverse": (reverse_divergence(), "bucket"),
    "forward": (forward_divergence(), "bucket"),
    "generalised_reverse": (generalised_divergence(direction="reverse"), "ignore"),
    "generalised_forward": (generalised_divergence(direction="forward"), "ignore"),
}
PICKS = {"proximal": functools.partial(top, of="proximal", with_token=True), "teacher": functools.partial(top, of="teacher")}


def _chosen(option: str, name: str, choices: dict):
    if name not in choices:
        raise ValueError(f"{option} is {name!r}; it must be one of {tuple(choices)}")
    return choices[name]


@method(
    paper="On-Policy Distillation of Language Models (Agarwal et al., 2024)",
    url="https://arxiv.org/abs/2306.13649",
    # Half of what TRL trains on is given text.
    conventions={"trl-1.16": {"aggregation": "token_mean"}},
)
def gkd(*, samples: int = 1, beta: float = 0.5, count: int | None = None, aggregation: str = "sequence_mean"):
    """Distils a teacher on the student's own samples, by a generalised Jensen-Shannon divergence of the next token.

    Defaults: `beta` 0.5 is a row of the paper's experiments. `count=None` takes the whole vocabulary, as the paper does; a
      number takes so many of the teacher's likeliest tokens and all others as one. Of the paper's mixture with given text
      (`lambda`) this is the on-policy half, lambda = 1. `samples` is ours.
    """
    candidates = vocabulary(of="teacher") if count is None else top(count=count, of="teacher")
    return (
        grouped(samples=samples),
        chain(choice("aggregation", aggregation, AGGREGATIONS)),
        objective(divergence(kind=jensen_shannon(beta=beta), candidates=candidates)),
    )


@method(paper="MiniLLM (Gu et al., 2024)", url="https://arxiv.org/abs/2306.08543")
def on_policy_distillation(*, samples: int = 4, count: int = 64, kind: str = "reverse", of: str = "proximal"):
    """Minimises the reverse divergence from a teacher, token by token, on the student's samples: mode-seeking distillation.

    Defaults: all ours; the tokens that the student finds likeliest are looked at, all others as one. MiniLLM's own estimator
      is a policy gradient of the whole sequence; taking each token's exact divergence instead is the one-step form of it.
      `kind` may be "forward", and with "generalised_reverse" or "generalised_forward" it is the divergence of measures over
      the candidates alone, without the others. `of` names who picks them: "proximal", the student, or "teacher".
    """
    function, rest = _chosen("kind", kind, KINDS)
    pick = _chosen("of", of, PICKS)
    return (
        grouped(samples=samples),
        chain(token_mean()),
        objective(divergence(kind=function, candidates=pick(count=count), rest=rest)),
    )


@method(
    paper="On the Position Bias of On-Policy Distillation (Xie et al., 2026)",
    url="https://arxiv.org/abs/2606.22600",
    certainty="sketch",
)
def iw_opd(
    *, samples: int = 1, emphasis: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = 3.0
):
    """On-policy distillation of the sampled tokens alone, in which those before a drift from the teacher weigh most.

    Defaults: `emphasis` and the clips are the paper's, as TRL's documentation has them; `samples` is TRL's. TRL's trainer has
      no clip: on policy its gradient is the same.

    Unconfirmed: The mean over all tokens, which is TRL's; the KL penalties and the entropy bonus of the paper's runs are left
      out.
    """
    return (
        grouped(samples=samples),
        chain(teacher_advantage(emphasis=emphasis), token_mean()),
        objective(policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual))),
    )


@method(paper="KDRL (Xu et al., 2025)", url="https://arxiv.org/abs/2506.02208", certainty="sketch")
def kdrl(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, coefficient: float = 2e-3, kind: str = "k2"):
    """GRPO and distillation in one loss: a KL estimate towards a teacher takes the place of the reference.

    Defaults: the paper prefers the k2 estimate, whose gradient is that of the reverse KL; coefficient and samples are ours.

    Unconfirmed: the coefficient and its schedule.
    """
    return (
        grouped(samples=samples),
        chain(group_advantage(), token_mean()),
        objective(policy(trust=clip(low=clip_low, high=clip_high)), kl(against="teacher", kind=kind, coefficient=coefficient)),
    )


@method(paper="One-Token Rollout (Ming et al., 2025)", url="https://arxiv.org/abs/2509.26313", certainty="sketch")
def otr(*, count: int = 256, temperature: float = 1.3, wrong: float = -0.1):
    """Turns imitation into policy gradients: samples tokens at each place of a given text and rewards the right one.

    Defaults: those of second-hand descriptions of the paper.

    Unconfirmed: count, temperature and the reward of wrong tokens.
    """
    return (
        None,
        chain(token_mean()),
        objective(one_token_rollouts(candidates=sampled(count=count, temperature=temperature), wrong=wrong)),
    )


@method(paper="TROLL: Trust Regions for Large Language Models (Becker et al., 2025)", url="https://arxiv.org/abs/2510.03817")
def troll(*, samples: int = 8, bound: float = 0.05, regression: float = 1.0, count: int = 64):
    """GRPO whose clip is a differentiable projection of each token's distribution onto a KL ball around the old policy.

    Defaults: 64 tokens that cover 99.999% of the mass are those of the paper; the form is that of public code. The bound of
      0.05 nats, the factor 1 of the regression term and `samples` are ours.
    """
    candidates = top(count=count, mass=1.0 - 1e-5, with_token=True, of="proximal")
    trust = projected(bound=bound, regression=regression, candidates=candidates)
    return grouped(samples=samples), chain(group_advantage(), sequence_mean()), objective(policy(ratio=None, trust=trust))


@method(paper="On Entropy Control in LLM-RL Algorithms (Shen, 2025)", url="https://arxiv.org/abs/2509.03493")
def aent(
    *,
    samples: int = 8,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
    coefficient: float = 2e-4,
    cut: float = 0.3,
    band: tuple[float, float] | None = None,
):
    """GRPO with a bonus on the entropy of the policy without its least likely tokens, which noise cannot raise.

    Defaults: samples, clip, coefficient and cut are those of the author's recipe. With a `band` of entropies, such as
      (0.05, 0.23), the coefficient follows it (`controllers.entropy_band`), `coefficient` being the first.
    """
    controllers = {} if band is None else {"entropy": entropy_band(low=band[0], high=band[1], initial=coefficient)}
    bonus = top_entropy_bonus(coefficient="entropy" if controllers else coefficient, cut=cut)
    return (
        grouped(samples=samples),
        chain(group_advantage(), token_mean()),
        objective(policy(trust=clip(low=clip_low, high=clip_high)), bonus),
        controllers,
    )


@method(
    paper="EPO: Entropy-regularized Policy Optimization for LLM Agents (Xu et al., 2025)",
    url="https://arxiv.org/abs/2509.22576",
)
def epo(*, samples: int = 8, coefficient: float = 1e-3, low: float = 0.8, high: float = 1.2, penalty: float = 0.1):
    """GRPO with an entropy bonus over all turns, and a penalty where the entropy leaves a band around its history.

    Defaults: coefficient, band and penalty are those of the authors' configuration. The factor beta_k of the penalty is 1
      here: as the penalty has no gradient in their code, its schedule changes nothing but the reported loss.
    """
    term = smoothed_entropy(coefficient=coefficient, low=low, high=high, penalty=penalty)
    return (
        grouped(samples=samples),
        chain(group_advantage(), sequence_mean()),
        objective(policy(), term),
        {"entropy_history": running_mean(measure="entropy")},
    )


@method(
    paper="Skywork Open Reasoner 1 (He et al., 2025)", url="https://arxiv.org/abs/2505.22312", conventions={"trl-1.16": TRL}
)
def skywork(
    *,
    samples: int = 16,
    target: float = 0.2,
    change: float = 0.005,
    high: float = 1.0,
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
):
    """GRPO by tokens without KL, with an entropy coefficient that is raised while the entropy is below its target.

    Defaults: 16 samples and a target of 0.2 nats are the paper's, the change of 0.005 that of its ablations; the largest
      coefficient is ours. `None` means 0 degrees of freedom and an epsilon of 1e-6.
    """
    return (
        grouped(samples=samples),
        chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon), token_mean()),
        objective(policy(), entropy_bonus(coefficient="entropy")),
        {"entropy": adaptive_entropy(target=target, change=change, high=high)},
    )


@method(
    paper="Searching for High-Value Molecules Using Reinforcement Learning and Transformers (Ghugare et al., 2023)",
    url="https://arxiv.org/abs/2310.02902",
    certainty="sketch",
)
def chemrlformer(*, samples: int = 1, coefficient: float = 1.0):
    """REINFORCE on whole strings, with a penalty on being sure of them in place of a KL to the pre-trained model.

    Defaults: all ours.

    Unconfirmed: the form of the penalty, which is REINVENT's here, and its coefficient; the replay buffer is left out.
    """
    terms = policy(ratio=None, trust=score_function()), overconfidence(coefficient=coefficient)
    return grouped(samples=samples), chain(reward_to_go(), sequence_mean_token_sum()), objective(*terms)


@method(paper="Token Hidden Reward (Deng et al., 2025)", url="https://arxiv.org/abs/2510.03669", certainty="sketch")
def thr(*, samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, strength: float = 0.1):
    """GRPO that looks at tokens by their influence on the likelihood of right answers: for more of it, or for less.

    Defaults: `strength` and samples are ours; a negative one explores.

    Unconfirmed: the sign for wrong answers, the form of the factor and the values of `strength`; the scores are those of the
      authors' earlier NTHR, over the tokens that occur in the group.
    """
    weighting = hidden_reward_weighting(candidates=tokens_of_group(), strength=strength)
    return (
        grouped(samples=samples),
        chain(group_advantage(), weighting, sequence_mean()),
        objective(policy(trust=clip(low=clip_low, high=clip_high))),
    )
