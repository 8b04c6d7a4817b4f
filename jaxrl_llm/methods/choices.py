"""Choices that the classic methods share, by the words that their options take, and what libraries do under every name.

Options of conventions were read from the sources of TRL 1.16.0, verl 0.9.1 (and notes on 0.10), NeMo-RL 0.6, OpenRLHF 0.11 and
Tunix 0.1.7. Where a library only has defaults, they are meant, not those of its recipes.
"""

from jaxrl_llm import estimators
from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators import Estimator, group_advantage, kl_in_reward, mean_baseline, sequence_mean, std_scale, token_mean
from jaxrl_llm.methods.base import When, reject_inert
from jaxrl_llm.objectives import kl, own_ratio, token_ratio
from jaxrl_llm.rollouts import Strategy, dynamic_sampling, grouped

# Which rows the deviation of each kind of scale is that of.
SCALES = {"std": {}, "batch_std": {"over": "batch"}, "others_std": {"others": True}, "none": None}
BASELINES = {
    "mean": (mean_baseline, {}),
    "leave_one_out": (estimators.leave_one_out_baseline, {}),
    "batch_mean": (mean_baseline, {"over": "batch"}),
}
AGGREGATIONS = {
    "sequence_mean": sequence_mean(),
    "token_mean": token_mean(),
    "sequence_mean_token_sum": estimators.sequence_mean_token_sum(),
}
# Ratios that an estimate of the KL may be multiplied by, to have the gradient of the KL.
KL_RATIOS = {False: None, True: token_ratio(), "own": own_ratio()}
# Where a KL penalty may stand but in the loss.
KL_PLACES = {"advantage": True}


def choice(name: str, value, known: dict):
    """`known[value]`, or a ValueError that lists what the option takes."""
    require(value in known, name, value, f"one of {tuple(known)}")
    return known[value]


def sampled(samples: int, max_rounds: int | None) -> Strategy:
    """Dynamic sampling, or each prompt once."""
    return grouped(samples=samples) if max_rounds is None else dynamic_sampling(samples=samples, max_rounds=max_rounds)


def _needs_kl(coefficient: float, **given) -> None:
    """Refuses options of a KL penalty that is off."""
    for name, value in given.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")


def kl_loss(
    coefficient: float, kind: str | None, unbiased: bool | str | None = None, bound: float | None = None,
    ratio_bound: float | None = None,
) -> tuple:  # fmt: skip
    """The KL term of a loss; nothing, and no reference model, where the coefficient is 0."""
    _needs_kl(coefficient, kl_kind=kind, kl_unbiased=unbiased, kl_bound=bound, kl_ratio_bound=ratio_bound)
    if not coefficient:
        return ()
    ratio = choice("kl_unbiased", unbiased or False, KL_RATIOS)
    bounds = {"bound": bound} | ({} if ratio_bound is None else {"ratio_bound": ratio_bound})
    return (kl(coefficient=coefficient, kind=kind or "k3", ratio=ratio, **bounds),)


def kl_reward(coefficient: float, kind: str | None, target: float | None = None, bound: float | None = None) -> tuple:
    """The KL penalty of a reward, its coefficient fixed or following a target; nothing where the coefficient is 0."""
    _needs_kl(coefficient, kl_kind=kind, kl_target=target, kl_bound=bound)
    if target is not None:
        return (estimators.adaptive_kl_in_reward(initial=coefficient, target=target, kind=kind or "k1", bound=bound),)
    return (kl_in_reward(coefficient=coefficient, kind=kind or "k1", bound=bound),) if coefficient else ()


def kl_parts(
    place: str | None, coefficient: float, kind: str | None, unbiased: bool | str | None = None, bound: float | None = None,
    ratio_bound: float | None = None,
) -> tuple[tuple, tuple]:  # fmt: skip
    """Estimators behind the advantage, and terms of the loss, that a KL penalty in the loss (None) or another place is."""
    _needs_kl(coefficient, kl_place=place)
    if place is None:
        return (), kl_loss(coefficient, kind, unbiased, bound, ratio_bound)
    choice("kl_place", place, KL_PLACES)
    reject_inert(ratio_bound is not None, "kl_ratio_bound", ratio_bound, "kl_place is 'advantage'; kl_bound bounds it")
    reject_inert(unbiased is not None, "kl_unbiased", unbiased, "kl_place is 'advantage', which has no gradient")
    return (estimators.kl_in_advantage(coefficient=coefficient, kind=kind or "k1", bound=bound),), ()


def scale_of(kind: str, **options) -> Composable | None:
    """The scale of that name, with those options that are not None."""
    over = choice("scale", kind, SCALES)
    chosen = {name: value for name, value in options.items() if value is not None}
    for name, value in chosen.items():
        reject_inert(kind == "none", name, value, "scale is 'none'")
    return None if kind == "none" else std_scale(**over, **chosen)


def standardised(
    baseline: str = "mean", scale: str = "std", *, degrees_of_freedom: int | None = None, epsilon: float | None = None,
    placement: str | None = None, alone: str | None = None,
) -> Estimator:  # fmt: skip
    """Group advantages of that baseline and scale, with those options that are not None.

    `alone="none"` leaves a row without others its score: neither baseline nor scale touch it.
    """
    kept = {} if alone is None else {"alone": alone}
    make, over = choice("baseline", baseline, BASELINES)
    options = {"degrees_of_freedom": degrees_of_freedom, "epsilon": epsilon, "placement": placement}
    options |= {} if scale == "none" else {"alone": alone}
    return group_advantage(baseline=make(**over, **kept), scale=scale_of(scale, **options))


BY_TOKEN = {"aggregation": "token_mean"}


def _with_kl(**options) -> dict:
    return {name: When("kl_coefficient", value) for name, value in options.items()}


# Bessel's deviation and 1e-4 outside of the root; no KL, and if any, k3 times the differentiated ratio.
TRL = {"degrees_of_freedom": 1, "epsilon": 1e-4}
TRL_KL = {"kl_coefficient": 0.0} | _with_kl(kl_unbiased=True)

# Bessel's deviation; a row alone keeps its score; the dual clip wherever there is a clip of token ratios.
VERL = {"degrees_of_freedom": 1, "alone": "none"}
VERL_CLIP = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0}
VERL_KL = {"kl_coefficient": 0.0} | _with_kl(kl_kind="k3", kl_bound=10.0)

# Mean and Bessel's deviation of the other rows, and no division where it is 0; k3 with the score-function part of its gradient.
NEMO = {"baseline": "leave_one_out", "scale": "others_std", "degrees_of_freedom": 1, "placement": "where_positive"}
NEMO_KL = {"kl_coefficient": 0.01} | _with_kl(kl_kind="k3", kl_unbiased="own", kl_bound=10.0)

# Bessel's deviation and 1e-9; k1 behind the baseline, each estimate within 10 nats.
OPENRLHF = {"degrees_of_freedom": 1, "epsilon": 1e-9}
OPENRLHF_KL = {"kl_coefficient": 0.01} | _with_kl(kl_kind="k1", kl_place="advantage", kl_bound=10.0)

# Bessel's deviation; plain k1 in the loss.
TUNIX = {"degrees_of_freedom": 1}
TUNIX_KL = {"kl_coefficient": 0.04} | _with_kl(kl_kind="k1")
