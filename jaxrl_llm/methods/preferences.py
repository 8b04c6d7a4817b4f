"""Methods that compare the policy with a reference: on pairs, DPO and losses with another link, or on single answers."""

from jaxrl_llm import objectives
from jaxrl_llm.compose import require
from jaxrl_llm.controllers import moving_average, running_total
from jaxrl_llm.estimators import chain, pair_mean, sequence_mean
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import exo_link, objective, preference, quantile_preference, saturating_link, sigmoid_link, unpaired


def on_pairs(*terms) -> tuple:
    """A method that learns from given pairs, each of which counts alike."""
    return None, chain(pair_mean()), objective(*terms)


def inverse(name: str, value: float) -> float:
    """1 / value; refuses an option that is not above 0."""
    require(value > 0, name, value, "above 0")
    return 1.0 / value


@method("Direct Preference Optimization (Rafailov et al., 2023)", "arXiv:2305.18290")
def dpo(beta: float = 0.1):
    """Logistic loss on the difference of the log-ratios of two answers to the reference: a reward model without one.

    Defaults: The paper's.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta)))


@method(
    "Tulu 3: Pushing Frontiers in Open Language Model Post-Training (Lambert et al., 2024)",
    "arXiv:2411.15124",
    conventions={"trl-1.16": {"beta": 0.1}},
)
def dpo_norm(beta: float = 5.0):
    """DPO on mean log-ratios of a token, so that long answers do not count more.

    Defaults: The paper's. TRL calls this "sigmoid_norm".
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), average=True))


@method("A note on DPO with noisy preferences (Mitchell, 2023)", "https://ericmitchell.ai/cdpo.pdf")
def cdpo(beta: float = 0.1, smoothing: float = 0.1):
    """DPO with soft labels: a share of the preferences counts as flipped, so that the margin stays bounded.

    Defaults: `beta` is DPO's; the note leaves the smoothing open, 0.1 is ours.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta, smoothing=smoothing)))


@method("Provably Robust DPO (Chowdhury et al., 2024)", "arXiv:2403.00409", conventions={"trl-1.16": {"flip_rate": 0.0}})
def rdpo(beta: float = 0.1, flip_rate: float = 0.1):
    """DPO whose loss is unbiased where a known share of the preferences is flipped: the flipped loss is subtracted.

    Defaults: The paper's.
    """
    return on_pairs(preference(link=objectives.robust_link(beta=beta, flip_rate=flip_rate)))


@method(
    "A General Theoretical Paradigm to Understand Learning from Human Preferences (Azar et al., 2023)",
    "arXiv:2310.12036",
    conventions={"trl-1.16": {"average": True}},
)
def ipo(beta: float = 0.1, average: bool = False):
    """Squared error of the difference of log-ratios from 1 / (2 beta): preferences that are certain do not run away.

    Defaults: `beta`, the paper's tau, is ours, as is that of TRL. The paper's text has sums over tokens; the convention
      "trl-1.16" has means (`average`), which, by a comment in TRL's trainer, the authors have confirmed to be meant. Its beta
      stands for another scale.
    """
    return on_pairs(preference(link=objectives.ipo_link(beta=beta), average=average))


@method("Towards Efficient Exact Optimization of Language Model Alignment (Ji et al., 2024)", "arXiv:2402.00856")
def exo(beta: float = 0.1, smoothing: float = 1e-3):
    """Reverse KL from the policy's to the smoothed label's distribution over a pair, where DPO has the forward one.

    Defaults: `beta` is TRL's, whose documentation gives this smoothing as the authors'.
    """
    return on_pairs(preference(link=exo_link(beta=beta, smoothing=smoothing)))


@method("Noise Contrastive Alignment of Language Models with Explicit Rewards (Chen et al., 2024)", "arXiv:2402.05369")
def nca(beta: float = 0.01):
    """Absolute likelihoods: the preferred answer is told from the reference's answers, and both must not rise.

    Defaults: `beta` is that of the authors' script.
    """
    return on_pairs(preference(link=objectives.nca_link(beta=beta)))


@method("Self-Play Preference Optimization (Wu et al., 2024)", "arXiv:2405.00675", conventions={"trl-1.16": {"beta": 0.1}})
def sppo(beta: float = 0.001):
    """Log-ratios of the two answers are regressed on +-1 / (2 beta), each by itself: hard labels for win rates.

    Defaults: `beta` is 1 / eta of the paper, which takes eta = 1000. Its reference is the policy of the last iteration.
    """
    return on_pairs(preference(link=objectives.sppo_link(beta=beta)))


@method("Anchored Preference Optimization (D'Oosterlinck et al., 2024)", "arXiv:2408.06266")
def apo_zero(beta: float = 0.1):
    """The preferred answer is made likelier and the other one less likely, each in absolute terms.

    Defaults: `beta` is the paper's.
    """
    return on_pairs(preference(link=objectives.apo_zero_link(beta=beta)))


@method("Anchored Preference Optimization (D'Oosterlinck et al., 2024)", "arXiv:2408.06266")
def apo_down(beta: float = 0.1):
    """Both answers are made less likely, the other one more: for a policy that is better than its data.

    Defaults: `beta` is the paper's.
    """
    return on_pairs(preference(link=objectives.apo_down_link(beta=beta)))


@method(
    "Discovering Preference Optimization Algorithms with and for Large Language Models (Lu et al., 2024)",
    "arXiv:2406.08414",
    conventions={"trl-1.16": {"beta": 0.1}},
)
def discopop(beta: float = 0.05, temperature: float = 0.05):
    """Logistic and exponential loss, blended by how large the log-ratio is: a loss that a language model has found.

    Defaults: The paper's; TRL's `beta` is 0.1.
    """
    return on_pairs(preference(link=objectives.discopop_link(beta=beta, temperature=temperature)))


@method("Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive (Pal et al., 2024)", "arXiv:2402.13228")
def dpo_positive(beta: float = 0.3, penalty: float = 50.0):
    """DPO with a penalty where the preferred answer becomes less likely than it is for the reference.

    Defaults: The paper's.
    """
    return on_pairs(preference(link=objectives.positive_link(beta=beta, penalty=penalty)))


@method("Distributional Preference Alignment of LLMs via Optimal Transport (Melnyk et al., 2024)", "arXiv:2406.05882")
def aot(beta: float = 0.01, smoothing: float = 0.0):
    """DPO between quantiles: sorted margins of the policy's log-probabilities against the reference's, over the batch.

    Defaults: `beta` is the authors'.
    """
    return on_pairs(quantile_preference(link=sigmoid_link(beta=beta, smoothing=smoothing)))


@method("Distributional Preference Alignment of LLMs via Optimal Transport (Melnyk et al., 2024)", "arXiv:2406.05882")
def aot_unpaired(beta: float = 0.01, smoothing: float = 0.0):
    """DPO between quantiles: sorted log-ratios of the preferred against those of the other answers, over the batch.

    Defaults: `beta` is the authors'.
    """
    return on_pairs(quantile_preference(link=sigmoid_link(beta=beta, smoothing=smoothing), paired=False))


@method(
    "KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al., 2024)",
    "arXiv:2402.01306",
    conventions={"trl-1.16": {}},
)
def kto(beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0, mismatched: bool = True):
    """Gains and losses against a reference point, with diminishing sensitivity: no pairs are needed.

    Defaults: The paper's. The reference point, an estimate of the KL from the reference, is the mean log-ratio of answers to
      other prompts, `extras["mismatched_ratio"]` [N], as in the authors' code (HALOs) and in TRL. Without `mismatched` it is
      the mean over the batch's own answers, which is ours and takes no further scoring.
    """
    point = objectives.given_reference_point() if mismatched else objectives.mean_reference_point()
    term = unpaired(link=saturating_link(), beta=beta, reference_point=point, desirable=desirable, undesirable=undesirable)
    return None, chain(sequence_mean()), objective(term)


@method("Anchored Preference Optimization (D'Oosterlinck et al., 2024)", "arXiv:2408.06266")
def apo_zero_unpaired(beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0):
    """KTO with a reference point of 0: each answer by itself, likelier or less likely than for the reference.

    Defaults: Those of TRL's trainer of KTO, which has this loss.
    """
    term = unpaired(link=saturating_link(), beta=beta, desirable=desirable, undesirable=undesirable)
    return None, chain(sequence_mean()), objective(term)


@method("Binary Classifier Optimization for Large Language Model Alignment (Jung et al., 2024)", "arXiv:2404.04656")
def bco(beta: float = 0.01, decay: float | None = 0.9):
    """A binary classifier of answers whose logit is the implicit reward, shifted by its average.

    Defaults: `beta` is the authors'; the decay of the moving average, of the mean of both classes in earlier steps, is ours.
      `decay=None` is the mean of all rewards so far, this batch's included, as in TRL's former trainer. The weights for another
      distribution of undesirable answers are left out.
    """
    if decay is None:
        point = objectives.running_reference_point(total="reward_total", count="reward_count")
        total, count = (running_total(measure=f"labelled/{of}") for of in ("reward", "count"))
        kept = {"reward_total": total, "reward_count": count}
    else:
        point = objectives.controlled_reference_point()
        kept = {"reward_shift": moving_average(decay=decay, measure="reward_center")}
    term = unpaired(link=objectives.logistic_link(), beta=beta, reference_point=point)
    return None, chain(sequence_mean()), objective(term), kept
