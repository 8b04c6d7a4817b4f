"""Choices that the classic methods share, by the words that their options take."""

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators import (
    Estimator,
    adaptive_kl_in_reward,
    group_advantage,
    kl_in_advantage,
    kl_in_reward,
    leave_one_out_baseline,
    mean_baseline,
    sequence_mean,
    sequence_mean_token_sum,
    std_scale,
    token_mean,
)
from jaxrl_llm.methods.base import reject_inert
from jaxrl_llm.objectives import kl, own_ratio, token_ratio

# Which rows the deviation of each kind of scale is that of.
SCALES = {"std": {}, "batch_std": {"over": "batch"}, "others_std": {"others": True}, "none": None}
BASELINES = {
    "mean": (mean_baseline, {}),
    "leave_one_out": (leave_one_out_baseline, {}),
    "batch_mean": (mean_baseline, {"over": "batch"}),
}
AGGREGATIONS = {
    "sequence_mean": sequence_mean(),
    "token_mean": token_mean(),
    "sequence_mean_token_sum": sequence_mean_token_sum(),
}
# Ratios that an estimate of the KL may be multiplied by, to have the gradient of the KL.
KL_RATIOS = {False: None, True: token_ratio(), "own": own_ratio()}
# Where a KL penalty may stand but in the loss.
KL_PLACES = {"advantage": True}


def choice(name: str, value, known: dict):
    """`known[value]`, or a ValueError that lists what the option takes."""
    require(value in known, name, value, f"one of {tuple(known)}")
    return known[value]


def kl_loss(
    coefficient: float,
    kind: str | None,
    unbiased: bool | str | None = None,
    bound: float | None = None,
    ratio_bound: float | None = None,
) -> tuple:
    """The KL term of a loss; nothing, and no reference model, where the coefficient is 0."""
    given = {"kl_kind": kind, "kl_unbiased": unbiased, "kl_bound": bound, "kl_ratio_bound": ratio_bound}
    for name, value in given.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")
    if not coefficient:
        return ()
    ratio = choice("kl_unbiased", unbiased or False, KL_RATIOS)
    bounds = {"bound": bound} | ({} if ratio_bound is None else {"ratio_bound": ratio_bound})
    return (kl(coefficient=coefficient, kind=kind or "k3", ratio=ratio, **bounds),)


def kl_reward(coefficient: float, kind: str | None, target: float | None = None, bound: float | None = None) -> tuple:
    """The KL penalty of a reward, its coefficient fixed or following a target; nothing where the coefficient is 0."""
    for name, value in {"kl_kind": kind, "kl_target": target, "kl_bound": bound}.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")
    if target is not None:
        return (adaptive_kl_in_reward(initial=coefficient, target=target, kind=kind or "k1", bound=bound),)
    return (kl_in_reward(coefficient=coefficient, kind=kind or "k1", bound=bound),) if coefficient else ()


def kl_advantage(coefficient: float, kind: str | None, bound: float | None = None) -> tuple:
    """The KL penalty behind the baseline; nothing where the coefficient is 0."""
    for name, value in {"kl_kind": kind, "kl_bound": bound}.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")
    return (kl_in_advantage(coefficient=coefficient, kind=kind or "k1", bound=bound),) if coefficient else ()


def kl_parts(
    place: str | None,
    coefficient: float,
    kind: str | None,
    unbiased: bool | str | None = None,
    bound: float | None = None,
    ratio_bound: float | None = None,
) -> tuple[tuple, tuple]:
    """Estimators behind the advantage, and terms of the loss, that a KL penalty in the loss (None) or another place is."""
    reject_inert(coefficient == 0 and place is not None, "kl_place", place, "kl_coefficient is 0")
    if place is None:
        return (), kl_loss(coefficient, kind, unbiased, bound, ratio_bound)
    choice("kl_place", place, KL_PLACES)
    reject_inert(ratio_bound is not None, "kl_ratio_bound", ratio_bound, "kl_place is 'advantage'; kl_bound bounds it")
    reject_inert(unbiased is not None, "kl_unbiased", unbiased, "kl_place is 'advantage', which has no gradient")
    return kl_advantage(coefficient, kind, bound), ()


def scale_of(kind: str, **options) -> Composable | None:
    """The scale of that name, with those options that are not None."""
    over = choice("scale", kind, SCALES)
    chosen = {name: value for name, value in options.items() if value is not None}
    for name, value in chosen.items():
        reject_inert(kind == "none", name, value, "scale is 'none'")
    return None if kind == "none" else std_scale(**over, **chosen)


def standardised(
    baseline: str = "mean",
    scale: str = "std",
    *,
    degrees_of_freedom: int | None = None,
    epsilon: float | None = None,
    placement: str | None = None,
    alone: str | None = None,
) -> Estimator:
    """Group advantages of that baseline and scale, with those options that are not None.

    `alone="none"` leaves a row without others its score: neither baseline nor scale touch it.
    """
    kept = {} if alone is None else {"alone": alone}
    make, over = choice("baseline", baseline, BASELINES)
    options = {"degrees_of_freedom": degrees_of_freedom, "epsilon": epsilon, "placement": placement}
    options |= {} if scale == "none" else {"alone": alone}
    return group_advantage(baseline=make(**over, **kept), scale=scale_of(scale, **options))
