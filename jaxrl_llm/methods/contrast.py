"""Methods that contrast the samples of a group with one another, as wholes, or learn from their order."""

from jaxrl_llm import estimators, objectives
from jaxrl_llm.estimators import (
    Estimator,
    chain,
    group_advantage,
    kl_in_reward,
    row_statistics,
    sequence_mean,
    token_mean,
    whiten,
)
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import kl_loss
from jaxrl_llm.methods.preferences import inverse
from jaxrl_llm.objectives import clip, contrastive_policy_gradient, discriminative, objective, policy, scaled, squared_hinge_kl
from jaxrl_llm.rollouts import grouped, grouped_with_anchors

BEHAVIOR_RATIO = objectives.token_ratio()


def scored(*before: Estimator) -> Estimator:
    """An estimator that marks rows with their scores and leaves out those without any; groups of equal size count alike."""
    return chain(*before, group_advantage(baseline=None, scale=None), row_statistics(), sequence_mean())


@method("Contrastive Policy Gradient: Aligning LLMs on sequence-level scores (Flet-Berliac et al., 2024)", "arXiv:2406.19185")
def copg(samples: int = 2, beta: float = 0.1):
    """Policy gradient whose baseline is another answer's regularised reward: right for samples of any policy.

    Defaults: The paper has 2 samples and tunes `beta`, 0.1 is ours.
    """
    return grouped(samples=samples), scored(), objective(contrastive_policy_gradient(beta=beta))


@method(
    "GVPO: Group Variance Policy Optimization for Large Language Model Post-Training (Zhang et al., 2025)", "arXiv:2504.19599"
)
def gvpo(samples: int = 4, beta: float = 0.1):
    """Within a group, distances of implicit rewards from their mean are fitted to those of the rewards.

    Defaults: Those of the authors' script, and its division of a group's squares by the number of samples less 1.
    """
    contrast = contrastive_policy_gradient(beta=beta, evidence=BEHAVIOR_RATIO)
    return grouped(samples=samples), scored(), objective(scaled(term=contrast, coefficient=beta))


@method("REBEL: Reinforcement Learning via Regressing Relative Rewards (Gao et al., 2024)", "arXiv:2404.16767")
def rebel(eta: float = 1.0):
    """Differences of the log-ratios of two samples to the policy that drew them are regressed on differences of rewards.

    Defaults: `eta`, the step size of the paper, is ours.
    """
    beta = inverse("eta", eta)
    contrast = contrastive_policy_gradient(beta=beta, evidence=BEHAVIOR_RATIO)
    return grouped(samples=2), scored(), objective(scaled(term=contrast, coefficient=4.0 * beta))


@method("Pairwise Proximal Policy Optimization (Wu et al., 2023)", "arXiv:2310.00212")
def p3o_joint(clip: float = 0.2, kl_coefficient: float = 0.1):
    """P3O's second variant: one clip for both answers, of the difference of their log-ratios.

    Defaults: All are ours.
    Unconfirmed: Which quantity of the pair the second variant clips; this one has the paper's gradient on policy.
    """
    return grouped(samples=2), scored(kl_in_reward(coefficient=kl_coefficient)), objective(objectives.pairwise_clip(clip=clip))


@method(
    "DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization (Li et al., 2025)",
    "arXiv:2505.12366",
)
def disco(samples: int = 8, temperature: float = 10.0, kl_coefficient: float = 1e3, kl_bound: float = 1e-4):
    """Correct answers are made likelier than the likeliest wrong ones of their group, under a bound of the KL.

    Defaults: Those of the authors' scripts, with log-probabilities as scores.
    """
    constraint = squared_hinge_kl(coefficient=kl_coefficient, bound=kl_bound)
    return grouped(samples=samples), scored(), objective(discriminative(temperature=temperature), constraint)


@method(
    "DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization (Li et al., 2025)",
    "arXiv:2505.12366",
)
def disco_ratio(samples: int = 8, temperature: float = 1.0, kl_coefficient: float = 1e3, kl_bound: float = 1e-4):
    """DisCO with ratios to the policy that sampled as scores of tokens.

    Defaults: Those of the authors' scripts.
    """
    contrast = discriminative(evidence=objectives.probability_ratio(), temperature=temperature)
    return grouped(samples=samples), scored(), objective(contrast, squared_hinge_kl(coefficient=kl_coefficient, bound=kl_bound))


@method("DRPO: Efficient Reasoning via Decoupled Reward Policy Optimization (Li et al., 2025)", "arXiv:2510.04474")
def drpo(
    samples: int = 8, temperature: float = 10.0, brevity: float = 0.1, max_length: int = 8192, kl_coefficient: float = 1e3,
    kl_bound: float = 1e-4,
):  # fmt: skip
    """DisCO in which short correct answers count more among the correct ones, and never less than wrong ones.

    Defaults: Those of the authors' scripts; `brevity` is their lambda. In a run of the program, `max_length` is
      `rl.max_new_tokens` unless it is set.
    """
    weighting = objectives.brevity_weight(temperature=brevity, max_length=max_length)
    contrast = discriminative(temperature=temperature, weighting=weighting)
    return grouped(samples=samples), scored(), objective(contrast, squared_hinge_kl(coefficient=kl_coefficient, bound=kl_bound))


@method("Accelerating RL for LLM Reasoning with Optimal Advantage Regression (Brantley et al., 2025)", "arXiv:2505.20686")
def a_star_po(samples: int = 1, anchors: int = 8, beta: float = 1e-3, value_beta: float = 0.5):
    """One sample a prompt: its log-ratio is regressed on reward less the optimal value of the prompt.

    Defaults: The paper's: the value is beta_1 log mean exp(r / beta_1) over 8 samples of the reference, `value_beta` = beta_1 =
      1/2, and prompts without any success are left out. The paper draws them beforehand, here that happens with the prompt.
    """
    advantage = group_advantage(baseline=estimators.given_baseline(annotation="optimal_value"), scale=None)
    estimator = chain(estimators.optimal_value(beta=value_beta), advantage, sequence_mean())
    loss = objective(objectives.log_ratio_regression(beta=beta))
    return grouped_with_anchors(samples=samples, anchors=anchors), estimator, loss


@method("On-Policy Optimization with Group Equivalent Preference (Wu et al., 2025)", "arXiv:2505.12723")
def gepo(
    samples: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, beta: float = 0.1, variance: float = 1.0,
    coefficient: float = 0.01, kl_coefficient: float = 0.01,
):  # fmt: skip
    """REINFORCE++ plus a preference of all correct answers over all wrong ones that keeps the correct ones alike.

    Defaults: `variance` and `coefficient` are the paper's, all others ours.
    Unconfirmed: `beta`, its place and the divisor of the variance were not legible, nor the coefficient and the kind (here k3)
      of the KL penalty to the reference. In the paper the groups of the preference are given programs apart from the samples;
      here the samples are the groups.
    """
    preferred = scaled(term=objectives.group_preference(beta=beta, variance=variance), coefficient=coefficient)
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high)), *kl_loss(kl_coefficient, None), preferred)
    return grouped(samples=samples), chain(estimators.reward_to_go(), whiten(), row_statistics(), token_mean()), loss


@method("Direct Preference Optimization (Rafailov et al., 2023)", "arXiv:2305.18290")
def listwise_dpo(samples: int = 4, beta: float = 0.1):
    """DPO for rankings: the Plackett-Luce likelihood of the order of the samples' rewards.

    Defaults: `beta` is DPO's; the paper has given rankings of any length in place of samples.
    """
    return grouped(samples=samples), scored(), objective(objectives.plackett_luce(beta=beta, members=samples))


@method("LiPO: Listwise Preference Optimization through Learning-to-Rank (Liu et al., 2024)", "arXiv:2402.01878")
def lipo(samples: int = 8, beta: float = 0.05):
    """Logistic losses on all pairs of a list, each by what the swap of both would change in the ranking's gain.

    Defaults: The paper has lists of 8; `beta` is ours.
    """
    return grouped(samples=samples), scored(), objective(objectives.pairwise_ranking(beta=beta, members=samples))


@method(
    "TPO: Aligning Large Language Models with Multi-branch & Multi-step Preference Trees (Liao et al., 2024)",
    "arXiv:2410.12854",
)
def tpo_tree(samples: int = 8, beta: float = 0.5):
    """A ranking loss over all answers of a preference tree rather than over pairs.

    Defaults: `beta` is that of the authors' code.
    Unconfirmed: The paper's weights of steps by their likeness are left out, so that this is LiPO's loss with another
      `beta`. The authors' code has neither gains nor the same outer function, and its value rises with its ranking loss.
    """
    return grouped(samples=samples), scored(), objective(objectives.pairwise_ranking(beta=beta, members=samples))
