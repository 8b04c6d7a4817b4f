"""Methods on pairs that vary what answers are rewarded for, with a reference policy or without one."""

from jaxrl_llm import objectives
from jaxrl_llm.estimators import among, chain, pair_mean, token_mean
from jaxrl_llm.methods.base import method, reject_inert
from jaxrl_llm.methods.preferences import inverse, on_pairs
from jaxrl_llm.objectives import bco_link, biased_link, chosen_token_likelihood, hinge_link, preference, scaled, sigmoid_link


@method("Beyond Reverse KL: Generalizing DPO with Diverse Divergence Constraints (Wang et al., 2023)", "arXiv:2309.16240")
def f_dpo(beta: float = 0.1, alpha: float = 0.5):
    """DPO under an alpha-divergence: `alpha` 0 is the reverse KL, and so DPO, 1 the forward KL.

    Defaults: `beta` is DPO's; the paper tries `alpha` 0.3, 0.5 and 0.7. TRL's alpha is 1 minus this one.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), transform=objectives.alpha_transform(alpha=alpha)))


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
    evidence = objectives.length_bonus(bonus=alpha * inverse("beta", beta))
    return on_pairs(preference(link=sigmoid_link(beta=beta), evidence=evidence))


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
    return on_pairs(preference(link=sigmoid_link(beta=beta), factors=(objectives.token_guidance(alpha=alpha, beta=beta),)))


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


LIKELIHOOD = objectives.likelihood()


@method("SimPO: Simple Preference Optimization with a Reference-Free Reward (Meng et al., 2024)", "arXiv:2405.14734")
def simpo(beta: float = 2.0, gamma: float = 0.5):
    """DPO with the mean log-probability of a token as reward, no reference, and a margin that has to be won by.

    Defaults: Those of the authors' code, where gamma is given as gamma / beta = 0.25.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta, margin=gamma), evidence=LIKELIHOOD, average=True))


@method("AlphaPO: Reward Shape Matters for LLM Alignment (Gupta et al., 2025)", "arXiv:2501.03884")
def alphapo(beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25):
    """SimPO with a reward (1 - p^-alpha) / alpha of the mean token probability p in place of log p.

    Defaults: Those of the authors' configuration for Llama-3 8B; the paper tunes them for each model. `alpha` 0 is SimPO.
    """
    reward = objectives.alpha_transform(alpha=alpha)
    link = sigmoid_link(beta=beta, margin=gamma)
    return on_pairs(preference(link=link, evidence=LIKELIHOOD, average=True, transform=reward))


@method("Contrastive Preference Optimization (Xu et al., 2024)", "arXiv:2401.08417")
def cpo(beta: float = 0.1, imitation: float = 1.0):
    """DPO against a uniform reference, which cancels, plus imitation of the preferred answer.

    Defaults: The paper's. Its formula has the sum over the tokens of the preferred answer; here, as in the authors' code and in
      TRL, it is the mean over the tokens of all preferred answers.
    """
    contrast = preference(link=sigmoid_link(beta=beta), evidence=LIKELIHOOD)
    return on_pairs(contrast, chosen_token_likelihood(coefficient=imitation))


@method("ORPO: Monolithic Preference Optimization without Reference Model (Hong et al., 2024)", "arXiv:2403.07691")
def orpo(coefficient: float = 0.1):
    """Imitation of the preferred answer plus a logistic loss on the ratio of the two answers' odds.

    Defaults: The paper's, for Mistral. The imitation is the mean over the tokens of all preferred answers. TRL imitates the
      tokens of the prompts too; here only those of the answers count.
    """
    odds = preference(link=sigmoid_link(beta=1.0), evidence=LIKELIHOOD, average=True, transform=objectives.log_odds())
    return on_pairs(chosen_token_likelihood(), scaled(term=odds, coefficient=coefficient))


@method("SLiC-HF: Sequence Likelihood Calibration with Human Feedback (Zhao et al., 2023)", "arXiv:2305.10425")
def slic(margin: float = 1.0, imitation: float = 0.1):
    """Hinge loss on the difference of two log-probabilities, plus imitation of the preferred answer.

    Defaults: Both are ours; the paper imitates the answer of the fine-tuning data, for which the preferred one stands here.
      TRL's "hinge" is this link on DPO's rewards without imitation.
    """
    link = hinge_link(beta=1.0, margin=margin)
    likelihood = objectives.chosen_likelihood(coefficient=imitation, average=False)
    return on_pairs(preference(link=link, evidence=LIKELIHOOD), likelihood)


@method("Statistical Rejection Sampling Improves Preference Optimization (Liu et al., 2023)", "arXiv:2309.06657")
def hinge_dpo(beta: float = 0.1):
    """DPO with the hinge loss of SLiC, which stops at a margin of 1 / beta, in place of the logistic one.

    Defaults: `beta` is TRL's, whose name for it is "hinge"; the paper compares several.
    """
    return on_pairs(preference(link=hinge_link(beta=beta)))


@method("Contrastive Preference Learning: Learning from Human Feedback without RL (Hejna et al., 2023)", "arXiv:2310.13639")
def cpl(alpha: float = 0.1, bias: float = 0.5):
    """Logistic loss on sums of log-probabilities as advantages, with less weight on those of the other segment.

    Defaults: The paper's for control tasks; its discount is 1 here.
    """
    return on_pairs(preference(link=biased_link(beta=alpha, bias=bias), evidence=LIKELIHOOD))


@method("Direct Preference-based Policy Optimization without Reward Modeling (An et al., 2023)", "arXiv:2301.12842")
def dppo_pbrl(temperature: float = 0.1, bias: float = 1.0):
    """Contrast of distances to two segments: the policy gets nearer to the preferred one than to the other.

    Defaults: Those of the authors' code for control tasks.
    Unconfirmed: The paper's distance is between actions of robots. Minus the mean log-probability of a token stands for it
      here, and pairs stand for its ranking of a batch by a learned predictor.
    """
    link = biased_link(beta=inverse("temperature", temperature), bias=bias)
    return on_pairs(preference(link=link, evidence=LIKELIHOOD, average=True))


@method("Triple Preference Optimization (Saeidi et al., 2024)", "arXiv:2405.16681")
def tpo(beta: float = 0.01, imitation: float = 1.0):
    """Imitation of a gold answer beside a reference-free contrast of a preferred with another one: three answers a prompt.

    Defaults: `beta` is the authors'; `imitation` of 1 is ours. The gold answer is the row of source 1, without a preference, in
      the group of its pair; the contrast is the mean over pairs, the imitation that over the tokens of all gold answers.
    """
    contrast = preference(link=sigmoid_link(beta=beta), evidence=LIKELIHOOD)
    gold = objectives.by_source(terms=((1, objectives.negative_log_likelihood(coefficient=imitation)),), others="gold_texts")
    return None, chain(among(0, pair_mean()), among(1, token_mean())), objectives.objective(contrast, gold)
