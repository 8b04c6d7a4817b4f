"""Methods without an importance ratio in the loss: masks, squares, likelihoods and regressions keep the policy near."""

from jaxrl_llm import estimators, objectives
from jaxrl_llm.compose import require
from jaxrl_llm.estimators import chain, drop_uniform_groups, group_advantage, mean_scale, sequence_mean, token_mean
from jaxrl_llm.methods.advantages import BESSEL
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.choices import VERL, choice, standardised
from jaxrl_llm.objectives import importance_weight, kl, objective, policy, score_function, sequence_ratio, token_ratio
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method(
    "GPG: Group Policy Gradient (Chu et al., 2025)",
    "arXiv:2504.02546",
    conventions={"verl-0.10": {"alpha": "nonzero", "alone": "none"}},
)
def gpg(samples: int = 8, alpha: str = "informative", f_norm: float = 1.0, alone: str | None = None):
    """REINFORCE with the group's mean as baseline, over informative groups alone, without ratio, clip and KL.

    Defaults: `samples` is ours. `alpha` is the paper's, all samples over those of informative groups, which is the
      normalisation over the tokens of informative groups; "nonzero" is that of verl, all samples over those of a score other
      than 0, and "none" is 1. The paper's `f_norm`, which divides the advantages, is 1. `alone=None` means that a row
      without others learns nothing.
    """
    require(f_norm > 0, "f_norm", f_norm, "above 0")
    plain = None if f_norm == 1 else estimators.constant_scale(value=f_norm)
    scales = {"informative": plain, "nonzero": estimators.nonzero_share_scale(factor=f_norm), "none": plain}
    baseline, scale = estimators.mean_baseline(alone=alone or "own"), choice("alpha", alpha, scales)
    filters = (drop_uniform_groups(),) if alpha == "informative" else ()
    reject_inert(bool(filters) and alone is not None, "alone", alone, "alpha 'informative' leaves groups of one out")
    estimator = chain(*filters, group_advantage(baseline=baseline, scale=scale), token_mean())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))


@method("Maximum Likelihood Reinforcement Learning (Tajwar et al., 2026)", "arXiv:2602.02710")
def maxrl(samples: int = 8):
    """REINFORCE with the group's mean as baseline and as scale: the gradient of the log of the success rate, for rewards 0, 1.

    Defaults: `samples` is ours.
    """
    estimator = chain(group_advantage(scale=mean_scale()), estimators.sequence_mean_token_sum())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))


@method(
    "Offline Regularised Reinforcement Learning for LLMs Alignment (Richemond et al., 2024)",
    "arXiv:2405.19107",
    conventions={"verl-0.10": VERL},
)
def dro(
    samples: int = 8, beta: float = 0.05, degrees_of_freedom: int | None = None, epsilon: float | None = None,
    alone: str | None = None,
):  # fmt: skip
    """REINFORCE with group advantages and a squared log-ratio to the sampler in place of ratio and clip.

    Defaults: `samples` and `beta` are ours (verl has no default for it). `None` means what it does for `grpo`. This is the
      loss of that name in verl: token by token, and with group advantages. The paper regresses r - V on `beta` times the
      log-ratio of whole answers, with a learned V.
    """
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone), token_mean())
    return grouped(samples=samples), estimator, objective(policy(trust=objectives.dro(beta=beta)))


@method("Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm (Yao et al., 2025)", "arXiv:2509.24203")
def rec(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, far_low: float | None = None, far_high: float | None = None
):
    """REINFORCE with the group's mean as baseline and the mask of the clip, but no importance weight.

    Defaults: The one-sided mask with the paper's bounds. With `far_low` (0.6 in the paper) or `far_high` (2.0) it is a ring.
      `samples` is ours.
    """
    ring = {"two_sided": True, "far_low": far_low, "far_high": far_high} if (far_low, far_high) != (None, None) else {}
    mask = objectives.ring_mask(low=clip_low, high=clip_high, **ring)
    loss = objective(policy(trust=score_function(), factors=(mask,)))
    return grouped(samples=samples), chain(group_advantage(scale=None), token_mean()), loss


@method("Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm (Yao et al., 2025)", "arXiv:2509.24203")
def opmd(samples: int = 8, temperature: float = 0.1):
    """REINFORCE with the group's mean as baseline and `temperature` times the squared log-ratio of each token.

    Defaults: Both are ours.
    """
    loss = objective(policy(trust=objectives.dro(beta=2 * temperature)))
    return grouped(samples=samples), chain(group_advantage(scale=None), token_mean()), loss


@method("Asymmetric REINFORCE for off-Policy RL (Arnal et al., 2025)", "arXiv:2506.20520")
def asymre(samples: int = 8, shift: float = 0.1):
    """REINFORCE with a baseline lower than the group's mean: off policy, wrong answers had better count less than right ones.

    Defaults: The shift is the authors', who find values a little above 0 safe; `samples` is ours. The shift of the baseline is
      written as a likelihood of all answers.
    """
    loss = objective(policy(ratio=None, trust=score_function()), objectives.negative_log_likelihood(coefficient=shift))
    return grouped(samples=samples), chain(group_advantage(scale=None), token_mean()), loss


@method("Bridging Supervised Learning and Reinforcement Learning in Math Reasoning (Chen et al., 2025)", "arXiv:2505.18116")
def nft(samples: int = 16, max_rounds: int = 10, threshold: float = 0.5, negative: float = 1.0, weighting: str = "failure"):
    """Likelihood of right answers, and of wrong ones under the implicit policy that the right ones leave.

    Defaults: Those of the authors' scripts; the loss is the mean over tokens here, theirs a sum over 1000. With
      `weighting="std"` the on-policy gradient is that of GRPO for rewards 0 and 1. Scores above `threshold`, which is ours, are
      right.
    """
    estimator = chain(estimators.row_statistics(threshold=threshold), drop_uniform_groups(), token_mean())
    loss = objective(policy(trust=objectives.nft(negative=negative, weighting=weighting)))
    return dynamic_sampling(samples=samples, max_rounds=max_rounds), estimator, loss


@method("Random Policy Valuation is Enough for LLM Reasoning (He et al., 2025)", "arXiv:2509.24981")
def rover(samples: int = 8, rho: float = 1.0):
    """Regression of the log-ratio, as the value of a uniformly random policy, on the reward and the value of what follows.

    Defaults: Those of the authors' code: 8 samples for mathematics, where they also divide by the deviation; here, as for their
      Countdown task, they do not.
    """
    loss = objective(policy(ratio=token_ratio(against="proximal"), trust=objectives.rover(rho=rho)))
    return grouped(samples=samples), chain(group_advantage(scale=None), token_mean()), loss


@method("DeepVideo-R1: Difficulty-aware Regressive GRPO (Park et al., 2025)", "arXiv:2506.07464")
def reg_grpo(samples: int = 8, kl_coefficient: float = 0.04, epsilon: float = 1e-4):
    """Regression of GRPO's advantages on the log-ratios of the answers, standardised within the group.

    Defaults: All are ours. `epsilon`, which the paper leaves out, is added to the deviation of the log-ratios, which is 0 while
      the policy has not moved. The paper's augmentation of questions that are too easy or too hard is left out.
    """
    loss = objective(objectives.advantage_regression(epsilon=epsilon), kl(coefficient=kl_coefficient))
    return grouped(samples=samples), chain(group_advantage(), sequence_mean()), loss


@method("FlowRL: Matching Reward Distributions for LLM Reasoning (Zhu et al., 2025)", "arXiv:2509.15207")
def flowrl(samples: int = 8, beta: float = 15.0, clip_low: float = 0.2, clip_high: float = 0.28):
    """Squared gap between the policy and the reference tilted by the reward, with a learned partition function of the prompt.

    Defaults: `beta` is the paper's, the bounds of the weight are those of the authors' script; `samples` is ours. log Z is a
      value head on the state before the first action; the authors' module has three layers.
    Unconfirmed: what their module reads of the prompt, and whether the policy has a gradient through it, as here.
    """
    weight = importance_weight(of="policy", ratio=sequence_ratio(), low=1.0 - clip_low, high=1.0 + clip_high)
    loss = objective(objectives.trajectory_balance(beta=beta, factors=(weight,)))
    return grouped(samples=samples), chain(group_advantage(scale=BESSEL), sequence_mean()), loss
