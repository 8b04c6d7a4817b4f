"""Preference methods that play: the policy against its samples, its past, a reference, or a reviser of its answers."""

from jaxrl_llm import objectives
from jaxrl_llm.estimators import best_and_worst, chain, group_advantage, pair_mean, sequence_mean, sequence_mean_token_sum
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.preferences import on_pairs
from jaxrl_llm.networks.combined import geometric
from jaxrl_llm.objectives import anchored_ratio, by_source, ipo_link, kl, objective, policy, preference, scaled, sigmoid_link
from jaxrl_llm.rollouts import grouped, mixed


@method("Direct Language Model Alignment from Online AI Feedback (Guo et al., 2024)", "arXiv:2402.04792")
def online_dpo(samples: int = 2, beta: float = 0.1):
    """DPO on samples of the policy itself: the best and the worst of each group are its pair.

    Defaults: The paper's. Where all rewards of a group are equal there is no pair; TRL takes the first then.
    """
    return grouped(samples=samples), chain(best_and_worst(), pair_mean()), objective(preference(link=sigmoid_link(beta=beta)))


@method(
    "Human Alignment of Large Language Models through Online Preference Optimisation (Calandriello et al., 2024)",
    "arXiv:2403.08635",
)
def ipo_md(samples: int = 2, beta: float = 0.1, share: float = 0.125):
    """IPO on samples of a geometric mixture of policy and reference, or, with a `share` of 0, of the policy itself: online IPO.

    Defaults: `share`, the reference's in the mixture, is the least of the paper's (0.125 to 0.5); `beta`, its tau, is ours.
    """
    strategy = mixed(samples=samples, mix=geometric(share=share)) if share else grouped(samples=samples)
    return strategy, chain(best_and_worst(), pair_mean()), objective(preference(link=ipo_link(beta=beta)))


@method("Nash Learning from Human Feedback (Munos et al., 2023)", "arXiv:2312.00886")
def nash_md(beta: float = 0.1, share: float = 0.125):
    """REINFORCE on whether a sample wins against one of a mixture of policy and reference, with a KL penalty: Nash learning.

    Defaults: `beta` and `share`, the reference's in the geometric mixture, are ours; a share of 0 is self-play, in which both
      rows learn. The gradient is that of public code. Which of the two wins is decided by their rewards. Standardised scores
      of two are 2 P - 1, P being 1 for the winner and 0 for the loser, which makes the factor of P - 1/2 here 1/2.
    """
    win = scaled(term=policy(ratio=None, trust=objectives.score_function()), coefficient=0.5)
    strategy, estimator = grouped(samples=2), chain(group_advantage(), sequence_mean_token_sum())
    if not share:
        return strategy, estimator, objective(win, kl(coefficient=beta, kind="k2"))
    own = ((0, win), (0, kl(coefficient=beta, kind="k2")))
    opponent = mixed(samples=1, plain=1, mix=geometric(share=share))
    return opponent, estimator, objective(by_source(terms=own, others="mixture"))


@method("Exploratory Preference Optimization (Xie et al., 2024)", "arXiv:2405.21046")
def xpo(beta: float = 0.1, alpha: float = 1e-5):
    """DPO on pairs of a sample of the policy and one of the reference, less likelihood of the latter: deliberate exploration.

    Defaults: Both are those of the former trainer of TRL. Rows that the reference has sampled are of source 1; whoever makes
      pairs of both policies' samples marks them so. Pairs of a file are not, and without such rows this would be DPO.
    """
    # Half of a pair's weight stands on each of its rows.
    optimism = by_source(terms=((1, objectives.sequence_likelihood(coefficient=-2.0 * alpha)),), others="reference")
    return on_pairs(preference(link=sigmoid_link(beta=beta)), optimism)


@method("Iterative Nash Policy Optimization (Zhang et al., 2024)", "arXiv:2407.00617")
def inpo(eta: float = 0.0075, share: float = 1 / 3):
    """IPO against a geometric mixture of the reference and the policy of the last iteration: no-regret play against itself.

    Defaults: `eta` and `share` = tau / eta, the reference's part in the mixture, are those that others report as the
      paper's. The policy of the last iteration stands in `proximal_logp`. Where that is the policy that learns, the gradient
      is that of IPO with `share` as factor, so whoever runs the iterations has to keep it.
    """
    return on_pairs(preference(link=ipo_link(beta=eta), evidence=anchored_ratio(share=share)))


@method("Self-Improving Robust Preference Optimization (Choi et al., 2024)", "arXiv:2406.01660")
def srpo(alpha: float = 0.5, beta: float = 0.1):
    """A generator and a reviser of its answers, one network, learn from the same pairs in two squared errors.

    Defaults: Both are ours.
    Unconfirmed: The two errors are derived from the optimum of the paper's game; its own constants, and which of the two
      `alpha` weighs, could not be read.
    """
    return None, chain(sequence_mean()), objective(objectives.self_improving(alpha=alpha, beta=beta))
