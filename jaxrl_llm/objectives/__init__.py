"""From scores to losses: pure, hashable functions `(Scores, Batch) -> (loss, metrics)`.

Everywhere `coefficient` is the factor of a whole term: a number or, where it may be a text, the name of a scalar in
`batch.coefficients`. Where nothing else is said, `ratio` is a log importance ratio and `against` names the other policy in it,
as in `token_ratio`; `low`, `high` and `dual` are those of `clip`; `huber` is the threshold of a Huber loss, None for squares.
In losses on whole rollouts `evidence` is what a token tells (nats) and `beta` the weight of the divergence from the reference;
of a group of more than `members` rollouts none has a part.
"""

from jaxrl_llm.objectives.adaptive_clips import (
    balanced_clip, bucket_normalised, entropy_clip, entropy_scale, probability_clip, proximal_clip,
)  # fmt: skip
from jaxrl_llm.objectives.base import Objective, by_source, objective, scaled, traits, weighted, weighted_sum
from jaxrl_llm.objectives.batch_statistics import token_uniform
from jaxrl_llm.objectives.candidates import group_tokens, sampled, tokens_of_group, top, vocabulary
from jaxrl_llm.objectives.contrast import (
    brevity_weight, contrastive_policy_gradient, discriminative, group_preference, log_ratio_regression, probability_ratio,
    self_improving, squared_hinge_kl, truncated_policy,
)  # fmt: skip
from jaxrl_llm.objectives.distillation import (
    alpha_divergence, cross_entropy, divergence, forward_divergence, generalised_divergence, jensen_shannon, one_token_rollouts,
    projected, reverse_divergence, score_centering,
)  # fmt: skip
from jaxrl_llm.objectives.implicit_rewards import (
    alpha_transform, anchored_ratio, beyond_shared_length, collision_ratio, jensen_shannon_transform, length_bonus, log_odds,
    token_guidance,
)  # fmt: skip
from jaxrl_llm.objectives.masks import (
    covariance_clip_mask, difficulty_weight, divergence_mask, focal, positive_advantage, ring_mask, second_moment_mask,
    top_covariance_mask, top_entropy_mask,
)  # fmt: skip
from jaxrl_llm.objectives.off_policy import batch_normalised, importance_weight, rejection, renormalised
from jaxrl_llm.objectives.policy import policy, policy_gap
from jaxrl_llm.objectives.preference import (
    bradley_terry, chosen_likelihood, chosen_token_likelihood, controlled_reference_point, given_reference_point, logistic_link,
    mean_reference_point, preference, quantile_preference, running_reference_point, saturating_link, unpaired,
)  # fmt: skip
from jaxrl_llm.objectives.preference_links import (
    apo_down_link, apo_zero_link, bco_link, biased_link, discopop_link, exo_link, hinge_link, ipo_link, nca_link, positive_link,
    robust_link, sigmoid_link, sppo_link,
)  # fmt: skip
from jaxrl_llm.objectives.ranking import pairwise_clip, pairwise_ranking, plackett_luce
from jaxrl_llm.objectives.ratios import (
    arithmetic_sequence_ratio, corrected_total_ratio, geometric_ratio, likelihood, mixture_ratio, own_ratio, prefix_ratio,
    sequence_ratio, sequence_token_ratio, sequence_total_ratio, token_ratio, turn_ratio,
)  # fmt: skip
from jaxrl_llm.objectives.regularizers import (
    entropy_bonus, kl, load_balancing, overconfidence, router_z, smoothed_entropy, top_entropy_bonus,
)  # fmt: skip
from jaxrl_llm.objectives.supervised import (
    blended, label_smoothing, negative_log_likelihood, own_mean, probability, sequence_likelihood, uncertainty,
)  # fmt: skip
from jaxrl_llm.objectives.trust import (
    cispo, clip, discovered_drift, flipped, gradient_preserving_clip, rpg, sapo, score_function, shaped, tapered, unclipped,
    vespo,
)  # fmt: skip
from jaxrl_llm.objectives.valuation import advantage_regression, dro, nft, rover, trajectory_balance
from jaxrl_llm.objectives.values import (
    categorical_value_loss, dual_value_loss, dueling_value_loss, ensemble_value_loss, expectile_value_loss,
    gaussian_value_loss, inverse_preference, quantile_value_loss, value_loss,
)  # fmt: skip

__all__ = [
    "dual_value_loss", "dueling_value_loss", "ensemble_value_loss", "expectile_value_loss", "gaussian_value_loss",
    "inverse_preference",
    "overconfidence", "Objective", "advantage_regression", "alpha_divergence", "alpha_transform", "anchored_ratio",
    "apo_down_link", "apo_zero_link", "arithmetic_sequence_ratio", "balanced_clip", "batch_normalised", "bco_link",
    "beyond_shared_length", "biased_link", "blended", "bradley_terry", "brevity_weight", "bucket_normalised", "by_source",
    "categorical_value_loss", "chosen_likelihood", "chosen_token_likelihood", "cispo", "clip", "collision_ratio",
    "contrastive_policy_gradient", "controlled_reference_point", "covariance_clip_mask", "cross_entropy", "difficulty_weight",
    "corrected_total_ratio", "discopop_link", "discovered_drift", "discriminative", "divergence", "divergence_mask", "dro",
    "entropy_bonus", "entropy_clip", "entropy_scale", "exo_link", "flipped", "focal", "forward_divergence", "geometric_ratio",
    "given_reference_point", "gradient_preserving_clip", "group_preference", "group_tokens", "hinge_link", "importance_weight",
    "ipo_link", "jensen_shannon", "jensen_shannon_transform", "kl", "label_smoothing", "length_bonus", "likelihood",
    "load_balancing", "log_odds", "log_ratio_regression", "logistic_link", "mean_reference_point", "mixture_ratio", "nca_link",
    "negative_log_likelihood", "nft", "objective", "one_token_rollouts", "own_mean", "own_ratio", "pairwise_clip",
    "pairwise_ranking", "plackett_luce", "policy", "policy_gap", "positive_advantage", "positive_link", "preference",
    "prefix_ratio", "probability", "probability_clip", "probability_ratio", "projected", "proximal_clip", "quantile_preference",
    "quantile_value_loss", "rejection", "renormalised", "reverse_divergence", "ring_mask", "robust_link", "router_z", "rover",
    "rpg", "running_reference_point", "sampled", "sapo", "saturating_link", "scaled", "score_function", "second_moment_mask",
    "self_improving", "sequence_likelihood", "sequence_ratio", "sequence_token_ratio", "sequence_total_ratio", "shaped",
    "sigmoid_link", "smoothed_entropy", "sppo_link", "squared_hinge_kl", "generalised_divergence", "score_centering", "tapered",
    "token_guidance", "token_ratio", "tokens_of_group", "token_uniform", "top", "top_covariance_mask", "top_entropy_bonus",
    "top_entropy_mask", "traits", "trajectory_balance", "truncated_policy", "turn_ratio", "uncertainty", "unclipped",
    "unpaired", "value_loss", "vespo", "vocabulary", "weighted", "weighted_sum",
]  # fmt: skip
