"""Methods whose bounds or masks follow the whole batch: its balance, its moments, its covariances, its entropies."""

from jaxrl_llm import objectives
from jaxrl_llm.estimators import chain, group_advantage, token_group_advantage, token_mean
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import TRL, VERL, sampled, standardised
from jaxrl_llm.objectives import clip, kl, objective, policy, unclipped
from jaxrl_llm.rollouts import dynamic_sampling, grouped


@method(
    "BAPO: Stabilizing Off-Policy RL via Balanced Policy Optimization with Adaptive Clipping (Xi et al., 2025)",
    "arXiv:2510.18927",
)
def bapo(
    samples: int = 8, lowest_bound: float = 0.6, lower_bound: float = 0.9, upper_bound: float = 1.2, highest_bound: float = 3.0,
    step: float = 0.05, positive_share: float = 0.5, clip_dual: float | None = 3.0,
):  # fmt: skip
    """GRPO whose clip bounds rise in each batch until positive advantages supply half of the loss.

    Defaults: The ranges of the bounds (0.6 to 0.9, 1.2 to 3.0) and the share are the paper's. Step, order of the search and
      dual clip are those of the authors' code. `samples` is ours.
    """
    lower, upper = (lowest_bound, lower_bound), (upper_bound, highest_bound)
    trust = objectives.balanced_clip(lower=lower, upper=upper, step=step, positive_share=positive_share, dual=clip_dual)
    return grouped(samples=samples), chain(group_advantage(), token_mean()), objective(policy(trust=trust))


@method("Prosperity before Collapse (Zheng et al., 2025)", "arXiv:2510.01161")
def m2po(samples: int = 8, budget: float = 0.04, harmful_only: bool = False):
    """GRPO without a clip that leaves out the tokens of the largest log-ratios until their mean square is small.

    Defaults: The budget is the paper's. `harmful_only=False` is its text; the authors' code counts and clips only tokens whose
      clip could bind, and stops one step before the budget is used up. `samples` is ours.
    """
    mask = objectives.second_moment_mask(budget=budget, harmful_only=harmful_only)
    loss = objective(policy(trust=unclipped(), factors=(mask,)))
    return grouped(samples=samples), chain(group_advantage(), token_mean()), loss


@method(
    "The Entropy Mechanism of Reinforcement Learning (Cui et al., 2025)",
    "arXiv:2505.22617",
    conventions={"verl-0.10": {"max_rounds": None, "clip_low": 0.2, "clip_high": 0.2} | VERL},
)
def clip_cov(
    samples: int = 8, max_rounds: int | None = 8, clip_low: float = 1.0, clip_high: float = 1.0, share: float = 2e-4,
    lowest: float = 1.0, highest: float = 5.0, degrees_of_freedom: int | None = None, epsilon: float | None = None,
    alone: str | None = None,
):  # fmt: skip
    """DAPO that drops a random few of the tokens whose log-probability and advantage vary together most.

    Defaults: All but `max_rounds` are those of the authors' scripts, whose statistics are of a micro-batch, as are verl's; here
      they are of the whole batch, whatever the micro-batches. `None` means that each prompt is sampled once, and what it does
      for `grpo`.
    """
    mask = objectives.covariance_clip_mask(share=share, lowest=lowest, highest=highest, low=clip_low, high=clip_high)
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone), token_mean())
    trust = clip(low=clip_low, high=clip_high)
    return sampled(samples, max_rounds), estimator, objective(policy(trust=trust, factors=(mask,)))


@method(
    "The Entropy Mechanism of Reinforcement Learning (Cui et al., 2025)",
    "arXiv:2505.22617",
    conventions={"verl-0.10": {"max_rounds": None, "share": 2e-4, "coefficient": 0.1} | VERL},
)
def kl_cov(
    samples: int = 8, max_rounds: int | None = 8, share: float = 2e-3, coefficient: float = 1.0,
    degrees_of_freedom: int | None = None, epsilon: float | None = None, alone: str | None = None,
):  # fmt: skip
    """Unclipped policy gradient with a KL penalty on the few tokens whose log-probability and advantage vary together most.

    Defaults: All but `max_rounds` are those of the authors' scripts for 7B models, whose statistics are of a micro-batch, as
      are verl's; here they are of the whole batch, whatever the micro-batches. `None` means that each prompt is sampled once,
      and what it does for `grpo`.
    """
    few = objectives.top_covariance_mask(share=share)
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon, alone=alone), token_mean())
    loss = objective(policy(trust=unclipped()), kl(coefficient=coefficient, kind="abs", against="behavior", factors=(few,)))
    return sampled(samples, max_rounds), estimator, loss


@method(
    "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature (Liu et al., 2025)",
    "arXiv:2509.16591",
)
def hapo_heterogeneous(
    samples: int = 16, max_rounds: int = 8, clip_low: float = 0.2, clip_high: float = 0.2, widening: float = 1.0,
    strength: float = 1.0, level: float = 0.8, clip_dual: float | None = 10.0,
):  # fmt: skip
    """DAPO whose clip and advantages follow the entropy of each token.

    Defaults: All but `max_rounds` are those of the paper and of the authors' scripts.
    Unconfirmed: What it all does together: the paper's temperature that follows the entropy is a key of the configuration,
      `network.entropy_temperature`, with fixed numbers for its statistics of the step before. The authors' code never widens
      the lower bound, by a sign; here it does, as the text says.
    """
    bounds = {"low": clip_low, "high": clip_high, "level": level, "widening": widening}
    trust = objectives.entropy_clip(**bounds, dual=clip_dual)
    loss = objective(policy(trust=trust, factors=(objectives.entropy_scale(**bounds, strength=strength),)))
    return dynamic_sampling(samples=samples, max_rounds=max_rounds), chain(token_group_advantage(), token_mean()), loss


@method("Beyond the 80/20 Rule (Wang et al., 2025)", "arXiv:2506.01939", conventions={"trl-1.16": {"max_rounds": None} | TRL})
def forking_tokens(
    samples: int = 16, max_rounds: int | None = 8, share: float = 0.2, clip_low: float = 0.2, clip_high: float = 0.28,
    degrees_of_freedom: int | None = None, epsilon: float | None = None,
):  # fmt: skip
    """DAPO on the fifth of the tokens whose distributions have the highest entropy.

    Defaults: The share and DAPO's clip are the paper's; `max_rounds` is ours. The quantile is of the whole batch: TRL takes
      that of a micro-batch, and its result depends on the split; its convention is its recipe for the paper. DAPO's penalty
      for long answers is left out. `None` means that each prompt is sampled once, 0 degrees of freedom and an epsilon of 1e-6.
    """
    estimator = chain(standardised(degrees_of_freedom=degrees_of_freedom, epsilon=epsilon), token_mean())
    loss = objective(policy(trust=clip(low=clip_low, high=clip_high), factors=(objectives.top_entropy_mask(share=share),)))
    return sampled(samples, max_rounds), estimator, loss
