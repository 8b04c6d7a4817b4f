"""Choices that the classic methods share, by the words that their options take."""

from __future__ import annotations

from jaxrl_llm.compose import Composable
from jaxrl_llm.estimators import (
    adaptive_kl_in_reward,
    kl_in_reward,
    leave_one_out_baseline,
    mean_baseline,
    sequence_mean,
    sequence_mean_token_sum,
    std_scale,
    token_mean,
)
from jaxrl_llm.methods.base import reject_inert
from jaxrl_llm.objectives import kl, token_ratio

# Over which rows the deviation of each kind of scale is taken.
SCALES = {"std": "group", "batch_std": "batch", "none": None}
BASELINES = {
    "mean": mean_baseline(),
    "leave_one_out": leave_one_out_baseline(),
    "batch_mean": mean_baseline(over="batch"),
}
AGGREGATIONS = {
    "sequence_mean": sequence_mean(),
    "token_mean": token_mean(),
    "sequence_mean_token_sum": sequence_mean_token_sum(),
}


def choice(name: str, value: str, known: dict):
    """`known[value]`, or a ValueError that lists what the option takes."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {tuple(known)}")
    return known[value]


def kl_loss(coefficient: float, kind: str | None, unbiased: bool | None = None, bound: float | None = None) -> tuple:
    """The KL term of a loss; nothing, and no reference model, where the coefficient is 0."""
    for name, value in {"kl_kind": kind, "kl_unbiased": unbiased, "kl_bound": bound}.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")
    if not coefficient:
        return ()
    return (kl(coefficient=coefficient, kind=kind or "k3", ratio=token_ratio() if unbiased else None, bound=bound),)


def kl_reward(coefficient: float, kind: str | None, target: float | None = None) -> tuple:
    """The KL penalty of a reward, its coefficient fixed or following a target; nothing where the coefficient is 0."""
    for name, value in {"kl_kind": kind, "kl_target": target}.items():
        reject_inert(coefficient == 0 and value is not None, name, value, "kl_coefficient is 0")
    if target is not None:
        return (adaptive_kl_in_reward(initial=coefficient, target=target, kind=kind or "k1"),)
    return (kl_in_reward(coefficient=coefficient, kind=kind or "k1"),) if coefficient else ()


def scale_of(kind: str, **options) -> Composable | None:
    """The scale of that name, with those options that are not None."""
    over = choice("scale", kind, SCALES)
    chosen = {name: value for name, value in options.items() if value is not None}
    for name, value in chosen.items():
        reject_inert(kind == "none", name, value, "scale is 'none'")
    return None if kind == "none" else std_scale(over=over, **chosen)
