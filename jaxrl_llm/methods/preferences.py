"""Methods on pairs that compare the policy with a reference: DPO, and losses with another link between two rewards."""

from jaxrl_llm.estimators import chain, pair_mean
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import (
    apo_down_link,
    apo_zero_link,
    discopop_link,
    exo_link,
    ipo_link,
    nca_link,
    objective,
    positive_link,
    preference,
    quantile_preference,
    robust_link,
    sigmoid_link,
    sppo_link,
)


def on_pairs(*terms) -> tuple:
    """A method that learns from given pairs, each of which counts alike."""
    return None, chain(pair_mean()), objective(*terms)


def inverse(name: str, value: float) -> float:
    """1 / value; refuses an option that is not above 0."""
    if value <= 0:
        raise ValueError(f"{name} is {value}; it must be above 0")
    return 1.0 / value


@method(paper="Direct Preference Optimization (Rafailov et al., 2023)", url="https://arxiv.org/abs/2305.18290")
def dpo(*, beta: float = 0.1):
    """Logistic loss on the difference of the log-ratios of two answers to the reference: a reward model without one.

    Defaults: The paper's.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta)))


@method(
    paper="Tulu 3: Pushing Frontiers in Open Language Model Post-Training (Lambert et al., 2024)",
    url="https://arxiv.org/abs/2411.15124",
    conventions={"trl-1.16": {"beta": 0.1}},
)
def dpo_norm(*, beta: float = 5.0):
    """DPO on mean log-ratios of a token, so that long answers do not count more.

    Defaults: The paper's. TRL calls this "sigmoid_norm".
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta), average=True))


@method(paper="A note on DPO with noisy preferences (Mitchell, 2023)", url="https://ericmitchell.ai/cdpo.pdf")
def cdpo(*, beta: float = 0.1, smoothing: float = 0.1):
    """DPO with soft labels: a share of the preferences counts as flipped, so that the margin stays bounded.

    Defaults: `beta` is DPO's; the note leaves the smoothing open, 0.1 is ours.
    """
    return on_pairs(preference(link=sigmoid_link(beta=beta, smoothing=smoothing)))


@method(
    paper="Provably Robust DPO (Chowdhury et al., 2024)",
    url="https://arxiv.org/abs/2403.00409",
    conventions={"trl-1.16": {"flip_rate": 0.0}},
)
def rdpo(*, beta: float = 0.1, flip_rate: float = 0.1):
    """DPO whose loss is unbiased where a known share of the preferences is flipped: the flipped loss is subtracted.

    Defaults: The paper's.
    """
    return on_pairs(preference(link=robust_link(beta=beta, flip_rate=flip_rate)))


@method(
    paper="A General Theoretical Paradigm to Understand Learning from Human Preferences (Azar et al., 2023)",
    url="https://arxiv.org/abs/2310.12036",
    conventions={"trl-1.16": {"average": True}},
)
def ipo(*, beta: float = 0.1, average: bool = False):
    """Squared error of the difference of log-ratios from 1 / (2 beta): preferences that are certain do not run away.

    Defaults: `beta`, the paper's tau, is ours, as is that of TRL. The paper's text has sums over tokens; the convention
      "trl-1.16" has means (`average`), which, by a comment in TRL's trainer, the authors have confirmed to be meant. Its beta
      stands for another scale.
    """
    return on_pairs(preference(link=ipo_link(beta=beta), average=average))


@method(
    paper="Towards Efficient Exact Optimization of Language Model Alignment (Ji et al., 2024)",
    url="https://arxiv.org/abs/2402.00856",
)
def exo(*, beta: float = 0.1, smoothing: float = 1e-3):
    """Reverse KL from the policy's to the smoothed label's distribution over a pair, where DPO has the forward one.

    Defaults: `beta` is TRL's, whose documentation gives this smoothing as the authors'.
    """
    return on_pairs(preference(link=exo_link(beta=beta, smoothing=smoothing)))


@method(
    paper="Noise Contrastive Alignment of Language Models with Explicit Rewards (Chen et al., 2024)",
    url="https://arxiv.org/abs/2402.05369",
)
def nca(*, beta: float = 0.01):
    """Absolute likelihoods: the preferred answer is told from the reference's answers, and both must not rise.

    Defaults: `beta` is that of the authors' script.
    """
    return on_pairs(preference(link=nca_link(beta=beta)))


@method(
    paper="Self-Play Preference Optimization (Wu et al., 2024)",
    url="https://arxiv.org/abs/2405.00675",
    conventions={"trl-1.16": {"beta": 0.1}},
)
def sppo(*, beta: float = 0.001):
    """Log-ratios of the two answers are regressed on +-1 / (2 beta), each by itself: hard labels for win rates.

    Defaults: `beta` is 1 / eta of the paper, which takes eta = 1000. Its reference is the policy of the last iteration.
    """
    return on_pairs(preference(link=sppo_link(beta=beta)))


@method(paper="Anchored Preference Optimization (D'Oosterlinck et al., 2024)", url="https://arxiv.org/abs/2408.06266")
def apo_zero(*, beta: float = 0.1):
    """The preferred answer is made likelier and the other one less likely, each in absolute terms.

    Defaults: `beta` is the paper's.
    """
    return on_pairs(preference(link=apo_zero_link(beta=beta)))


@method(paper="Anchored Preference Optimization (D'Oosterlinck et al., 2024)", url="https://arxiv.org/abs/2408.06266")
def apo_down(*, beta: float = 0.1):
    """Both answers are made less likely, the other one more: for a policy that is better than its data.

    Defaults: `beta` is the paper's.
    """
    return on_pairs(preference(link=apo_down_link(beta=beta)))


@method(
    paper="Discovering Preference Optimization Algorithms with and for Large Language Models (Lu et al., 2024)",
    url="https://arxiv.org/abs/2406.08414",
    conventions={"trl-1.16": {"beta": 0.1}},
)
def discopop(*, beta: float = 0.05, temperature: float = 0.05):
    """Logistic and exponential loss, blended by how large the log-ratio is: a loss that a language model has found.

    Defaults: The paper's; TRL's `beta` is 0.1.
    """
    return on_pairs(preference(link=discopop_link(beta=beta, temperature=temperature)))


@method(
    paper="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive (Pal et al., 2024)",
    url="https://arxiv.org/abs/2402.13228",
)
def dpo_positive(*, beta: float = 0.3, penalty: float = 50.0):
    """DPO with a penalty where the preferred answer becomes less likely than it is for the reference.

    Defaults: The paper's.
    """
    return on_pairs(preference(link=positive_link(beta=beta, penalty=penalty)))


@method(
    paper="Distributional Preference Alignment of LLMs via Optimal Transport (Melnyk et al., 2024)",
    url="https://arxiv.org/abs/2406.05882",
)
def aot(*, beta: float = 0.01, smoothing: float = 0.0):
    """DPO between quantiles: sorted margins of the policy's log-probabilities against the reference's, over the batch.

    Defaults: `beta` is the authors'.
    """
    return on_pairs(quantile_preference(link=sigmoid_link(beta=beta, smoothing=smoothing)))


@method(
    paper="Distributional Preference Alignment of LLMs via Optimal Transport (Melnyk et al., 2024)",
    url="https://arxiv.org/abs/2406.05882",
)
def aot_unpaired(*, beta: float = 0.01, smoothing: float = 0.0):
    """DPO between quantiles: sorted log-ratios of the preferred against those of the other answers, over the batch.

    Defaults: `beta` is the authors'.
    """
    return on_pairs(quantile_preference(link=sigmoid_link(beta=beta, smoothing=smoothing), paired=False))
