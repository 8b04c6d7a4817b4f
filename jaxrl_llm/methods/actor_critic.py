"""Actors with critics beyond that of PPO: off-policy corrections, soft rewards, ensembles and distributions of the return."""

from jaxrl_llm.controllers import moving_average
from jaxrl_llm.estimators import (
    blended_targets, chain, distribution_targets, gae, monte_carlo_targets, soft_reward, stock_advantage, td_targets,
    token_mean, v_trace, whiten,
)  # fmt: skip
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import choice, kl_reward
from jaxrl_llm.methods.updates import Critic, Wrap
from jaxrl_llm.objectives import (
    ensemble_value_loss, entropy_bonus, gaussian_value_loss, objective, policy, quantile_value_loss, score_function, value_loss,
)  # fmt: skip
from jaxrl_llm.objectives.heads import ensemble, gaussian, quantiles, tail_mean, wang
from jaxrl_llm.rollouts import grouped

RISKS = {"tail_mean": lambda level: tail_mean(share=level), "wang": lambda level: wang(shift=level)}


def _gradient(*terms):
    """The plain policy gradient."""
    return objective(policy(ratio=None, trust=score_function()), *terms)


def _ppo(samples: int, *before) -> tuple:
    """PPO without its critic: generalised advantages, whitened, under a clip, all with their usual numbers."""
    return grouped(samples=samples), chain(*before, gae(), whiten(), token_mean()), clipped()


def _soft(samples: int, alpha: float, target_entropy: float | None) -> tuple:
    """The policy gradient of rewards that the entropy is part of, at the price alpha; see `soft_reward`."""
    return grouped(samples=samples), chain(soft_reward(initial=alpha, target=target_entropy), gae(), token_mean()), _gradient()


def _twins(td_steps: int, follow: float) -> Critic:
    """Two critics of which the lower one counts, also in the averages that they learn from."""
    return Critic(loss=ensemble_value_loss(), head=ensemble(), targets=td_targets(steps=td_steps), follow=follow)


@method(
    "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures (Espeholt et al., 2018)",
    "arXiv:1802.01561",
)
def impala(samples: int = 4, clip_rho: float = 1.0, clip_c: float = 1.0, entropy_coefficient: float = 0.01):
    """Actor-critic whose targets and advantages are corrected, by truncated ratios of tokens, for the age of the sampler.

    Defaults: Both truncations are the paper's, and so is the factor of the value. The entropy's is within the range of its
      sweeps; samples are ours, and no discount. With `rl.staleness` 0 it is an actor-critic on policy.
    """
    estimator = chain(v_trace(clip_rho=clip_rho, clip_c=clip_c), token_mean())
    loss = _gradient(entropy_bonus(coefficient=entropy_coefficient))
    return grouped(samples=samples), estimator, loss, Critic(loss=value_loss(clip=None))


@method("Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018)", "arXiv:1812.05905")
def sac(samples: int = 4, alpha: float = 0.01, target_entropy: float | None = 0.5, td_steps: int = 8, follow: float = 0.005):
    """The entropy of tokens is part of their reward, at a price that follows a target; of two critics the lower one counts.

    Defaults: `follow` is the paper's. All else is ours: samples, the target entropy (nats a token), and `td_steps`, after which
      targets read the averaged critics, where the paper has 1. `target_entropy=None` keeps alpha.
    Unconfirmed: the port. A token leads to one state alone, so that values of states stand for those of actions, and the policy
      learns from the score function of its samples in place of an expectation over the vocabulary.
    """
    return *_soft(samples, alpha, target_entropy), _twins(td_steps, follow)


@method("ACE: Off-Policy Actor-Critic with Causality-Aware Entropy Regularization (Ji et al., 2024)", "arXiv:2402.14528")
def ace(samples: int = 4, alpha: float = 0.01, every: int = 200, largest: float = 0.5, threshold: float = 0.025):
    """Soft actor-critic whose policy goes part of the way back to its beginning, the further, the more of it is dormant.

    Defaults: As in `sac`; all are ours. `every` are steps between resets, `largest` is a part of the way.
    Unconfirmed: the weights of the entropy of single actions, which the paper finds by causal discovery, are left out: they are
      those of the dimensions of an action, and a token has one.
    """
    reset = {"every": every, "largest": largest, "threshold": threshold}
    return *_soft(samples, alpha, 0.5), _twins(8, 0.005), Wrap({"soft_reset": reset})


@method(
    paper="Distributional Soft Actor-Critic (Duan et al., 2020)", url="https://arxiv.org/abs/2001.02811", certainty="sketch"
)
def dsac(samples: int = 4, alpha: float = 0.01, target_entropy: float | None = 0.5, bound: float = 1.0, follow: float = 0.001):
    """Soft actor-critic with a normal distribution of the return, which learns from draws of the next state's.

    Defaults: `follow` is the paper's; all else is ours. `bound` is of the error that the deviation sees.
    Unconfirmed: the port, as in `sac`, and the paper's bound.
    """
    loss = gaussian_value_loss(bound=bound, samples="return_samples")
    targets = distribution_targets(kind="gaussian", expected=False)
    return *_soft(samples, alpha, target_entropy), Critic(loss=loss, head=gaussian(), targets=targets, follow=follow)


@method("Distributional Soft Actor-Critic with Three Refinements (Duan et al., 2023)", "arXiv:2310.05858")
def dsac_t(
    samples: int = 4, alpha: float = 0.01, target_entropy: float | None = 0.5, bound: float = 3.0, follow: float = 0.005
):
    """DSAC with expected targets for the mean, two critics of which the lower one counts, and gradients that know the variance.

    Defaults: `bound`, of the error that the deviation sees, in mean deviations, and the share of all averages are the paper's;
      all else is ours.
    Unconfirmed: the port, as in `sac`. Bound and scale are those of the steps before; in the first step there are none.
    """
    controllers = {
        "deviation_bound": moving_average(measure="critic/deviation", factor=bound, decay=1.0 - follow),
        "gradient_scale": moving_average(measure="critic/variance", decay=1.0 - follow),
    }
    loss = gaussian_value_loss(samples="return_samples", bound="deviation_bound", scale="gradient_scale")
    critic = Critic(loss=loss, head=gaussian(members=2), targets=distribution_targets(kind="gaussian"), follow=follow)
    return *_soft(samples, alpha, target_entropy), controllers, critic


@method("Robust Quadrupedal Locomotion via Risk-Averse Policy Learning (Shi et al., 2023)", "arXiv:2308.09405")
def risk_averse_ppo(
    samples: int = 4, risk: str = "tail_mean", level: float = 0.5, quantile_count: int = 32, follow: float = 0.05
):
    """PPO whose critic has quantiles of the return, and whose advantages are against their mean under distorted levels.

    Defaults: Decay and clip are those of PPO; all else is ours. `level` is the share of a "tail_mean" (the lowest returns
      alone), or the shift of "wang".
    Unconfirmed: the paper's distortion, and how it makes the targets of quantiles; here they are those of the next state's
      averaged critic.
    """
    head = quantiles(count=quantile_count, risk=choice("risk", risk, RISKS)(level))
    loss, targets = quantile_value_loss(samples="return_samples"), distribution_targets(kind="quantiles")
    return *_ppo(samples), Critic(loss=loss, head=head, targets=targets, follow=follow)


@method("Optimizing Return Distributions with Distributional Dynamic Programming (Pires et al., 2025)", "arXiv:2501.13028")
def stock_cvar(samples: int = 4, share: float = 0.25, quantile_count: int = 32):
    """PPO for the mean of the lowest returns: what an answer has earned so far shifts the distribution of what is to come.

    Defaults: All are ours. `share` is that of the returns that count.
    Unconfirmed: the port. The paper learns values of actions for every stock; here the critic reads the text, from which all
      rewards follow, and the stock is added to its quantiles.
    """
    critic = Critic(loss=quantile_value_loss(), head=quantiles(count=quantile_count), targets=monte_carlo_targets())
    return grouped(samples=samples), chain(stock_advantage(share=share), whiten(), token_mean()), clipped(), critic


@method("Efficient Online RL Fine Tuning with Offline Pre-trained Policy Only (Xiao et al., 2025)", "arXiv:2505.16856")
def porl(samples: int = 4, warmup_steps: int = 20, kl_coefficient: float = 0.0):
    """PPO whose critic learns the returns of the policy as it is given, before that policy moves.

    Defaults: Decay and clip are those of PPO; all else is ours.
    Unconfirmed: the length of the warm-up. The paper's critic is of actions; here it learns plain returns of states, so that
      nothing of it is bootstrapped.
    """
    critic = Critic(loss=value_loss(clip=None), targets=monte_carlo_targets(), warmup_steps=warmup_steps)
    return *_ppo(samples, *kl_reward(kl_coefficient, None)), critic


@method("Improving Offline RL by Blending Heuristics (Geng et al., 2023)", "arXiv:2306.00321")
def hubl(samples: int = 4, share: float = 0.5, by: str = "rank", follow: float = 0.005):
    """PPO whose critic trusts the returns of samples the more, the better these are, and its own average for the rest.

    Defaults: All are ours; the paper tries "constant", "sigmoid" and "rank".
    Unconfirmed: the port. The paper relabels the data of offline methods; here each step's samples are relabelled.
    """
    targets = blended_targets(share=share, by=by)
    return *_ppo(samples), Critic(loss=value_loss(clip=None), targets=targets, follow=follow)
