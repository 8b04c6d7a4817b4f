"""Actors with critics beyond that of PPO: off-policy corrections, soft rewards, ensembles and distributions of the return."""

from __future__ import annotations

from jaxrl_llm.controllers import moving_average
from jaxrl_llm.estimators import (
    blended_targets,
    chain,
    distribution_targets,
    gae,
    monte_carlo_targets,
    soft_reward,
    stock_advantage,
    td_targets,
    token_mean,
    v_trace,
    whiten,
)
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import choice, kl_reward
from jaxrl_llm.methods.critics import Critic
from jaxrl_llm.methods.updates import Wrap
from jaxrl_llm.objectives import (
    ensemble_value_loss,
    entropy_bonus,
    gaussian_value_loss,
    objective,
    policy,
    quantile_value_loss,
    score_function,
    value_loss,
)
from jaxrl_llm.objectives.heads import ensemble, gaussian, quantiles, tail_mean, wang
from jaxrl_llm.rollouts import grouped


def _gradient(*terms):
    """The plain policy gradient."""
    return objective(policy(ratio=None, trust=score_function()), *terms)


def _soft(samples: int, price: tuple, discount: float, trace_decay: float) -> tuple:
    """Strategy, estimator and objective under rewards that the entropy is part of, its price alpha, its target and its rate."""
    initial, target, rate = price
    soft = soft_reward(initial=initial, target=target, rate=rate)
    return (grouped(samples=samples), chain(soft, gae(discount=discount, trace_decay=trace_decay), token_mean()), _gradient())


@method(
    paper="IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures (Espeholt et al., 2018)",
    url="https://arxiv.org/abs/1802.01561",
)
def impala(
    *,
    samples: int = 4,
    discount: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    value_coefficient: float = 0.5,
    entropy_coefficient: float = 0.01,
):
    """Actor-critic whose targets and advantages are corrected, by truncated ratios of tokens, for the age of the sampler.

    Defaults: Both truncations and the factor of the value are the paper's. The entropy's is within the range of its sweeps;
      samples and the discount, 0.99 there, are ours. With `rl.staleness` 0 it is an actor-critic on policy.
    """
    return (
        grouped(samples=samples),
        chain(v_trace(discount=discount, clip_rho=clip_rho, clip_c=clip_c), token_mean()),
        _gradient(entropy_bonus(coefficient=entropy_coefficient)),
        Critic(loss=value_loss(coefficient=value_coefficient, clip=None)),
    )


@method(
    paper="Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018)",
    url="https://arxiv.org/abs/1812.05905",
    certainty="sketch",
)
def sac(
    *,
    samples: int = 4,
    alpha: float = 0.01,
    target_entropy: float | None = 0.5,
    alpha_rate: float = 0.01,
    discount: float = 1.0,
    trace_decay: float = 0.95,
    td_steps: int = 8,
    follow: float = 0.005,
    value_coefficient: float = 0.5,
):
    """The entropy of tokens is part of their reward, at a price that follows a target; of two critics the lower one counts.

    Defaults: The average's share is the paper's. All else is ours: samples, rates, the target entropy (nats a token), and
      `td_steps`, after which targets read the averaged critics, where the paper has 1. `target_entropy=None` keeps alpha.

    Unconfirmed: the port. A token leads to one state alone, so that values of states stand for those of actions, and the policy
      learns from the score function of its samples in place of an expectation over the vocabulary.
    """
    return (
        *_soft(samples, (alpha, target_entropy, alpha_rate), discount, trace_decay),
        Critic(
            loss=ensemble_value_loss(coefficient=value_coefficient),
            head=ensemble(),
            targets=td_targets(steps=td_steps, discount=discount),
            follow=follow,
        ),
    )


@method(
    paper="ACE: Off-Policy Actor-Critic with Causality-Aware Entropy Regularization (Ji et al., 2024)",
    url="https://arxiv.org/abs/2402.14528",
    certainty="sketch",
)
def ace(
    *,
    samples: int = 4,
    alpha: float = 0.01,
    target_entropy: float | None = 0.5,
    alpha_rate: float = 0.01,
    trace_decay: float = 0.95,
    td_steps: int = 8,
    follow: float = 0.005,
    every: int = 200,
    largest: float = 0.5,
    threshold: float = 0.025,
    value_coefficient: float = 0.5,
):
    """Soft actor-critic whose policy goes part of the way back to its beginning, the further, the more of it is dormant.

    Defaults: As in `sac`. `every` (steps between resets), `largest` (part of the way) and `threshold` are ours.

    Unconfirmed: the weights of the entropy of single actions, which the paper finds by causal discovery, are left out: they are
      those of the dimensions of an action, and a token has one.
    """
    return (
        *_soft(samples, (alpha, target_entropy, alpha_rate), 1.0, trace_decay),
        Critic(
            loss=ensemble_value_loss(coefficient=value_coefficient),
            head=ensemble(),
            targets=td_targets(steps=td_steps),
            follow=follow,
        ),
        Wrap({"soft_reset": {"every": every, "largest": largest, "threshold": threshold}}),
    )


@method(
    paper="Distributional Soft Actor-Critic (Duan et al., 2020)", url="https://arxiv.org/abs/2001.02811", certainty="sketch"
)
def dsac(
    *,
    samples: int = 4,
    alpha: float = 0.01,
    target_entropy: float | None = 0.5,
    alpha_rate: float = 0.01,
    discount: float = 1.0,
    trace_decay: float = 0.95,
    bound: float = 1.0,
    least_deviation: float = 0.1,
    follow: float = 0.001,
    value_coefficient: float = 0.5,
):
    """Soft actor-critic with a normal distribution of the return, which learns from draws of the next state's.

    Defaults: The average's share is the paper's; all else is ours. `bound` is of the error that the deviation sees.

    Unconfirmed: the port, as in `sac`, and the paper's bound.
    """
    return (
        *_soft(samples, (alpha, target_entropy, alpha_rate), discount, trace_decay),
        Critic(
            loss=gaussian_value_loss(
                coefficient=value_coefficient, bound=bound, least_deviation=least_deviation, samples="return_samples"
            ),
            head=gaussian(),
            targets=distribution_targets(kind="gaussian", discount=discount, expected=False),
            follow=follow,
        ),
    )


@method(
    paper="Distributional Soft Actor-Critic with Three Refinements (Duan et al., 2023)",
    url="https://arxiv.org/abs/2310.05858",
    certainty="sketch",
)
def dsac_t(
    *,
    samples: int = 4,
    alpha: float = 0.01,
    target_entropy: float | None = 0.5,
    alpha_rate: float = 0.01,
    discount: float = 1.0,
    trace_decay: float = 0.95,
    bound_deviations: float = 3.0,
    least_deviation: float = 0.1,
    follow: float = 0.005,
    value_coefficient: float = 0.5,
):
    """DSAC with expected targets for the mean, two critics of which the lower one counts, and gradients that know the variance.

    Defaults: `bound_deviations`, of the error that the deviation sees, in mean deviations, and the share of all averages are
      the paper's; all else is ours.

    Unconfirmed: the port, as in `sac`. Bound and scale are those of the steps before; in the first step there are none.
    """
    followed = {"decay": 1.0 - follow}
    return (
        *_soft(samples, (alpha, target_entropy, alpha_rate), discount, trace_decay),
        {
            "deviation_bound": moving_average(measure="critic/deviation", factor=bound_deviations, **followed),
            "gradient_scale": moving_average(measure="critic/variance", **followed),
        },
        Critic(
            loss=gaussian_value_loss(
                coefficient=value_coefficient,
                least_deviation=least_deviation,
                bound="deviation_bound",
                scale="gradient_scale",
                samples="return_samples",
            ),
            head=gaussian(members=2),
            targets=distribution_targets(kind="gaussian", discount=discount),
            follow=follow,
        ),
    )


RISKS = {"tail_mean": lambda level: tail_mean(share=level), "wang": lambda level: wang(shift=level)}


@method(
    paper="Robust Quadrupedal Locomotion via Risk-Averse Policy Learning (Shi et al., 2023)",
    url="https://arxiv.org/abs/2308.09405",
    certainty="sketch",
)
def risk_averse_ppo(
    *,
    samples: int = 4,
    risk: str = "tail_mean",
    level: float = 0.5,
    quantile_count: int = 32,
    huber: float = 1.0,
    trace_decay: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_coefficient: float = 0.5,
    follow: float = 0.05,
):
    """PPO whose critic has quantiles of the return, and whose advantages are against their mean under distorted levels.

    Defaults: The clip is that of PPO; all else is ours. `level` is the share of a "tail_mean" (the lowest returns alone), or
      the shift of "wang".

    Unconfirmed: the paper's distortion, and how it makes the targets of quantiles; here they are those of the next state's
      averaged critic.
    """
    return (
        grouped(samples=samples),
        chain(gae(trace_decay=trace_decay), whiten(), token_mean()),
        clipped(clip_low, clip_high),
        Critic(
            loss=quantile_value_loss(coefficient=value_coefficient, huber=huber, samples="return_samples"),
            head=quantiles(count=quantile_count, risk=choice("risk", risk, RISKS)(level)),
            targets=distribution_targets(kind="quantiles"),
            follow=follow,
        ),
    )


@method(
    paper="Optimizing Return Distributions with Distributional Dynamic Programming (Pires et al., 2025)",
    url="https://arxiv.org/abs/2501.13028",
    certainty="sketch",
)
def stock_cvar(
    *,
    samples: int = 4,
    share: float = 0.25,
    quantile_count: int = 32,
    huber: float = 1.0,
    trace_decay: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_coefficient: float = 0.5,
):
    """PPO for the mean of the lowest returns: what an answer has earned so far shifts the distribution of what is to come.

    Defaults: All are ours. `share` is that of the returns that count.

    Unconfirmed: the port. The paper learns values of actions for every stock; here the critic reads the text, from which all
      rewards follow, and the stock is added to its quantiles.
    """
    return (
        grouped(samples=samples),
        chain(stock_advantage(share=share, trace_decay=trace_decay), whiten(), token_mean()),
        clipped(clip_low, clip_high),
        Critic(
            loss=quantile_value_loss(coefficient=value_coefficient, huber=huber),
            head=quantiles(count=quantile_count),
            targets=monte_carlo_targets(),
        ),
    )


@method(
    paper="Efficient Online RL Fine Tuning with Offline Pre-trained Policy Only (Xiao et al., 2025)",
    url="https://arxiv.org/abs/2505.16856",
    certainty="sketch",
)
def porl(
    *,
    samples: int = 4,
    warmup_steps: int = 20,
    trace_decay: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_coefficient: float = 0.5,
    kl_coefficient: float = 0.0,
):
    """PPO whose critic learns the returns of the policy as it is given, before that policy moves.

    Defaults: All are ours.

    Unconfirmed: the length of the warm-up. The paper's critic is of actions; here it learns plain returns of states, so that
      nothing of it is bootstrapped.
    """
    return (
        grouped(samples=samples),
        chain(*kl_reward(kl_coefficient, None), gae(trace_decay=trace_decay), whiten(), token_mean()),
        clipped(clip_low, clip_high),
        Critic(
            loss=value_loss(coefficient=value_coefficient, clip=None), targets=monte_carlo_targets(), warmup_steps=warmup_steps
        ),
    )


@method(
    paper="Improving Offline RL by Blending Heuristics (Geng et al., 2023)",
    url="https://arxiv.org/abs/2306.00321",
    certainty="sketch",
)
def hubl(
    *,
    samples: int = 4,
    share: float = 0.5,
    by: str = "rank",
    discount: float = 1.0,
    trace_decay: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_coefficient: float = 0.5,
    follow: float = 0.005,
):
    """PPO whose critic trusts the returns of samples the more, the better these are, and its own average for the rest.

    Defaults: All are ours; the paper tries "constant", "sigmoid" and "rank".

    Unconfirmed: the port. The paper relabels the data of offline methods; here each step's samples are relabelled.
    """
    return (
        grouped(samples=samples),
        chain(gae(discount=discount, trace_decay=trace_decay), whiten(), token_mean()),
        clipped(clip_low, clip_high),
        Critic(
            loss=value_loss(coefficient=value_coefficient, clip=None),
            targets=blended_targets(share=share, by=by, discount=discount),
            follow=follow,
        ),
    )
