"""From rewards to advantages and weights: pure functions from `Rollouts` to `Rollouts`.

Everywhere `rollouts` are N rows with K reward components, in groups that may differ in size, `reward_weights` the factors of
these components, 1 by default, `state` what the estimator remembers, `key` that of the step, `discount` the gamma of returns
and `trace_decay` their lambda. `component` is the reward that is read or changed. A row is right where this reward, or without
a `component` its total reward, is above `threshold`. `epsilon` is added to a divisor; where it may be None, nothing is divided.

Baselines and scales are of a pool of rows, `over`: "group", "batch", or the name of integers [N] in `rollouts.extras`, rows of
the group that share it. A row that is `alone` in its pool has "own", its own score as baseline, so that it learns nothing, and
the deviation of one number as scale; or "none", as in verl, a baseline of 0 and a scale of 1.
"""

from jaxrl_llm.estimators.base import Estimator, chain, stateful, stateless
from jaxrl_llm.estimators.baselines import (
    constant_baseline, constant_scale, given_baseline, leave_one_out_baseline, length_weighted_baseline, mad_scale,
    mean_baseline, mean_scale, median_baseline, nonzero_share_scale, std_scale,
)  # fmt: skip
from jaxrl_llm.estimators.combine import among, blend
from jaxrl_llm.estimators.confidence import (
    answer_likelihood_advantage, optimal_value, self_certainty_reward, support_reward, teacher_advantage,
)  # fmt: skip
from jaxrl_llm.estimators.critic_targets import (
    blended_targets, distribution_targets, greedy_targets, monte_carlo_targets, soft_reward, stock_advantage, td_targets,
    v_trace,
)  # fmt: skip
from jaxrl_llm.estimators.entropies import (
    conflict_mean, conflict_weighting, entropy_penalty, entropy_shaped_advantage, sequence_entropy_reward,
)  # fmt: skip
from jaxrl_llm.estimators.groups import (
    best_lead_advantage, component_advantage, group_advantage, optimal_token_baseline, pass_at_k_advantage,
    prefix_tree_advantage, token_group_advantage,
)  # fmt: skip
from jaxrl_llm.estimators.returns import (
    adaptive_kl_in_reward, gae, kl_in_advantage, kl_in_reward, length_adaptive_decay, minus_value, reward_to_go,
    rewards_per_token, state_advantage, step_returns, turn_returns, turn_reward_to_go,
)  # fmt: skip
from jaxrl_llm.estimators.reweighting import (
    advantage_weight, balanced_classes, entropy_guided_weight, exponential_weight, fading, group_gap_weight,
    hidden_reward_weighting, long_wrong_penalty, max_entropy_weight, semantic_entropy_weight,
)  # fmt: skip
from jaxrl_llm.estimators.risk import (
    cvar_advantage, lagrangian_advantage, log_barrier_advantage, risk_advantage, target_return,
)  # fmt: skip
from jaxrl_llm.estimators.scalarisation import fair_rewards, objective_advantages
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.estimators.selection import (
    best_and_worst, down_sample, drop_infeasible, drop_surplus_negatives, drop_uniform_groups, moving_average_advantage,
    policy_filtration, resample_by_score, row_statistics,
)  # fmt: skip
from jaxrl_llm.estimators.shaping import (
    contrasted_bonus, cosine_length_reward, early_call_bonus, efficient_length_reward, flaw_penalty, length_penalty, mode_cost,
    overlong_penalty, relative_length_reward, repetition_penalty, round_discount, shortest_correct_penalty, tool_call_reward,
    unlikeliness_reward,
)  # fmt: skip
from jaxrl_llm.estimators.tables import (
    budget_length_reward, cumulative_advantage, format_diversity_reward, history_length_reward, role_advantage,
    tracked_advantage,
)  # fmt: skip
from jaxrl_llm.estimators.trees import exit_rewards, segment_advantage, tree_advantage
from jaxrl_llm.estimators.votes import majority_reward, novelty_reward, pseudo_label_advantage
from jaxrl_llm.estimators.weighting import (
    constant, named_weighting, pair_mean, running_scale, sequence_mean, sequence_mean_token_sum, token_mean, whiten,
)  # fmt: skip

__all__ = [
    "Estimator", "adaptive_kl_in_reward", "advantage_weight", "among", "answer_likelihood_advantage", "balanced_classes",
    "best_and_worst", "best_lead_advantage", "blend", "blended_targets", "budget_length_reward", "chain",
    "component_advantage", "conflict_mean", "conflict_weighting", "constant", "constant_baseline", "constant_scale",
    "contrasted_bonus", "cosine_length_reward", "cumulative_advantage", "cvar_advantage", "distribution_targets",
    "down_sample", "drop_infeasible", "drop_surplus_negatives", "drop_uniform_groups", "early_call_bonus",
    "efficient_length_reward", "entropy_guided_weight", "entropy_penalty", "entropy_shaped_advantage", "exit_rewards",
    "exponential_weight", "fading", "fair_rewards", "flaw_penalty", "format_diversity_reward", "gae", "given_baseline",
    "greedy_targets", "group_advantage", "group_gap_weight", "hidden_reward_weighting", "history_length_reward",
    "kl_in_advantage", "kl_in_reward", "lagrangian_advantage", "leave_one_out_baseline", "length_adaptive_decay",
    "length_penalty", "length_weighted_baseline", "log_barrier_advantage", "long_wrong_penalty", "mad_scale",
    "majority_reward", "max_entropy_weight", "mean_baseline", "mean_scale", "median_baseline", "minus_value", "mode_cost",
    "monte_carlo_targets", "moving_average_advantage", "named_weighting", "nonzero_share_scale", "novelty_reward",
    "objective_advantages", "optimal_token_baseline", "optimal_value", "overlong_penalty", "pair_mean",
    "pass_at_k_advantage", "policy_filtration", "prefix_tree_advantage", "pseudo_label_advantage", "relative_length_reward",
    "repetition_penalty", "resample_by_score", "reward_to_go", "rewards_per_token", "risk_advantage", "role_advantage",
    "round_discount", "row_scores", "row_statistics", "running_scale", "segment_advantage", "self_certainty_reward",
    "semantic_entropy_weight", "sequence_entropy_reward", "sequence_mean", "sequence_mean_token_sum",
    "shortest_correct_penalty", "soft_reward", "state_advantage", "stateful", "stateless", "std_scale", "step_returns",
    "stock_advantage", "support_reward", "target_return", "td_targets", "teacher_advantage", "token_group_advantage",
    "token_mean", "tool_call_reward", "tracked_advantage", "tree_advantage", "turn_returns", "turn_reward_to_go",
    "unlikeliness_reward", "v_trace", "whiten",
]  # fmt: skip
