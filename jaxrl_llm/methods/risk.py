"""Methods that want something else than the largest mean reward: less risk, a given return, rewards within bounds."""

from jaxrl_llm import estimators
from jaxrl_llm.estimators import chain, group_advantage, leave_one_out_baseline, sequence_mean, sequence_mean_token_sum
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import kl, objective, policy, score_function
from jaxrl_llm.rollouts import grouped

REINFORCE = policy(ratio=None, trust=score_function())


@method(
    paper="On the Global Convergence of Risk-Averse Policy Gradient Methods with Expected Conditional Risk Measures (Yu and "
    "Ying, 2023)",
    url="https://arxiv.org/abs/2301.10932",
    certainty="sketch",
)
def ecrm(*, samples: int = 8, share: float = 0.5, level: float = 0.25):
    """REINFORCE on a mix of the mean reward of a group and of the mean of its worst answers (CVaR).

    Defaults: All are ours.

    Unconfirmed: The paper has a risk measure at each step of a process and learns its threshold as an action; an answer is one
      step here, and the threshold is the quantile of its group. With few samples the CVaR of a group is biased upwards.
    """
    estimator = chain(estimators.cvar_advantage(share=share, level=level), sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(REINFORCE)


@method(
    paper="Counterfactual Explanation Policies in RL (Deshmukh et al., 2023)",
    url="https://arxiv.org/abs/2307.13192",
    certainty="sketch",
)
def counterpol(*, samples: int = 8, target: float = 0.5, kl_coefficient: float = 0.1):
    """The nearest policy with a given mean reward: descent on its squared distance from the target, with a KL to the reference.

    Defaults: All are ours.

    Unconfirmed: The paper's coefficient, and its estimate of the KL divergence (here k2, whose gradient is that of the KL). It
      takes the present policy for the reference from time to time ("pivoting"): `rl.reference.every` with `share=1`.
    """
    advantage = group_advantage(baseline=leave_one_out_baseline(), scale=None)
    return (
        grouped(samples=samples),
        chain(advantage, estimators.target_return(target=target), sequence_mean_token_sum()),
        objective(REINFORCE, kl(coefficient=kl_coefficient, kind="k2")),
    )


@method(
    paper="Off-Policy Primal-Dual Safe Reinforcement Learning (Wu et al., 2024)",
    url="https://arxiv.org/abs/2401.14758",
    certainty="sketch",
)
def cal(
    *,
    samples: int = 8,
    cost: int = 1,
    limit: float = 0.1,
    initial: float = 0.6931,
    rate: float = 0.01,
    penalty: float = 10.0,
    confidence: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """GRPO on the reward less a cost, whose weight grows while a cautious estimate of the mean cost is above its limit.

    Defaults: `initial`, `penalty` (c) and `confidence` (k) are those of the authors' program; the rest is ours. `cost` is the
      number of the reward component that is a cost, from 0 in the order of the rewards; all others are summed up.

    Unconfirmed: The paper's caution is about an ensemble of critics of the cost, here about the mean over the step's answers.
      Its program follows the logarithm of the multiplier with Adam; here the multiplier itself is moved, and kept from below 0.
    """
    estimator = estimators.lagrangian_advantage(
        limit=limit, cost=cost, initial=initial, rate=rate, penalty=penalty, confidence=confidence
    )
    return grouped(samples=samples), chain(estimator, sequence_mean()), clipped(clip_low, clip_high)


@method(
    paper="Efficient Discovery of Pareto Front for Multi-Objective Reinforcement Learning (Liu et al., 2024)",
    url="https://arxiv.org/abs/2410.02236",
    certainty="sketch",
)
def c_morl(
    *,
    samples: int = 8,
    component: int = 0,
    returns: tuple[float, ...] = (0.5,),
    share: float = 0.9,
    sharpness: float = 20.0,
    margin: float = 1e-3,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
):
    """GRPO on one reward component, with log barriers that keep the others above a share of what a known policy has of them.

    Defaults: `share` (beta), `sharpness` (t), the smallest slack and the clip are those of the authors' program. `returns` are
      the known policy's mean rewards in the components beside `component`, in their order; 0.5 stands for one that is to be
      set.

    Unconfirmed: Below the smallest slack, and so where a constraint is violated, the authors' program has no gradient of
      it; here the barrier goes on along its tangent and leads back. The choice of policies by crowd distance and the training
      for several weights before it are matters of the runs. The authors standardise the advantages of the one component.
    """
    bounds = tuple(share * value for value in returns)
    estimator = estimators.log_barrier_advantage(bounds=bounds, objective=component, sharpness=sharpness, margin=margin)
    return grouped(samples=samples), chain(estimator, sequence_mean()), clipped(clip_low, clip_high)
