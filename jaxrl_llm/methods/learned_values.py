"""Methods that learn values first and a policy from them: upper values of samples, frozen critics, and values in the logits."""

from jaxrl_llm.compose import Composable
from jaxrl_llm.estimators import (
    advantage_weight, chain, gae, greedy_targets, monte_carlo_targets, pair_mean, td_targets, token_mean, whiten,
)  # fmt: skip
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import kl_reward
from jaxrl_llm.methods.updates import Critic
from jaxrl_llm.objectives import (
    categorical_value_loss, dro, dual_value_loss, dueling_value_loss, expectile_value_loss, inverse_preference, objective,
    policy, score_function, token_ratio, top, value_loss,
)  # fmt: skip
from jaxrl_llm.objectives.heads import bins, soft_maximum
from jaxrl_llm.rollouts import Collection, Io, Strategy, grouped, requests_for, stateless_strategy


@stateless_strategy(annotations=("reference_samples",))
def grouped_from_reference(io: Io, prompts: int, *, samples: int = 8) -> tuple[Collection, dict]:
    """`samples` completions of each of `prompts` prompts by the reference policy; the rows have source 1."""
    return io.sample(requests_for(*io.draw(prompts), samples=samples, by="reference")), {}


def _weighted_imitation(strategy: Strategy, temperature: float) -> tuple:
    """Likelihood of each token by exp of what it adds to the value, over the temperature."""
    weights = chain(gae(trace_decay=0.0), advantage_weight(temperature=temperature), token_mean())
    return strategy, weights, objective(policy(ratio=None, trust=score_function()))


def _upper(loss: Composable, td_steps: int, follow: float) -> Critic:
    return Critic(loss=loss, targets=td_targets(steps=td_steps), follow=follow)


@method(
    "Dual RL: Unification and New Methods for Reinforcement and Imitation Learning (Sikchi et al., 2023)", "arXiv:2302.08560"
)
def f_dvl(
    samples: int = 4, share: float = 0.7, divergence: str = "chi2", temperature: float = 0.1, td_steps: int = 8,
    follow: float = 0.005,
):  # fmt: skip
    """Upper values of the samples by a convex loss, and likelihood of tokens by the exponential of what they add to them.

    Defaults: The average's share is usual; all else is ours.
    Unconfirmed: the port. A token leads to one state alone, so that the averaged critic of the next states stands for values of
      actions; `td_steps` of rewards come before it.
    """
    loss = dual_value_loss(share=share, divergence=divergence)
    return *_weighted_imitation(grouped(samples=samples), temperature), _upper(loss, td_steps, follow)


@method("Offline Reinforcement Learning with Implicit Q-Learning (Kostrikov et al., 2021)", "arXiv:2110.06169")
def iql(samples: int = 4, level: float = 0.7, temperature: float = 0.3, td_steps: int = 8, follow: float = 0.005):
    """Expectiles of the values behind the samples, and likelihood of tokens by the exponential of what they add to them.

    Defaults: Level, temperature (1 / 3 there) and the average's share are the paper's, for locomotion; all else is ours.
    Unconfirmed: the port, as in `f_dvl`.
    """
    loss = expectile_value_loss(level=level)
    return *_weighted_imitation(grouped(samples=samples), temperature), _upper(loss, td_steps, follow)


@method("Q#: Provably Optimal Distributional RL for LLM Post-Training (Zhou et al., 2025)", "arXiv:2502.20548")
def q_sharp(samples: int = 4, temperature: float = 0.1, bin_count: int = 2, low: float = 0.0, high: float = 1.0):
    """The distribution of the reference policy's returns gives the best values under a KL penalty, which the policy imitates.

    Defaults: Two bins are the paper's for rewards of 0 and 1; all else is ours. `temperature` is that of the KL penalty.
    Unconfirmed: the port. The paper guides the reference in decoding by Q; here its samples teach the policy what that gives,
      each token by exp((Q - V) / temperature). That the first part of an answer is the guided policy's own is left out.
    """
    loss = categorical_value_loss(low=low, high=high, smoothing=None)
    head = bins(count=bin_count, low=low, high=high, risk=soft_maximum(temperature=temperature))
    critic = Critic(loss=loss, head=head, targets=monte_carlo_targets())
    return *_weighted_imitation(grouped_from_reference(samples=samples), temperature), critic


@method(
    "Improving Multi-Step Reasoning Abilities of Large Language Models with Direct Advantage Policy Optimization "
    "(Liu et al., 2024)",
    "arXiv:2412.18279",
)
def direct_advantage(samples: int = 4, beta: float = 0.1, warmup_steps: int = 20, bin_count: int = 2):
    """A critic learns how likely the reference is to succeed and stays; the policy's log-ratios regress what tokens add to it.

    Defaults: All are ours but the cross-entropy of two outcomes, `bin_count` 2 of rewards from 0 to 1. In the first
      `warmup_steps` the critic alone learns.
    Unconfirmed: the paper's steps are lines and not tokens, with several candidates for each; its beta and choice of states.
    """
    loss = categorical_value_loss(low=0.0, high=1.0, smoothing=None)
    learnt = {"targets": monte_carlo_targets(), "warmup_steps": warmup_steps, "frozen": True}
    critic = Critic(loss=loss, head=bins(count=bin_count), **learnt)
    regression = objective(policy(ratio=token_ratio(against="reference"), trust=dro(beta=beta)))
    return grouped_from_reference(samples=samples), chain(gae(trace_decay=0.0), token_mean()), regression, critic


@method(
    "Lean and Mean: Decoupled Value Policy Optimization with Global Value Guidance (Huang et al., 2025)", "arXiv:2502.16944"
)
def dvpo(samples: int = 4, warmup_steps: int = 50, kl_coefficient: float = 0.2, kl_target: float | None = 6.0):
    """PPO whose critic has learned before and never does again.

    Defaults: Clip, decay and KL coefficient are those of the authors' program; the KL target (nats an answer) and the steps
      in which the critic learns are ours.
    Unconfirmed: the paper trains the critic on preference data with sample answers of the policy in front; here it learns the
      returns of the policy that the phase begins with.
    """
    learnt = {"targets": monte_carlo_targets(), "warmup_steps": warmup_steps, "frozen": True}
    estimator = chain(*kl_reward(kl_coefficient, None, kl_target), gae(), whiten(), token_mean())
    return grouped(samples=samples), estimator, clipped(), Critic(loss=value_loss(clip=None), **learnt)


@method("B-Coder: Value-Based Deep Reinforcement Learning for Program Synthesis (Yu et al., 2023)", "arXiv:2310.03173")
def b_coder(samples: int = 4, alpha: float = 0.1):
    """The logits are advantages: values of tokens learn from that of the token which the reference would say next.

    Defaults: All are ours.
    Unconfirmed: alpha, and a discount of 1. Of the paper's losses only that of the values is here; its two value functions are
      one critic, and the likeliest token's logit has no gradient.
    """
    targets = greedy_targets(alpha=alpha, greedy=top(count=1, of="reference"))
    return grouped(samples=samples), chain(targets, token_mean()), objective(), Critic(loss=dueling_value_loss(alpha=alpha))


@method("Inverse Preference Learning: Preference-based RL without a Reward Function (Hejna et al., 2023)", "arXiv:2305.15363")
def ipl(beta: float = 0.1, discount: float = 0.99, regularisation: float = 0.5):
    """Preferences between the sums of rewards that logits and a value head imply by the inverse Bellman operator, kept small.

    Defaults: `discount` is the paper's, the others are ours.
    Unconfirmed: `regularisation`. The paper extracts a policy from values by weighted imitation; here logits are both.
    """
    loss = inverse_preference(beta=beta, discount=discount, regularisation=regularisation)
    return None, chain(pair_mean()), objective(loss)
