"""Methods that go on from the middle of rows: values by sampling, trees, exits."""

import math

from jaxrl_llm.estimators import (
    chain, exit_rewards, group_advantage, segment_advantage, sequence_mean, token_mean, tree_advantage, whiten,
)  # fmt: skip
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.rollouts import branching, budgeted, exits, uncertain_tree, valued
from jaxrl_llm.rollouts.forks import separators, shares, unlikely


@method("VinePPO: Refining Credit Assignment in RL Training of LLMs (Kazemnejad et al., 2024)", "arXiv:2410.01679")
def vine_ppo(
    samples: int = 8, continuations: int = 9, separator: str = "\n", most: int = 16, clip_low: float = 0.2,
    clip_high: float = 0.2, kl_coefficient: float = 1e-4,
):  # fmt: skip
    """PPO whose values are means of completions that are sampled from the beginning of each step of reasoning.

    Defaults: 9 completions, the clip and the KL in the loss are the paper's. A step ends with `separator`; the first `most`
    count.
    """
    strategy = valued(samples=samples, continuations=continuations, cuts=separators(text=separator, most=most))
    return strategy, chain(segment_advantage(), token_mean()), clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)


@method("Segment Policy Optimization (Guo et al., 2025)", "arXiv:2505.23564")
def spo_chain(
    samples: int = 8, continuations: int = 9, below: float = 0.9, interval: int = 5, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """Segments that end at every fifth unlikely token, values by sampling from there, and a loss on unlikely tokens alone.

    Defaults: Those of the authors' script for GSM8K.
    """
    strategy = valued(samples=samples, continuations=continuations, cuts=unlikely(below=below, interval=interval))
    return strategy, chain(segment_advantage(below=below), token_mean()), clipped(clip_low, clip_high)


@method("Segment Policy Optimization (Guo et al., 2025), its trees", "arXiv:2505.23564")
def spo_tree(widths: tuple[int, ...] = (6, 6, 6), segment: int = 600, clip_low: float = 0.2, clip_high: float = 0.2):
    """A tree of segments; a segment is worth what the mean reward of the leaves below it has over that of its parent's.

    Defaults: Widths and length of segments are the paper's.
    """
    return _tree(widths, segment), chain(tree_advantage(kind="parent"), token_mean()), clipped(clip_low, clip_high)


def _tree(widths: tuple[int, ...], segment: int):
    return branching(samples=math.prod(widths), widths=widths, segment=segment)


@method("TreePO: Bridging the Gap of Policy Optimization and Efficacy (Li et al., 2025)", "arXiv:2508.17445")
def tree_po(widths: tuple[int, ...] = (8, 2), segment: int = 512, clip_low: float = 0.2, clip_high: float = 0.28):
    """A tree of segments; a leaf is compared with the leaves of each of its ancestors, by their numbers, and whitened.

    Defaults: 16 leaves, segments of 512 tokens, the clip and the weights by size are the authors'. Their trees have 2
      children a node and 2 to 8 at the root, and fall back to other nodes where rows end early, which is left out.
    """
    estimator = chain(tree_advantage(kind="ancestors"), whiten(), token_mean())
    return _tree(widths, segment), estimator, clipped(clip_low, clip_high)


@method("BranchGRPO: Stable and Efficient GRPO with Structured Branching (Li et al., 2025)", "arXiv:2509.06040")
def branch_grpo(widths: tuple[int, ...] = (4, 2, 2), segment: int = 128, clip_low: float = 0.2, clip_high: float = 0.2):
    """A tree of segments, whose values are standardised over the nodes of the same depth.

    Defaults: All are ours; the paper branches steps of denoising. Pruning is left out.
    Unconfirmed: weights of leaves in a node's value; here all are alike.
    """
    return _tree(widths, segment), chain(tree_advantage(kind="depth"), token_mean()), clipped(clip_low, clip_high)


@method("TreeRL: LLM Reinforcement Learning with On-Policy Tree Search (Hou et al., 2025)", "arXiv:2506.11902")
def tree_rl(samples: int = 6, forks: int = 2, rounds: int = 1, width: int = 2, clip_low: float = 0.2, clip_high: float = 0.2):
    """Chains that fork at their least likely tokens; a node gets what it has over the root and over its parent, by its leaves.

    Defaults: Chains (`samples`), forks, rounds and width are the paper's (6, 2, 1, 2); the clip, where the paper has the
      plain gradient, is ours. All leaves are learned, in place of 16 of 30.
    """
    strategy = uncertain_tree(samples=samples, forks=forks, rounds=rounds, width=width)
    return strategy, chain(tree_advantage(kind="global_and_local"), token_mean()), clipped(clip_low, clip_high)


@method("S-GRPO: Early Exit via Reinforcement Learning in Reasoning Models (Dai et al., 2025)", "arXiv:2505.07686")
def s_grpo(
    samples: int = 1, count: int = 8, text: str = "\nTime is limited, stop thinking and start answering.\n</think>\n\n",
    clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """Answers are forced at cuts of one path; of the right ones each later one is rewarded half as much as the one before.

    Defaults: The halving and the baseline without a deviation are the paper's, the number of exits and the text are ours.
      `samples` are paths a prompt.
    """
    strategy = exits(samples=samples, text=text, cuts=shares(count=count))
    return strategy, chain(exit_rewards(), group_advantage(scale=None), sequence_mean()), clipped(clip_low, clip_high)


@method("Optimizing Anytime Reasoning via Budget Relative Policy Optimization (Qi et al., 2025)", "arXiv:2505.13438")
def brpo(
    samples: int = 8, budgets: tuple[int, ...] = (2000, 4000, 6000, 8000), summaries: int = 4, text: str = "\n</think>\n\n",
    prior: str = "uniform", clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """Thoughts are cut at several budgets and answered from there: a thought is worth what its beginnings are worth.

    Defaults: 8 thoughts, 4 budgets up to 8000 tokens and 4 answers at each are the paper's; clip and text are ours.
    """
    strategy = budgeted(samples=samples, budgets=budgets, summaries=summaries, text=text, prior=prior)
    return strategy, chain(segment_advantage(), token_mean()), clipped(clip_low, clip_high)
