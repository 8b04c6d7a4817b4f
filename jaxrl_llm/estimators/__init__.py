"""From rewards to advantages and weights: pure functions from `Rollouts` to `Rollouts`."""

from jaxrl_llm.estimators.anchors import optimal_value
from jaxrl_llm.estimators.asymmetry import long_wrong_penalty
from jaxrl_llm.estimators.base import Estimator, chain, stateful, stateless
from jaxrl_llm.estimators.baselines import (
    constant_baseline,
    given_baseline,
    leave_one_out_baseline,
    length_weighted_baseline,
    mean_baseline,
    median_baseline,
)
from jaxrl_llm.estimators.combine import among, blend
from jaxrl_llm.estimators.confidence import answer_likelihood_advantage, self_certainty_reward
from jaxrl_llm.estimators.conflicts import conflict_mean, conflict_weighting
from jaxrl_llm.estimators.constraints import lagrangian_advantage, log_barrier_advantage, target_return
from jaxrl_llm.estimators.critic_targets import (
    blended_targets,
    distribution_targets,
    greedy_targets,
    monte_carlo_targets,
    soft_reward,
    stock_advantage,
    td_targets,
    v_trace,
)
from jaxrl_llm.estimators.entropies import entropy_penalty, entropy_shaped_advantage, sequence_entropy_reward
from jaxrl_llm.estimators.feasibility import drop_infeasible, moving_average_advantage
from jaxrl_llm.estimators.filters import drop_uniform_groups
from jaxrl_llm.estimators.gae import gae, length_adaptive_decay, minus_value
from jaxrl_llm.estimators.groups import component_advantage, group_advantage, token_group_advantage
from jaxrl_llm.estimators.hidden_reward import hidden_reward_weighting
from jaxrl_llm.estimators.kl_penalty import adaptive_kl_in_reward
from jaxrl_llm.estimators.lengths import (
    cosine_length_reward,
    efficient_length_reward,
    length_penalty,
    relative_length_reward,
    shortest_correct_penalty,
)
from jaxrl_llm.estimators.normalisers import running_scale, whiten
from jaxrl_llm.estimators.pass_at_k import best_lead_advantage, pass_at_k_advantage
from jaxrl_llm.estimators.returns import kl_in_advantage, kl_in_reward, reward_to_go, rewards_per_token
from jaxrl_llm.estimators.reweighting import (
    advantage_weight,
    entropy_guided_weight,
    exponential_weight,
    group_gap_weight,
    max_entropy_weight,
    semantic_entropy_weight,
)
from jaxrl_llm.estimators.risk import risk_advantage
from jaxrl_llm.estimators.scalarisation import fair_rewards, objective_advantages
from jaxrl_llm.estimators.scales import constant_scale, mad_scale, mean_scale, nonzero_share_scale, std_scale
from jaxrl_llm.estimators.schedules import budget_length_reward, format_diversity_reward, history_length_reward
from jaxrl_llm.estimators.scores import row_scores
from jaxrl_llm.estimators.selection import down_sample, drop_surplus_negatives, policy_filtration, resample_by_score
from jaxrl_llm.estimators.shaping import (
    early_call_bonus,
    flaw_penalty,
    overlong_penalty,
    repetition_penalty,
    tool_call_reward,
    unlikeliness_reward,
)
from jaxrl_llm.estimators.statistics import best_and_worst, row_statistics
from jaxrl_llm.estimators.support import support_reward
from jaxrl_llm.estimators.tables import cumulative_advantage, role_advantage, tracked_advantage
from jaxrl_llm.estimators.tail_risk import cvar_advantage
from jaxrl_llm.estimators.teacher import teacher_advantage
from jaxrl_llm.estimators.token_baseline import optimal_token_baseline
from jaxrl_llm.estimators.tree import prefix_tree_advantage
from jaxrl_llm.estimators.turns import state_advantage, turn_returns
from jaxrl_llm.estimators.votes import majority_reward, novelty_reward, pseudo_label_advantage
from jaxrl_llm.estimators.weighting import (
    constant,
    named_weighting,
    pair_mean,
    sequence_mean,
    sequence_mean_token_sum,
    token_mean,
)

__all__ = [
    "fair_rewards",
    "objective_advantages",
    "advantage_weight",
    "greedy_targets",
    "stock_advantage",
    "blended_targets",
    "distribution_targets",
    "monte_carlo_targets",
    "soft_reward",
    "td_targets",
    "v_trace",
    "hidden_reward_weighting",
    "optimal_value",
    "adaptive_kl_in_reward",
    "among",
    "answer_likelihood_advantage",
    "Estimator",
    "best_and_worst",
    "best_lead_advantage",
    "blend",
    "budget_length_reward",
    "chain",
    "component_advantage",
    "conflict_mean",
    "conflict_weighting",
    "constant",
    "constant_scale",
    "constant_baseline",
    "cosine_length_reward",
    "cumulative_advantage",
    "cvar_advantage",
    "down_sample",
    "drop_infeasible",
    "drop_surplus_negatives",
    "drop_uniform_groups",
    "early_call_bonus",
    "efficient_length_reward",
    "entropy_guided_weight",
    "entropy_penalty",
    "entropy_shaped_advantage",
    "exponential_weight",
    "flaw_penalty",
    "format_diversity_reward",
    "gae",
    "given_baseline",
    "group_advantage",
    "group_gap_weight",
    "history_length_reward",
    "kl_in_advantage",
    "kl_in_reward",
    "lagrangian_advantage",
    "leave_one_out_baseline",
    "length_adaptive_decay",
    "length_penalty",
    "length_weighted_baseline",
    "log_barrier_advantage",
    "long_wrong_penalty",
    "mad_scale",
    "majority_reward",
    "max_entropy_weight",
    "mean_baseline",
    "mean_scale",
    "median_baseline",
    "minus_value",
    "moving_average_advantage",
    "novelty_reward",
    "named_weighting",
    "nonzero_share_scale",
    "optimal_token_baseline",
    "overlong_penalty",
    "pair_mean",
    "pass_at_k_advantage",
    "policy_filtration",
    "prefix_tree_advantage",
    "pseudo_label_advantage",
    "relative_length_reward",
    "repetition_penalty",
    "resample_by_score",
    "reward_to_go",
    "rewards_per_token",
    "risk_advantage",
    "role_advantage",
    "row_scores",
    "row_statistics",
    "running_scale",
    "self_certainty_reward",
    "semantic_entropy_weight",
    "sequence_entropy_reward",
    "sequence_mean",
    "sequence_mean_token_sum",
    "shortest_correct_penalty",
    "state_advantage",
    "stateful",
    "stateless",
    "std_scale",
    "token_group_advantage",
    "support_reward",
    "target_return",
    "teacher_advantage",
    "token_mean",
    "tool_call_reward",
    "tracked_advantage",
    "turn_returns",
    "unlikeliness_reward",
    "whiten",
]
