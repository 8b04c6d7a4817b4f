"""Methods that want something else than the largest mean reward: less risk, a given return, rewards or answers in bounds."""

from jaxrl_llm import estimators, objectives
from jaxrl_llm.estimators import chain, group_advantage, sequence_mean, sequence_mean_token_sum, std_scale, token_mean, whiten
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.objectives import clip, cross_entropy, divergence, kl, objective, policy, score_function, vocabulary
from jaxrl_llm.rollouts import grouped

REINFORCE = policy(ratio=None, trust=score_function())


@method(
    "On the Global Convergence of Risk-Averse Policy Gradient Methods with Expected Conditional Risk Measures (Yu "
    "and Ying, 2023)",
    "arXiv:2301.10932",
)
def ecrm(samples: int = 8, share: float = 0.5, level: float = 0.25):
    """REINFORCE on a mix of the mean reward of a group and of the mean of its worst answers (CVaR).

    Defaults: All are ours.
    Unconfirmed: The paper has a risk measure at each step of a process and learns its threshold as an action; an answer is one
      step here, and the threshold is the quantile of its group. With few samples the CVaR of a group is biased upwards.
    """
    estimator = chain(estimators.cvar_advantage(share=share, level=level), sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(REINFORCE)


@method("Counterfactual Explanation Policies in RL (Deshmukh et al., 2023)", "arXiv:2307.13192")
def counterpol(samples: int = 8, target: float = 0.5, kl_coefficient: float = 0.1):
    """The nearest policy with a given mean reward: descent on its squared distance from the target, with a KL to the reference.

    Defaults: All are ours.
    Unconfirmed: The paper's coefficient, and its estimate of the KL divergence (here k2, whose gradient is that of the KL). It
      takes the present policy for the reference from time to time ("pivoting"): `rl.reference.every` with `share=1`.
    """
    advantage = group_advantage(baseline=estimators.leave_one_out_baseline(), scale=None)
    estimator = chain(advantage, estimators.target_return(target=target), sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(REINFORCE, kl(coefficient=kl_coefficient, kind="k2"))


@method("Off-Policy Primal-Dual Safe Reinforcement Learning (Wu et al., 2024)", "arXiv:2401.14758")
def cal(
    samples: int = 8, cost: int = 1, limit: float = 0.1, initial: float = 0.6931, rate: float = 0.01, penalty: float = 10.0,
    confidence: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
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


@method("Efficient Discovery of Pareto Front for Multi-Objective Reinforcement Learning (Liu et al., 2024)", "arXiv:2410.02236")
def c_morl(
    samples: int = 8, component: int = 0, returns: tuple[float, ...] = (0.5,), share: float = 0.9, sharpness: float = 20.0,
    margin: float = 1e-3, clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
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


@method("TabNAS: Rejection Sampling for Neural Architecture Search on Tabular Datasets (Yang et al., 2022)", "arXiv:2204.07615")
def tabnas(samples: int = 8, decay: float = 0.9):
    """REINFORCE that throws infeasible answers away, and takes the gradient of the probability to be feasible off again.

    Defaults: All are ours. The answers of a group that are kept estimate the probability, where the paper draws others for it;
      on policy, the moving baseline then has no influence, and the gradient is that of the mean of the kept rewards as
      baseline. `feasible` [N] is 1 where an answer is kept. Each kept answer counts alike.
    """
    estimator = chain(estimators.drop_infeasible(), estimators.moving_average_advantage(decay=decay), sequence_mean())
    return grouped(samples=samples), estimator, objective(objectives.truncated_policy())


@method("Supported Policy Optimization for Offline Reinforcement Learning (Wu et al., 2022)", "arXiv:2202.06239")
def spot(
    samples: int = 8, coefficient: float = 0.05, kind: str = "likelihood", floor: float | None = None, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """REINFORCE++ with a reward for tokens that the reference policy knows, in the place of a KL penalty.

    Defaults: All are ours. `kind` may also be "shortfall", for a penalty below the probability `floor` alone, or "exact", for
      the cross entropy over the whole vocabulary in the loss. `floor=None` means 1e-3, and none in "exact".
    Unconfirmed: The paper constrains the density of continuous actions, which a variational autoencoder estimates, for a policy
      that a critic teaches; tokens, whose probabilities are known, are our reading.
    """
    if kind == "exact":
        reject_inert(floor is not None, "floor", floor, "kind is 'exact'")
        support = {"kind": cross_entropy(), "candidates": vocabulary(of="reference"), "against": "reference"}
        known = divergence(**support, coefficient=coefficient)
        return grouped(samples=samples), _returns(), objective(policy(trust=clip(low=clip_low, high=clip_high)), known)
    reward = estimators.support_reward(coefficient=coefficient, floor=1e-3 if floor is None else floor, kind=kind)
    return grouped(samples=samples), _returns(reward), clipped(clip_low, clip_high)


def _returns(*before) -> estimators.Estimator:
    return chain(*before, estimators.reward_to_go(), whiten(), token_mean())


@method("APO: Enhancing Reasoning Ability of MLLMs via Asymmetric Policy Optimization (Hong et al., 2025)", "arXiv:2506.21655")
def apo_view(
    samples: int = 8, base: float = 1.00001, kl_coefficient: float = 1e-3, clip_low: float = 0.2, clip_high: float = 0.2
):
    """GRPO with less KL penalty on what goes well at hard prompts, and more blame for wrong answers longer than right ones.

    Defaults: All are those of the authors' program for View-R1.
    """
    advantage = group_advantage(scale=std_scale(degrees_of_freedom=1, epsilon=1e-9))
    blame = estimators.long_wrong_penalty(base=base)
    estimator = chain(advantage, estimators.row_statistics(), blame, sequence_mean())
    near = kl(coefficient=kl_coefficient, factors=(objectives.difficulty_weight(),))
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high)), near)
    return grouped(samples=samples), estimator, loss
