"""Held-out quality: avg@k, pass@k and maj@k with confidence intervals, and whether sampler and learner are one policy."""

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm import distributed
from jaxrl_llm.rewards import answer_of
from jaxrl_llm.rollouts import Collection, Request, requests_for
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training.layout import lay_out, micro_batches_of
from jaxrl_llm.types import Batch, Rollouts


class Agreement(NamedTuple):
    """What a comparison of sampler and learner found."""

    gap: float = 0.0  # largest |learner's - sampler's| log-probability of a sampled token, nats
    tokens: int = 0  # number of sampled tokens
    # number of those whose log-probability falls short of the learner's largest by more than the bound: none in greedy samples
    # of one policy
    short: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(max(self.gap, other.gap), self.tokens + other.tokens, self.short + other.short)


Agree = Callable[[Rollouts, int], Agreement]


def make_agree(
    network, params, *, temperature: float, bound: float, width: int = 0, parts: int = 0, shards: int = 1,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> Agree:  # fmt: skip
    """Builds `agree(rollouts, count) -> Agreement` of the first `count` rows: one forward pass over them, packed.

    Args:
      network: hashable, without parameters.
      params: its parameters.
      temperature: that the rows were sampled at; 0 (greedy) counts as 1.
      bound: nats, by which log-probabilities may differ.
      width: tokens of a packed row, as in `lay_out`, like the next two.
      parts: number of parts that the rows are scored in, one after the other.
      shards: devices that share out the rows.
      place: lays a part out on the devices.
    """
    score = _scorer(network, temperature or 1.0)

    def agree(rollouts: Rollouts, count: int) -> Agreement:
        keep = np.arange(len(rollouts.length)) < count
        pieces = micro_batches_of(lay_out(network, rollouts, width, parts, shards=shards, keep=keep))
        return sum((_compared(*distributed.fetch(score(params, place(piece))), piece, bound) for piece in pieces), Agreement())

    return agree


@functools.cache
def _scorer(network, temperature: float):
    """Compiled once for all evaluations of a run."""
    score = make_scorer(network, {"max_logp"}, temperature=temperature)

    def both(params, batch: Batch):
        scores = score(params, batch)
        return scores.logp, scores.max_logp

    return jax.jit(both)


def _compared(logp: Any, largest: Any, batch: Batch, bound: float) -> Agreement:
    sampled = np.asarray(batch.mask) > 0
    gap = np.abs(logp - batch.behavior_logp)[sampled].max(initial=0.0)
    return Agreement(float(gap), int(sampled.sum()), int((largest - logp > bound)[sampled].sum()))


_LOGGER = logging.getLogger(__name__)
# A completion is correct when its reward reaches what counts as success, be it as a sum such as 0.7 + 0.2 + 0.1.
_ROUNDING = 1e-6


def average_at_k(correct: np.ndarray) -> tuple[float, float]:
    """Mean over P prompts of the share of k samples that are correct, and the half width of its 95% interval.

    Args:
      correct: bool [P, k].

    Source: standard errors clustered by prompt, https://arxiv.org/abs/2411.00640
    """
    return mean_and_error(correct.mean(axis=1))


def pass_at_k(correct: np.ndarray, k: int) -> tuple[float, float]:
    """Unbiased estimate of the probability that at least one of `k` samples is correct, and its half width.

    With c of n samples correct, 1 - C(n - c, k) / C(n, k).

    Args:
      correct: bool [P, n].
      k: from 1 to n.

    Raises ValueError: k is not in that range.
    Source: https://arxiv.org/abs/2107.03374
    """
    samples = correct.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; with {samples} samples of each prompt it must be from 1 to {samples}")
    wrong = samples - correct.sum(axis=1)
    return mean_and_error(np.array([1.0 - math.comb(int(w), k) / math.comb(samples, k) for w in wrong]))


def majority_at_k(correct: np.ndarray, answers: Sequence[Sequence[Any]]) -> tuple[float, float]:
    """Share of prompts whose most frequent answer is correct, and its half width.

    A tie goes to the answer that came first; answers of None have no vote.

    Args:
      correct: bool [P, k].
      answers: P lists of k hashable answers.

    Source: self-consistency, https://arxiv.org/abs/2203.11171
    """
    right = []
    for row, given in zip(correct, answers, strict=True):
        votes = Counter(answer for answer in given if answer is not None)
        winner = votes.most_common(1)[0][0] if votes else None
        right.append(float(winner is not None and row[list(given).index(winner)]))
    return mean_and_error(np.array(right))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of independent values [P] and 1.96 standard errors of it (0 for a single value)."""
    error = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def summarise(
    rewards: np.ndarray, lengths: np.ndarray, samples: int, answers: Sequence[Any] | None = None, success: float = 1.0
) -> dict[str, float]:
    """All measures of an evaluation.

    Args:
      rewards: [P * k], the k samples of a prompt together; NaN counts as wrong.
      lengths: tokens of each completion, [P * k].
      samples: k.
      answers: final answers, for the majority vote; None leaves it out.
      success: reward from which on a completion is correct.

    Returns: Values by metric name, see `metrics.DEFINITIONS`; pass@k for the powers of two up to k. Where all rewards are
      missing, what depends on them is NaN.
    """
    correct = (np.nan_to_num(rewards, nan=-np.inf) >= success - _ROUNDING).reshape(-1, samples)
    results = {"accuracy": average_at_k(correct)}
    if samples > 1:
        for k in (2**power for power in range(1, samples.bit_length())):
            results[f"pass@{k}"] = pass_at_k(correct, k)
        if answers is not None:
            grouped = [answers[start : start + samples] for start in range(0, len(answers), samples)]
            results[f"maj@{samples}"] = majority_at_k(correct, grouped)
    measured = {}
    for name, (value, error) in results.items():
        measured |= {f"evaluation/{name}": value, f"evaluation/{name}_error": error}
    if np.isnan(rewards).all():
        measured = dict.fromkeys(measured, float("nan"))
    known = rewards[~np.isnan(rewards)]
    return measured | {
        "evaluation/reward": float(known.mean()) if known.size else float("nan"),
        "evaluation/length": float(np.mean(lengths)),
        "evaluation/missing": float(np.isnan(rewards).mean()),
    }


def evaluate(
    sample: Callable[[Sequence[Request]], Collection], examples: Sequence[dict[str, Any]], *, samples: int, batch: int,
    final_answer: Callable[[str], Any] | None = None, agree: Agree | None = None, greedy: bool = False, success: float = 1.0,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """Samples, scores and summarises.

    Args:
      sample: as `rollouts.Io.sample`; the first reward decides what is correct.
      examples: held-out prompts.
      samples: k of each prompt.
      batch: prompts sampled at a time.
      final_answer: completion to answer, for the majority vote; a completion of which it is None votes as the text that it is.
      agree: compares the learner with the sampler, see `make_agree`; None leaves it out.
      greedy: whether the samples are greedy, so that each token should be the learner's likeliest.
      success: reward from which on a completion is correct.
      told: called before each part with the prompts that are done, and with all of them.

    Returns: Measures and one record for each completion.
    """
    records, agreement = [], Agreement()
    for start in range(0, len(examples), batch):
        told(start, len(examples))
        part = [examples[index] for index in range(start, min(start + batch, len(examples)))]
        # A last part of another size would compile another program: it is filled up, and the filling dropped.
        filled = part + [part[0]] * (min(batch, len(examples)) - len(part))
        found = sample(requests_for(filled, range(start, start + len(filled)), samples=samples))
        records += found.records[: len(part) * samples]
        if agree is not None:
            agreement += agree(found.rollouts, len(part) * samples)
    rewards = np.array([np.nan if record["rewards"][0] is None else record["rewards"][0] for record in records])
    answers = None if final_answer is None else [_vote(final_answer, record["completion"]) for record in records]
    measured = summarise(rewards, np.array([record["length"] for record in records]), samples, answers, success)
    if agree is not None:
        measured["evaluation/logp_gap"] = agreement.gap
        if greedy:
            measured["evaluation/greedy_mismatch"] = agreement.short / max(agreement.tokens, 1)
    return measured, records


def evaluate_source(
    config: ConfigDict, sample: Callable, source: Sequence[dict[str, Any]], reward: Callable, network, mesh, **options
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What `evaluate` gives for the first `config.evaluation.prompts` of the held-out examples `source`.

    `reward` decides what is correct, and may say what the answer of a completion is; `network` has the learner's parameters,
    and `mesh` is that of training, None for one device. `options` are further ones of `evaluate`.
    """
    settings, rl = config.evaluation, config.rl
    examples = [source[index] for index in range(min(settings.prompts, len(source)))]
    agree = make_agree(
        network.without_params(), network.params, temperature=settings.temperature, bound=gap_bound(rl.max_logp_gap, network),
        width=rl.row_tokens, parts=rl.micro_batches, shards=distributed.row_shards(mesh),
        place=functools.partial(distributed.shard_rows, mesh=mesh),
    )  # fmt: skip
    return evaluate(
        sample, examples, samples=settings.samples, batch=min(settings.batch, len(examples)), agree=agree,
        final_answer=answer_of(reward), greedy=settings.temperature == 0, success=settings.success, **options,
    )  # fmt: skip


def _vote(final_answer: Callable[[str], Any], text: str) -> Any:
    answer = final_answer(text)
    return (text.strip() or None) if answer is None else answer


# Largest difference of log-probabilities (nats) between sampler and learner that rounding alone explains, by dtype. A bfloat16
# has 8 bits: a logit of 20 is rounded by up to 0.06, in every layer anew, and the largest of many thousand tokens counts; so
# has a cache of int8.
GAP_BOUNDS = {"float32": 1e-4, "bfloat16": 0.5, "float16": 0.05, "int8": 0.5}


def gap_bound(chosen: float | None, network) -> float:
    """The bound that was chosen, or that of the coarser of the dtypes in which the network computes and keeps its cache."""
    if chosen is not None:
        return chosen
    dtype = getattr(network.config, "dtype", "float32")
    return max(GAP_BOUNDS[dtype], GAP_BOUNDS[getattr(network.config, "cache_dtype", "") or dtype])


def consequence(bound: float) -> str:
    """What follows from a gap above the bound."""
    return (
        f"more than {bound:g}: importance ratios are off by up to exp(gap); config.network.dtype='float32' brings both "
        "together, a method with truncated ratios bounds the harm, config.rl.max_logp_gap sets the bound; later gaps stand in "
        "warnings.jsonl alone"
    )


def warn_of_gap(measured: Mapping[str, float], bound: float, step: int) -> None:
    """Tells the log where sampler and learner are not one policy on the held-out samples."""
    gap, mismatch = measured.get("evaluation/logp_gap", 0.0), measured.get("evaluation/greedy_mismatch", 0.0)
    if gap > bound:
        _LOGGER.warning(
            "sampler and learner differ by %.3g nat on the evaluation's samples at step %d, %s", gap, step, consequence(bound)
        )
    if mismatch > 0:
        _LOGGER.warning("%.3g of the evaluation's greedy tokens are not the learner's best at step %d", mismatch, step)
