"""Methods that look at whole distributions and states: distillation, projection, entropies, hidden rewards."""

import functools

from jaxrl_llm import estimators, objectives
from jaxrl_llm.controllers import adaptive_entropy, entropy_band, running_mean
from jaxrl_llm.estimators import chain, group_advantage, reward_to_go, sequence_mean, teacher_advantage, token_mean
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import AGGREGATIONS, TRL, choice, standardised
from jaxrl_llm.objectives import clip, divergence, generalised_divergence, kl, objective, policy, projected, sampled, top
from jaxrl_llm.rollouts import grouped

KINDS = {
    "reverse": (objectives.reverse_divergence(), "bucket"),
    "forward": (objectives.forward_divergence(), "bucket"),
    "generalised_reverse": (generalised_divergence(direction="reverse"), "ignore"),
    "generalised_forward": (generalised_divergence(direction="forward"), "ignore"),
}
PICKS = {"proximal": functools.partial(top, of="proximal", with_token=True), "teacher": functools.partial(top, of="teacher")}


@method(
    "On-Policy Distillation of Language Models (Agarwal et al., 2024)",
    "arXiv:2306.13649",
    conventions={"trl-1.16": {"aggregation": "token_mean"}},
)
def gkd(samples: int = 1, beta: float = 0.5, count: int | None = None, aggregation: str = "sequence_mean"):
    """Distils a teacher on the student's own samples, by a generalised Jensen-Shannon divergence of the next token.

    Defaults: `beta` 0.5 is a row of the paper's experiments. `count=None` takes the whole vocabulary, as the paper does; a
      number takes so many of the teacher's likeliest tokens and all others as one. Of the paper's mixture with given text
      (`lambda`) this is the on-policy half, lambda = 1. `samples` is ours.
    """
    candidates = objectives.vocabulary(of="teacher") if count is None else top(count=count, of="teacher")
    loss = objective(divergence(kind=objectives.jensen_shannon(beta=beta), candidates=candidates))
    return grouped(samples=samples), chain(choice("aggregation", aggregation, AGGREGATIONS)), loss


@method("MiniLLM (Gu et al., 2024)", "arXiv:2306.08543")
def on_policy_distillation(samples: int = 4, count: int = 64, kind: str = "reverse", of: str = "proximal"):
    """Minimises the reverse divergence from a teacher, token by token, on the student's samples: mode-seeking distillation.

    Defaults: all ours; the tokens that the student finds likeliest are looked at, all others as one. MiniLLM's own estimator
      is a policy gradient of the whole sequence; taking each token's exact divergence instead is the one-step form of it.
      `kind` may be "forward", and with "generalised_reverse" or "generalised_forward" it is the divergence of measures over
      the candidates alone, without the others. `of` names who picks them: "proximal", the student, or "teacher".
    """
    function, rest = choice("kind", kind, KINDS)
    pick = choice("of", of, PICKS)
    loss = objective(divergence(kind=function, candidates=pick(count=count), rest=rest))
    return grouped(samples=samples), chain(token_mean()), loss


@method("On the Position Bias of On-Policy Distillation (Xie et al., 2026)", "arXiv:2606.22600")
def iw_opd(
    samples: int = 1, emphasis: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = 3.0
):
    """On-policy distillation of the sampled tokens alone, in which those before a drift from the teacher weigh most.

    Defaults: `emphasis` and the clips are the paper's, as TRL's documentation has them; `samples` is TRL's. TRL's trainer has
      no clip: on policy its gradient is the same.
    Unconfirmed: The mean over all tokens, which is TRL's; the KL penalties and the entropy bonus of the paper's runs are left
      out.
    """
    estimator = chain(teacher_advantage(emphasis=emphasis), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, dual=clip_dual)


@method("KDRL (Xu et al., 2025)", "arXiv:2506.02208")
def kdrl(samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, coefficient: float = 2e-3, kind: str = "k2"):
    """GRPO and distillation in one loss: a KL estimate towards a teacher takes the place of the reference.

    Defaults: the paper prefers the k2 estimate, whose gradient is that of the reverse KL; coefficient and samples are ours.
    Unconfirmed: the coefficient and its schedule.
    """
    taught = kl(against="teacher", kind=kind, coefficient=coefficient)
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high)), taught)
    return grouped(samples=samples), chain(group_advantage(), token_mean()), loss


@method("One-Token Rollout (Ming et al., 2025)", "arXiv:2509.26313")
def otr(count: int = 256, temperature: float = 1.3, wrong: float = -0.1):
    """Turns imitation into policy gradients: samples tokens at each place of a given text and rewards the right one.

    Defaults: those of second-hand descriptions of the paper.
    Unconfirmed: count, temperature and the reward of wrong tokens.
    """
    loss = objective(objectives.one_token_rollouts(candidates=sampled(count=count, temperature=temperature), wrong=wrong))
    return None, chain(token_mean()), loss


@method("TROLL: Trust Regions for Large Language Models (Becker et al., 2025)", "arXiv:2510.03817")
def troll(samples: int = 8, bound: float = 0.05, regression: float = 1.0, count: int = 64):
    """GRPO whose clip is a differentiable projection of each token's distribution onto a KL ball around the old policy.

    Defaults: 64 tokens that cover 99.999% of the mass are those of the paper; the form is that of public code. The bound of
      0.05 nats, the factor 1 of the regression term and `samples` are ours.
    """
    candidates = top(count=count, mass=1.0 - 1e-5, with_token=True, of="proximal")
    trust = projected(bound=bound, regression=regression, candidates=candidates)
    return grouped(samples=samples), chain(group_advantage(), sequence_mean()), objective(policy(ratio=None, trust=trust))


@method("On Entropy Control in LLM-RL Algorithms (Shen, 2025)", "arXiv:2509.03493")
def aent(
    samples: int = 8, clip_low: float = 0.4, clip_high: float = 0.4, coefficient: float = 2e-4, cut: float = 0.3,
    band: tuple[float, float] | None = None,
):  # fmt: skip
    """GRPO with a bonus on the entropy of the policy without its least likely tokens, which noise cannot raise.

    Defaults: samples, clip, coefficient and cut are those of the author's recipe. With a `band` of entropies, such as
      (0.05, 0.23), the coefficient follows it (`controllers.entropy_band`), `coefficient` being the first.
    """
    controllers = {} if band is None else {"entropy": entropy_band(low=band[0], high=band[1], initial=coefficient)}
    bonus = objectives.top_entropy_bonus(coefficient="entropy" if controllers else coefficient, cut=cut)
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high)), bonus)
    return grouped(samples=samples), chain(group_advantage(), token_mean()), loss, controllers


@method("EPO: Entropy-regularized Policy Optimization for LLM Agents (Xu et al., 2025)", "arXiv:2509.22576")
def epo(samples: int = 8, coefficient: float = 1e-3, low: float = 0.8, high: float = 1.2, penalty: float = 0.1):
    """GRPO with an entropy bonus over all turns, and a penalty where the entropy leaves a band around its history.

    Defaults: coefficient, band and penalty are those of the authors' configuration. The factor beta_k of the penalty is 1
      here: as the penalty has no gradient in their code, its schedule changes nothing but the reported loss.
    """
    term = objectives.smoothed_entropy(coefficient=coefficient, low=low, high=high, penalty=penalty)
    estimator = chain(group_advantage(), sequence_mean())
    return grouped(samples=samples), estimator, objective(policy(), term), {"entropy_history": running_mean(measure="entropy")}


@method("Skywork Open Reasoner 1 (He et al., 2025)", "arXiv:2505.22312", conventions={"trl-1.16": TRL})
def skywork(
    samples: int = 16, target: float = 0.2, change: float = 0.005, high: float = 1.0, degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
):  # fmt: skip
    """GRPO by tokens without KL, with an entropy coefficient that is raised while the entropy is below its target.

    Defaults: 16 samples and a target of 0.2 nats are the paper's, the change of 0.005 that of its ablations; the largest
      coefficient is ours. `None` means 0 degrees of freedom and an epsilon of 1e-6.
    """
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon), token_mean())
    loss = objective(policy(), objectives.entropy_bonus(coefficient="entropy"))
    return grouped(samples=samples), estimator, loss, {"entropy": adaptive_entropy(target=target, change=change, high=high)}


@method(
    "Searching for High-Value Molecules Using Reinforcement Learning and Transformers (Ghugare et al., 2023)",
    "arXiv:2310.02902",
)
def chemrlformer(samples: int = 1, coefficient: float = 1.0):
    """REINFORCE on whole strings, with a penalty on being sure of them in place of a KL to the pre-trained model.

    Defaults: all ours.
    Unconfirmed: the form of the penalty, which is REINVENT's here, and its coefficient; the replay buffer is left out.
    """
    terms = policy(ratio=None, trust=objectives.score_function()), objectives.overconfidence(coefficient=coefficient)
    return grouped(samples=samples), chain(reward_to_go(), estimators.sequence_mean_token_sum()), objective(*terms)


@method("Token Hidden Reward (Deng et al., 2025)", "arXiv:2510.03669")
def thr(samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, strength: float = 0.1):
    """GRPO that looks at tokens by their influence on the likelihood of right answers: for more of it, or for less.

    Defaults: `strength` and samples are ours; a negative one explores.
    Unconfirmed: the sign for wrong answers, the form of the factor and the values of `strength`; the scores are those of the
      authors' earlier NTHR, over the tokens that occur in the group.
    """
    weighting = estimators.hidden_reward_weighting(candidates=objectives.tokens_of_group(), strength=strength)
    estimator = chain(group_advantage(), weighting, sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)
