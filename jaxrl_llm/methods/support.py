"""Methods that keep answers within a set: feasible ones, those that the reference knows, those not longer than right ones."""

from jaxrl_llm import estimators
from jaxrl_llm.estimators import (
    chain,
    group_advantage,
    reward_to_go,
    row_statistics,
    sequence_mean,
    std_scale,
    token_mean,
    whiten,
)
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.objectives import (
    Objective,
    clip,
    cross_entropy,
    difficulty_weight,
    divergence,
    kl,
    objective,
    policy,
    truncated_policy,
    vocabulary,
)
from jaxrl_llm.rollouts import grouped


@method(
    paper="TabNAS: Rejection Sampling for Neural Architecture Search on Tabular Datasets (Yang et al., 2022)",
    url="https://arxiv.org/abs/2204.07615",
)
def tabnas(*, samples: int = 8, decay: float = 0.9):
    """REINFORCE that throws infeasible answers away, and takes the gradient of the probability to be feasible off again.

    Defaults: All are ours. The answers of a group that are kept estimate the probability, where the paper draws others for it;
      on policy, the moving baseline then has no influence, and the gradient is that of the mean of the kept rewards as
      baseline. `feasible` [N] is 1 where an answer is kept. Each kept answer counts alike.
    """
    estimator = chain(estimators.drop_infeasible(), estimators.moving_average_advantage(decay=decay), sequence_mean())
    return grouped(samples=samples), estimator, objective(truncated_policy())


@method(
    paper="Supported Policy Optimization for Offline Reinforcement Learning (Wu et al., 2022)",
    url="https://arxiv.org/abs/2202.06239",
    certainty="sketch",
)
def spot(
    *,
    samples: int = 8,
    coefficient: float = 0.05,
    kind: str = "likelihood",
    floor: float | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """REINFORCE++ with a reward for tokens that the reference policy knows, in the place of a KL penalty.

    Defaults: All are ours. `kind` may also be "shortfall", for a penalty below the probability `floor` alone, or "exact", for
      the cross entropy over the whole vocabulary in the loss. `floor=None` means 1e-3, and none in "exact".

    Unconfirmed: The paper constrains the density of continuous actions, which a variational autoencoder estimates, for a policy
      that a critic teaches; tokens, whose probabilities are known, are our reading.
    """
    if kind == "exact":
        reject_inert(floor is not None, "floor", floor, "kind is 'exact'")
        return grouped(samples=samples), _returns(), _with_cross_entropy(clip_low, clip_high, coefficient)
    reward = estimators.support_reward(coefficient=coefficient, floor=1e-3 if floor is None else floor, kind=kind)
    return grouped(samples=samples), _returns(reward), clipped(clip_low, clip_high)


def _returns(*before) -> estimators.Estimator:
    return chain(*before, reward_to_go(), whiten(), token_mean())


def _with_cross_entropy(low: float, high: float, coefficient: float) -> Objective:
    support = {"kind": cross_entropy(), "candidates": vocabulary(of="reference"), "against": "reference"}
    return objective(policy(trust=clip(low=low, high=high)), divergence(**support, coefficient=coefficient))


@method(
    paper="APO: Enhancing Reasoning Ability of MLLMs via Asymmetric Policy Optimization (Hong et al., 2025)",
    url="https://arxiv.org/abs/2506.21655",
)
def apo_view(
    *, samples: int = 8, base: float = 1.00001, kl_coefficient: float = 1e-3, clip_low: float = 0.2, clip_high: float = 0.2
):
    """GRPO with less KL penalty on what goes well at hard prompts, and more blame for wrong answers longer than right ones.

    Defaults: All are those of the authors' program for View-R1.
    """
    scale = std_scale(degrees_of_freedom=1, epsilon=1e-9)
    return (
        grouped(samples=samples),
        chain(group_advantage(scale=scale), row_statistics(), estimators.long_wrong_penalty(base=base), sequence_mean()),
        objective(
            policy(trust=clip(low=clip_low, high=clip_high)), kl(coefficient=kl_coefficient, factors=(difficulty_weight(),))
        ),
    )
