"""Methods that differ in credit: which tokens, turns and states of an answer its reward goes to, by entropies or without."""

from jaxrl_llm import estimators
from jaxrl_llm.estimators import blend, chain, gae, group_advantage, reward_to_go, sequence_mean, std_scale, token_mean
from jaxrl_llm.methods.advantages import BESSEL, clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import choice
from jaxrl_llm.methods.updates import Critic
from jaxrl_llm.objectives import arithmetic_sequence_ratio, clip, objective, policy, value_loss
from jaxrl_llm.rollouts import grouped


@method("VAPO: Efficient and Reliable RL for Advanced Reasoning Tasks (Yue et al., 2025)", "arXiv:2504.05118")
def vapo(
    samples: int = 16, decay_scale: float = 0.05, value_trace_decay: float = 1.0, clip_low: float = 0.2,
    clip_high: float = 0.28, value_coefficient: float = 0.5, value_clip: float | None = 0.2, warmup_steps: int = 50,
):  # fmt: skip
    """PPO for long answers: a trace decay that grows with the length, another for the critic, clip-higher, a mean over tokens.

    Defaults: Samples, decays and the clip are the paper's; the coefficient and the clip of the value are ours, and so is the
      number of first steps in which the critic alone learns.
    Unconfirmed: that this is enough of it. The likelihood of right answers in the paper's loss (weight 0.1) is left out.
    """
    decay = estimators.length_adaptive_decay(scale=decay_scale)
    estimator = chain(gae(trace_decay=decay, value_trace_decay=value_trace_decay), token_mean())
    critic = Critic(loss=value_loss(coefficient=value_coefficient, clip=value_clip), warmup_steps=warmup_steps)
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high), critic


@method("Exploiting Tree Structure for Credit Assignment in RL Training of LLMs (Tran et al., 2025)", "arXiv:2509.18314")
def tempo(samples: int = 7, clip_low: float = 0.2, clip_high: float = 0.28, clip_dual: float = 3.0):
    """GRPO and, where answers of the group branch, the difference that a token makes to the mean reward of those that go on.

    Defaults: All are those of the authors' scripts.
    """
    loss = clipped(clip_low, clip_high, dual=clip_dual)
    return grouped(samples=samples), chain(estimators.prefix_tree_advantage(), token_mean()), loss


@method("Group-in-Group Policy Optimization for LLM Agent Training (Feng et al., 2025)", "arXiv:2505.10978")
def gigpo(
    samples: int = 8, discount: float = 0.95, step_weight: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
):  # fmt: skip
    """GRPO on whole episodes and, added to it, on the turns of the group that began in the same state.

    Defaults: All are those of the authors' ALFWorld script. Statistics of episodes count each once; in that program each of
      its turns counts. `state` is a hash of what a turn has seen.
    """
    terms = (1.0, group_advantage(scale=BESSEL)), (step_weight, estimators.state_advantage(discount=discount))
    loss = clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)
    return grouped(samples=samples), chain(blend(*terms), token_mean()), loss


@method("Information Gain-based Policy Optimization (Wang et al., 2025)", "arXiv:2510.14967")
def igpo(samples: int = 16, discount: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2, kl_coefficient: float = 1e-3):
    """Each turn is rewarded for what it adds to the likelihood of the right answer, and learns from the sum of what follows.

    Defaults: Samples, discount and KL coefficient are the paper's; the clip is ours. The gains of turns stand in
      `token_rewards`, and whoever runs the turns puts them there.
    """
    loss = clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)
    return grouped(samples=samples), chain(estimators.turn_returns(discount=discount), sequence_mean()), loss


@method(
    "The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL (Li et al., 2026)",
    "https://raw.githubusercontent.com/mlresearch/v306/main/assets/li26hy/li26hy.pdf",
    conventions={"verl-0.10": {"tail": "none", "by": "place", "clip_dual": 3.0}},
)
def otb(
    samples: int = 4, tail: str = "own", by: str = "action", clip_low: float = 0.2, clip_high: float = 0.2,
    clip_dual: float | None = None,
):  # fmt: skip
    """Rewards-to-go with a baseline for each place, of least variance by the gradients of the logits up to it.

    Defaults: 4 samples are the paper's smallest group, the clip is ours. `tail="none"` is the option of verl that leaves the
      end of the longest answer without a baseline, and `by="place"` compares places rather than actions, as verl does where
      its estimator is not that for tools.
    """
    estimator = chain(reward_to_go(), estimators.optimal_token_baseline(tail=tail, by=by), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high, dual=clip_dual)


GTPO_AGGREGATIONS = {"sequence_mean": sequence_mean(), "conflict_mean": estimators.conflict_mean()}


@method(
    "GTPO: Trajectory-Based Policy Optimization in Large Language Models (Simoni et al., 2025)",
    "arXiv:2508.03772",
    conventions={"authors-code": {"aggregation": "conflict_mean"}},
)
def gtpo(samples: int = 8, entropy_coefficient: float = 0.1, entropy_ceiling: float = 0.7, aggregation: str = "sequence_mean"):
    """Spares tokens that bad answers share with good ones, counts those twice for the good, and drops uncertain answers.

    Defaults: Entropies and samples are those of the authors' program, which always applies the ceiling; the paper does so only
      where the model began below it. The paper has the mean over each sequence. The program divides that by the number of
      the sequence's conflict tokens too, and sums over sequences where we have the mean: convention "authors-code".
    """
    penalty = estimators.entropy_penalty(coefficient=entropy_coefficient, ceiling=entropy_ceiling)
    weighting = choice("aggregation", aggregation, GTPO_AGGREGATIONS)
    estimator = chain(group_advantage(scale=None), estimators.conflict_weighting(), penalty, weighting)
    return grouped(samples=samples), estimator, clipped()


@method("GTPO and GRPO-S: Token and Sequence-Level Reward Shaping with Policy Entropy (Tan et al., 2025)", "arXiv:2508.04349")
def gtpo_entropy(samples: int = 8, base: float = 1.0, bonus: float = 0.1, clip_low: float = 0.2, clip_high: float = 0.28):
    """Token rewards by outcome and entropy, standardised over the tokens of right and of wrong answers by themselves.

    Defaults: Base, bonus and clip are the paper's as quoted by others; `samples` is ours.
    Unconfirmed: the paper was read through a reproduction. That standardising each side by itself takes the mean off, so that
      half of the tokens of right answers lose, is what it says.
    """
    estimator = chain(estimators.entropy_shaped_advantage(base=base, bonus=bonus), token_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method("GTPO and GRPO-S: Token and Sequence-Level Reward Shaping with Policy Entropy (Tan et al., 2025)", "arXiv:2508.04349")
def grpo_s(samples: int = 8, base: float = 1.0, bonus: float = 0.1, clip_low: float = 0.2, clip_high: float = 0.28):
    """GRPO on sequences whose rewards are shaped by their mean entropy, right ones up, certain wrong ones down.

    Defaults: Base, bonus and clip are the paper's as quoted by others; `samples` is ours.
    Unconfirmed: whether advantages are those of the whole group, as here, or of the right and wrong rows by themselves; that
      the ratio of a sequence is the arithmetic mean of those of its tokens is second-hand.
    """
    reward = estimators.sequence_entropy_reward(base=base, bonus=bonus)
    estimator = chain(reward, group_advantage(scale=std_scale()), sequence_mean())
    loss = objective(policy(ratio=arithmetic_sequence_ratio(), trust=clip(low=clip_low, high=clip_high)))
    return grouped(samples=samples), estimator, loss
