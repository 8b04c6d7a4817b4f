"""Methods for samples of other policies: older ones, other engines, demonstrations."""

from jaxrl_llm import objectives
from jaxrl_llm.estimators import chain, constant, constant_baseline, group_advantage, sequence_mean_token_sum, token_mean
from jaxrl_llm.methods import choices
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import OPENRLHF, OPENRLHF_KL, TRL, TRL_KL, VERL, VERL_CLIP, VERL_KL, choice, kl_parts
from jaxrl_llm.objectives import by_source, clip, importance_weight, kl, objective, policy, tapered, token_ratio, top, unclipped
from jaxrl_llm.rollouts import grouped, guided

PROXIMAL = token_ratio(against="proximal")
LEVELS = {"token": token_ratio(), "sequence": objectives.sequence_total_ratio(), "geometric": objectives.sequence_ratio()}


def _corrected(samples, trust, weight, *terms, penalty=(), **advantage):
    """Three policies: the ratio is to the proximal one, the weight corrects from it to the sampler."""
    loss = objective(policy(ratio=PROXIMAL, trust=trust, factors=(weight,)), *terms)
    return grouped(samples=samples), chain(choices.standardised(**advantage), *penalty, token_mean()), loss


@method("Batch size-invariance for policy optimization (Hilton et al., 2022)", "arXiv:2110.00641")
def decoupled_ppo(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, weight_low: float | None = None,
    weight_high: float | None = None,
):  # fmt: skip
    """GRPO clipped around the policy before the step's updates, with the importance weight of that policy over the sampler's.

    Defaults: The clip is PPO's; the weight has no bounds. The paper has a critic; group advantages, as in AReaL
      (https://arxiv.org/abs/2505.24298), and `samples` are ours.
    """
    return _corrected(samples, clip(low=clip_low, high=clip_high), importance_weight(low=weight_low, high=weight_high))


@method(
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (Yao et al., 2025)",
    "https://fengyao.notion.site/off-policy-rl",
    conventions={
        "trl-1.16": {"weight_high": 3.0} | TRL | TRL_KL,
        "verl-0.10": VERL_CLIP | VERL | VERL_KL,
        "openrlhf": {"weight_low": 0.5, "weight_high": 5.0} | OPENRLHF | OPENRLHF_KL,
    },
)
def tis(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = None,
    weight_low: float | None = None, weight_high: float = 2.0, level: str = "token", kl_coefficient: float = 0.0,
    kl_kind: str | None = None, kl_place: str | None = None, kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None, degrees_of_freedom: int | None = None, epsilon: float | None = None,
    alone: str | None = None,
):  # fmt: skip
    """GRPO weighted by how much likelier the samples are to the learner than to the sampler's engine, up to a bound.

    Defaults: The bound is the authors', on the weight of each token; `level` may also be "sequence" or "geometric" (the
      geometric mean over a sequence). Group advantages, clip and `samples` are ours. `None` means what it does for `grpo`.
      TRL's "token_truncate" is its convention, "sequence_truncate" that with `level="sequence"`. OpenRLHF raises small
      weights to a lower bound too.
    """
    weight = importance_weight(low=weight_low, high=weight_high, ratio=choice("level", level, LEVELS))
    trust = clip(low=clip_low, high=clip_high, dual=clip_dual)
    penalty, terms = kl_parts(kl_place, kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    advantage = {"degrees_of_freedom": degrees_of_freedom, "epsilon": epsilon, "alone": alone}
    return _corrected(samples, trust, weight, *terms, penalty=penalty, **advantage)


@method(
    "Every Step Evolves: Scaling Reinforcement Learning for Trillion-Scale Thinking Model (Ling Team, 2025)",
    "arXiv:2510.18855",
    conventions={
        "trl-1.16": {"level": "sequence", "weight_low": None, "weight_high": 3.0} | TRL | TRL_KL,
        "verl-0.10": VERL_CLIP | VERL | VERL_KL,
        "openrlhf": OPENRLHF | OPENRLHF_KL,
    },
)
def icepop(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float | None = None,
    weight_low: float | None = 0.5, weight_high: float | None = 5.0, level: str = "token", kl_coefficient: float = 0.0,
    kl_kind: str | None = None, kl_place: str | None = None, kl_unbiased: bool | str | None = None,
    kl_bound: float | None = None, degrees_of_freedom: int | None = None, epsilon: float | None = None,
    alone: str | None = None,
):  # fmt: skip
    """TIS that leaves out what the learner and the sampler's engine disagree on beyond bounds, rather than bounding its weight.

    Defaults: The bounds are the authors', on the weight of each token. TRL's default correction, "sequence_mask", takes whole
      sequences; its "token_mask" is that convention with `level="token"`. The clip and `samples` are ours. `None` means what
      it does for `grpo`, and no bound of the weight.
    """
    weight = importance_weight(low=weight_low, high=weight_high, outside="mask", ratio=choice("level", level, LEVELS))
    trust = clip(low=clip_low, high=clip_high, dual=clip_dual)
    penalty, terms = kl_parts(kl_place, kl_coefficient, kl_kind, kl_unbiased, kl_bound)
    advantage = {"degrees_of_freedom": degrees_of_freedom, "epsilon": epsilon, "alone": alone}
    return _corrected(samples, trust, weight, *terms, penalty=penalty, **advantage)


@method("Squeeze the Soaked Sponge: Efficient Off-policy RFT (Liang et al., 2025)", "arXiv:2507.06892")
def remix(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.01, base_share: float = 1.0
):
    """GRPO on samples of older policies, clipped around the present one, with KL penalties to the base and the present policy.

    Defaults: All are ours.
    Unconfirmed: The size of the KL coefficient. The paper mixes the samples of the last two policies, lets `base_share` fall
      from 1 to 0.5 and later resets the base policy; replay and schedules are left to the run.
    """
    base = kl(coefficient=kl_coefficient * base_share)
    present = (kl(coefficient=kl_coefficient * (1.0 - base_share), against="proximal"),) if base_share < 1 else ()
    loss = objective(policy(trust=objectives.proximal_clip(low=clip_low, high=clip_high)), base, *present)
    return grouped(samples=samples), chain(group_advantage(), token_mean()), loss


@method(
    "DeepSeek-V3.2 (DeepSeek-AI, 2025)",
    "arXiv:2512.02556",
    conventions={"trl-1.16": {"kl_coefficient": 1e-3, "mask_above": 0.5, "scale": "std", "aggregation": "token_mean"} | TRL},
)
def deepseek_v32(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 0.01, mask_above: float = 0.1,
    scale: str = "none", degrees_of_freedom: int | None = None, epsilon: float | None = None,
    aggregation: str = "sequence_mean",
):  # fmt: skip
    """GRPO without wrong answers that the policy has left far behind, and with an unbiased estimate of the KL divergence.

    Defaults: All are ours, as the paper gives no numbers; the form is that of public code, and TRL's convention is its recipe
      for the paper. Its routing replay and its kept sampling masks are matters of the sampler.
    """
    mask = objectives.rejection(kind="k1", over="mean", high=mask_above, of="policy", among="negative")
    advantage = choices.standardised("mean", scale, degrees_of_freedom=degrees_of_freedom, epsilon=epsilon)
    estimator = chain(advantage, choice("aggregation", aggregation, choices.AGGREGATIONS))
    near = kl(coefficient=kl_coefficient, ratio=token_ratio())
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high), factors=(mask,)), near)
    return grouped(samples=samples), estimator, loss


@method("Learning to Reason under Off-Policy Guidance (Yan et al., 2025)", "arXiv:2504.14945")
def luffy(
    samples: int = 7, demonstrations: int = 1, gamma: float = 0.1, entropy_coefficient: float = 0.001, max_length: int = 8192
):
    """GRPO with a demonstration in each group, whose tokens gain most where the policy finds them unlikely: p / (p + gamma).

    Defaults: Those of the authors' script. In a run of the program, `max_length` is `rl.max_new_tokens` unless it is set.
    """
    own, given = policy(trust=unclipped()), policy(ratio=objectives.likelihood(), trust=objectives.shaped(gamma=gamma))
    bonus = ((0, objectives.entropy_bonus(coefficient=entropy_coefficient)),) if entropy_coefficient else ()
    estimator = chain(group_advantage(scale=None), constant(length=max_length))
    loss = objective(by_source(terms=((0, own), *bonus, (1, given))))
    return guided(samples=samples, demonstrations=demonstrations), estimator, loss


@method("RL-PLUS: Countering Capability Boundary Collapse of LLMs (Dong et al., 2025)", "arXiv:2508.00222")
def rl_plus(
    samples: int = 7, demonstrations: int = 1, share: float = 0.25, power: float = 0.5, entropy_coefficient: float = 0.001,
    max_length: int = 8192,
):  # fmt: skip
    """GRPO with demonstrations whose ratio is to a mixture of the old policy and an author certain of every token.

    Defaults: All but `max_length`, which is ours, are those of the authors' script, whose baseline is over samples and
      demonstration together, as here. In a run of the program, `max_length` is `rl.max_new_tokens` unless it is set.
    """
    given = policy(ratio=objectives.mixture_ratio(share=share), trust=unclipped(), factors=(objectives.focal(power=power),))
    bonus = ((0, objectives.entropy_bonus(coefficient=entropy_coefficient)),) if entropy_coefficient else ()
    strategy = guided(samples=samples, demonstrations=demonstrations)
    loss = objective(by_source(terms=((0, policy(trust=unclipped())), *bonus, (1, given))))
    return strategy, chain(group_advantage(scale=None), constant(length=max_length)), loss


@method("Tapered Off-Policy REINFORCE (Le Roux et al., 2025)", "arXiv:2503.14286")
def topr(
    samples: int = 16, baseline: float = 0.5, positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
):  # fmt: skip
    """REINFORCE off policy: right answers without importance weight, wrong ones with that of the whole answer, at most 1.

    Defaults: The bounds of the weights, `positive` of advantages of 0 or more and `negative` of others, are the paper's. Its
      rewards are 1 and -1 with a baseline of 0; rewards 1 and 0 with a baseline of 1/2 are half of that. `samples` is ours.
    """
    estimator = chain(group_advantage(baseline=constant_baseline(value=baseline), scale=None), sequence_mean_token_sum())
    loss = objective(policy(ratio=objectives.sequence_total_ratio(), trust=tapered(positive=positive, negative=negative)))
    return grouped(samples=samples), estimator, loss


@method("Score centering (2026)", "arXiv:2609.20807")
def score_centering(samples: int = 8, count: int = 64, weight_low: float | None = None, weight_high: float | None = None):
    """REINFORCE off policy, less the mean that each token's score has under the sampler, taken over its likeliest tokens.

    Defaults: All are ours; by default there is no importance weight. With `weight_low` or `weight_high` each token has that of
      the policy over the sampler, within these bounds. The sampler is the policy before the step's updates, as the learner
      computes it: what its engine and an older version would say of the other tokens is not recorded.
    Unconfirmed: title and authors of the paper, its number of tokens, its bounds and its advantages.
    """
    weighted = (weight_low, weight_high) != (None, None)
    bounds = {"low": weight_low, "high": weight_high}
    weight = importance_weight(of="policy", ratio=token_ratio(against="proximal"), **bounds)
    loss = objective(
        policy(ratio=None, trust=objectives.score_function(), factors=(weight,) if weighted else ()),
        objectives.score_centering(candidates=top(count=count, of="proximal"), **bounds),
    )
    return grouped(samples=samples), chain(group_advantage(scale=None), token_mean()), loss
