"""Methods on single answers that are marked as desirable or not."""

from jaxrl_llm.controllers import moving_average, running_total
from jaxrl_llm.estimators import chain, sequence_mean
from jaxrl_llm.methods.base import method
from jaxrl_llm.objectives import (
    controlled_reference_point,
    given_reference_point,
    logistic_link,
    mean_reference_point,
    objective,
    running_reference_point,
    saturating_link,
    unpaired,
)


@method(
    paper="KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al., 2024)",
    url="https://arxiv.org/abs/2402.01306",
    conventions={"trl-1.16": {}},
)
def kto(*, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0, mismatched: bool = True):
    """Gains and losses against a reference point, with diminishing sensitivity: no pairs are needed.

    Defaults: The paper's. The reference point, an estimate of the KL from the reference, is the mean log-ratio of answers to
      other prompts, `extras["mismatched_ratio"]` [N], as in the authors' code (HALOs) and in TRL. Without `mismatched` it is
      the mean over the batch's own answers, which is ours and takes no further scoring.
    """
    point = given_reference_point() if mismatched else mean_reference_point()
    term = unpaired(link=saturating_link(), beta=beta, reference_point=point, desirable=desirable, undesirable=undesirable)
    return None, chain(sequence_mean()), objective(term)


@method(paper="Anchored Preference Optimization (D'Oosterlinck et al., 2024)", url="https://arxiv.org/abs/2408.06266")
def apo_zero_unpaired(*, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0):
    """KTO with a reference point of 0: each answer by itself, likelier or less likely than for the reference.

    Defaults: Those of TRL's trainer of KTO, which has this loss.
    """
    term = unpaired(link=saturating_link(), beta=beta, desirable=desirable, undesirable=undesirable)
    return None, chain(sequence_mean()), objective(term)


@method(
    paper="Binary Classifier Optimization for Large Language Model Alignment (Jung et al., 2024)",
    url="https://arxiv.org/abs/2404.04656",
)
def bco(*, beta: float = 0.01, decay: float | None = 0.9):
    """A binary classifier of answers whose logit is the implicit reward, shifted by its average.

    Defaults: `beta` is the authors'; the decay of the moving average, of the mean of both classes in earlier steps, is ours.
      `decay=None` is the mean of all rewards so far, this batch's included, as in TRL's former trainer. The weights for another
      distribution of undesirable answers are left out.
    """
    if decay is None:
        point = running_reference_point(total="reward_total", count="reward_count")
        total, count = (running_total(measure=f"labelled/{of}") for of in ("reward", "count"))
        kept = {"reward_total": total, "reward_count": count}
    else:
        point = controlled_reference_point()
        kept = {"reward_shift": moving_average(decay=decay, measure="reward_center")}
    term = unpaired(link=logistic_link(), beta=beta, reference_point=point)
    return None, chain(sequence_mean()), objective(term), kept
