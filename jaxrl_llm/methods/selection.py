"""Methods that differ in the choice: which answers, tokens and prompts count, and how much."""

from jaxrl_llm import estimators
from jaxrl_llm.estimators import chain, constant, down_sample, gae, group_advantage, sequence_mean, token_mean, whiten
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.updates import Critic
from jaxrl_llm.objectives import objective, policy, score_function, value_loss
from jaxrl_llm.rollouts import grouped


@method("Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework (Wang et al., 2025)", "arXiv:2509.22115")
def d3s(
    samples: int = 8, rows: float = 0.5, tokens: float = 0.5, steps_total: int = 1000, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """GRPO on the answers of the step whose advantages vary most, and on their tokens with the largest |A| * entropy.

    Defaults: All are ours. `rows` and `tokens` are the shares at the start; both grow to 1 along a line within
      `steps_total` steps.
    Unconfirmed: the paper's shares at the start and at the end.
    """
    kept = down_sample(rows=(rows, 1.0), tokens=(tokens, 1.0), steps_total=steps_total)
    return grouped(samples=samples), chain(group_advantage(), kept, token_mean()), clipped(clip_low, clip_high)


@method("Policy Filtration for RLHF to Mitigate Noise in Reward Models (Zhang et al., 2024)", "arXiv:2409.06957")
def pf_ppo(
    samples: int = 5, keep: str = "best_and_random", trace_decay: float = 0.95, clip_low: float = 0.2, clip_high: float = 0.2,
    value_coefficient: float = 0.5, value_clip: float | None = 0.2, kl_coefficient: float = 0.01,
):  # fmt: skip
    """PPO on two of the answers to each prompt, the best and another, where a reward model is most reliable.

    Defaults: Samples, rows kept and KL coefficient are those of the authors' program; the others are ours, as in `ppo`.
    """
    before = estimators.policy_filtration(keep=keep), estimators.kl_in_reward(coefficient=kl_coefficient)
    estimator = chain(*before, gae(trace_decay=trace_decay), whiten(), token_mean())
    critic = Critic(loss=value_loss(coefficient=value_coefficient, clip=value_clip))
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high), critic


@method("Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm (Yao et al., 2025)", "arXiv:2509.24203")
def red_drop(samples: int = 8):
    """REINFORCE with group advantages, on no more bad answers than good ones of each group.

    Defaults: `samples` is ours.
    Unconfirmed: how many bad answers the paper leaves (as many as there are good ones, here), and which (drawn by chance).
    """
    estimator = chain(group_advantage(scale=None), estimators.drop_surplus_negatives(), token_mean())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))


@method("Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm (Yao et al., 2025)", "arXiv:2509.24203")
def red_weight(samples: int = 8, temperature: float = 1.0):
    """REINFORCE with group advantages multiplied by their exponential, so that good answers count more than bad ones.

    Defaults: The temperature is the paper's; `samples` is ours.
    """
    estimator = chain(group_advantage(scale=None), estimators.exponential_weight(temperature=temperature), token_mean())
    return grouped(samples=samples), estimator, objective(policy(ratio=None, trust=score_function()))


@method("Tiny Model, Big Logic: VibeThinker-1.5B (Xu et al., 2025)", "arXiv:2511.06221")
def mgpo(samples: int = 8, sharpness: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO whose prompts count most where half of the answers are right.

    Defaults: All are ours: the report gives no number.
    """
    estimator = chain(group_advantage(), estimators.max_entropy_weight(sharpness=sharpness), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method(
    "Entropy-guided sequence weighting for efficient exploration in RL-based LLM fine-tuning (Vanlioglu, 2025)",
    "arXiv:2503.22456",
)
def egsw(
    samples: int = 8, entropy_weight: float = 1.0, temperature: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2,
    kl_coefficient: float = 0.04,
):  # fmt: skip
    """GRPO whose answers count by a softmax, over the group, of their advantage and entropy.

    Defaults: All are ours.
    Unconfirmed: the paper's numbers, and whether the weights have a gradient (they have none here).
    """
    weight = estimators.entropy_guided_weight(entropy_weight=entropy_weight, temperature=temperature)
    loss = clipped(clip_low, clip_high, kl_coefficient=kl_coefficient)
    return grouped(samples=samples), chain(group_advantage(), weight, sequence_mean()), loss


@method(
    "SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization (Chen et al., 2025)",
    "arXiv:2505.12346",
)
def seed_grpo(
    samples: int = 8, strength: float = 0.0417, max_length: int = 3000, clip_low: float = 0.2, clip_high: float = 0.2
):
    """Dr. GRPO that learns less from prompts whose answers disagree.

    Defaults: `strength` and the form of the weight, 1 / (1 + strength * H / log G), are those of the authors' program, where it
      changes little; the paper's form is a function of a Monte-Carlo entropy. `max_length` is that of `dr_grpo`; the rest
      is ours.
    """
    weight = estimators.semantic_entropy_weight(strength=strength)
    estimator = chain(group_advantage(scale=None), weight, constant(length=max_length))
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)


@method(
    "Improving Generalization of Alignment with Human Preferences through Group Invariant Learning (Zheng et al., 2023)",
    "arXiv:2310.11971",
)
def group_invariant(samples: int = 8, strength: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO with weights that close the gap between the rewards of an easy and a hard part of the data.

    Defaults: All are ours: the paper gives no number.
    Unconfirmed: the paper was read through a review. It learns what is easy with a classifier beside the critic; here `easy` is
      given, the probability of each row. Its policy is PPO's, and its KL penalty is scaled by `easy`, which is left out.
    """
    estimator = chain(group_advantage(), estimators.group_gap_weight(strength=strength), sequence_mean())
    return grouped(samples=samples), estimator, clipped(clip_low, clip_high)
