"""Variants of DPO in what a pair's answers are rewarded for: divergences, tokens, lengths, weights, and added terms."""

from jaxrl_llm import objectives
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.preferences import inverse, on_pairs
from jaxrl_llm.objectives import alpha_transform, bco_link, length_bonus, preference, scaled, sigmoid_link, token_guidance


@method("Beyond Reverse KL: Generalizing DPO with Diverse Divergence Constraints (Wang et al., 2023)", "arXiv:2309.16240")
def f_dpo(beta: float = 0.1, alpha: float = 0.5):
    """DPO under an alpha-divergence: `alpha` 0 is the reverse KL, and so DPO, 1 the forward KL.

    Defaults: `beta` is DPO's; the paper tries `alpha` 0.3, 0.5 and 0.7. TRL's alpha is 1 minus this one.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), transform=alpha_transform(alpha=alpha)))


@method("Beyond Reverse KL: Generalizing DPO with Diverse Divergence Constraints (Wang et al., 2023)", "arXiv:2309.16240")
def js_dpo(beta: float = 0.1):
    """DPO under the Jensen-Shannon divergence, whose score saturates for answers that are likelier than before.

    Defaults: `beta` is DPO's.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), transform=objectives.jensen_shannon_transform()))


@method("Length Desensitization in Direct Preference Optimization (Liu et al., 2024)", "arXiv:2409.06411")
def ld_dpo(beta: float = 0.1, alpha: float = 0.5):
    """DPO in which the tokens that the longer answer has beyond the shorter one's length count less.

    Defaults: `beta` is DPO's; the paper tunes `alpha` for each model, 0.5 is ours.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), factors=(objectives.beyond_shared_length(alpha=alpha),)))


@method("Disentangling Length from Quality in Direct Preference Optimization (Park et al., 2024)", "arXiv:2403.19159")
def length_regularised_dpo(beta: float = 0.1, alpha: float = 0.01):
    """DPO with a bonus for length in the implicit reward, so that the policy does not have to imitate the longer texts.

    Defaults: `beta` is DPO's; the paper tunes `alpha`, in nats a token, 0.01 is ours.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), evidence=length_bonus(bonus=alpha * inverse("beta", beta))))


@method("WPO: Enhancing RLHF with Weighted Preference Optimization (Zhou et al., 2024)", "arXiv:2406.11827")
def wpo(beta: float = 0.01):
    """DPO in which a pair counts by how usual both answers are for the policy that learns, as if it had sampled them.

    Defaults: `beta` is that of the authors' configurations.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), importance=objectives.collision_ratio()))


@method(
    "Provably Mitigating Overoptimization in RLHF (Liu et al., 2024)",
    "arXiv:2405.16436",
    conventions={"openrlhf": {"beta": 0.5, "eta": 0.2, "average": True}},
)
def rpo(beta: float = 0.01, eta: float = 0.005, average: bool = False):
    """DPO plus imitation of the preferred answers, which bounds how far the implicit reward can be fooled.

    Defaults: Those of the authors' Zephyr-7B run, with the sum over tokens and the factor eta beta; their code for
      OpenRLHF has the mean over tokens and the factor eta.
    """
    reject_inert(eta == 0 and average, "average", average, "eta is 0")
    imitation = objectives.chosen_likelihood(coefficient=eta if average else eta * beta, average=average)
    return on_pairs(preference(link=sigmoid_link(beta=beta)), imitation)


@method(
    "TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization (Zhu et al., 2025)",
    "arXiv:2506.14574",
)
def tgdpo(beta: float = 0.1, alpha: float = 0.5):
    """DPO whose tokens count by a token-level reward, the log-ratio of a teacher that was trained by DPO before.

    Defaults: Those of the authors' configuration for Llama-3 8B.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), factors=(token_guidance(alpha=alpha, beta=beta),)))


@method(
    "Enhancing the Reasoning Ability of Multimodal LLMs via Mixed Preference Optimization (Wang et al., 2024)",
    "arXiv:2411.10442",
)
def mpo(beta: float = 0.1, relative: float = 0.8, absolute: float = 0.2, imitation: float = 1.0):
    """A mixture of three losses: which answer is better, whether each is good, and how the better one is written.

    Defaults: The paper's. Its quality loss is BCO with a running shift of rewards, which is 0 here as in TRL; the imitation is
      the mean over the tokens of all preferred answers.
    """
    return on_pairs(
        scaled(term=preference(link=sigmoid_link(beta=beta)), coefficient=relative),
        scaled(term=preference(link=bco_link(beta=beta)), coefficient=absolute),
        objectives.chosen_token_likelihood(coefficient=imitation),
    )


@method("Reward-Augmented Data Enhances Direct Preference Alignment of LLMs (Zhang et al., 2024)", "arXiv:2410.08067")
def reward_augmented_dpo(beta: float = 0.01, smoothing: float = 0.3):
    """DPO on pairs whose prompts name the score of one of the answers, which is then the preferred one.

    Defaults: Those of the authors' configuration for Qwen2. The pairs are made by `data.goals.goal_conditioned`.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta, smoothing=smoothing)))
