"""One step of the supervised phase: worked examples into a batch, one update."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl_llm.data import Cursor, Tokenizer, encode_example, next_indices
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import learning
from jaxrl_llm.training.annotate import Annotator, make_annotate, scoring_passes
from jaxrl_llm.training.layout import in_parts
from jaxrl_llm.training.method_state import coefficients, initial_method_state, make_estimate
from jaxrl_llm.training.run import Run
from jaxrl_llm.training.state import SUPERVISED, TrainState
from jaxrl_llm.training.update import make_update
from jaxrl_llm.types import Rollouts


def initial_state(run: Run) -> TrainState:
    """State before the first supervised update."""
    state = initial_method_state(run.supervised_method)
    params, key = run.network.params, jax.random.key(run.config.seed)
    optimizer = learning.phase_optimizer(run, SUPERVISED, run.supervised_method, params)
    return TrainState.create(params, optimizer, method_state=state, key=key)


def make_supervised_step(run: Run) -> Callable:
    """Builds `step(state, cursor, number) -> (state, cursor, metrics, records)`."""
    settings, method = run.config.sft, run.supervised_method
    network = run.network.without_params()
    objective = learning.with_router_losses(run.config, network, method.objective)
    pure = make_update(network, objective, learning.phase_optimizer(run, SUPERVISED, method))
    update = learning.make_phase_update(run, SUPERVISED, method, pure)
    estimate, annotate = make_estimate(method), _make_annotate(run)
    size = settings.examples or len(run.source)
    if size > len(run.source):
        raise ValueError(f"config.sft.examples is {size}; the source has only {len(run.source)}")

    def step(state: TrainState, cursor: Cursor, number: int):
        indices, cursor = next_indices(size, cursor, settings.batch, run.config.seed)
        examples = [run.source[int(index)] for index in indices]
        rollouts = annotate(state, demonstrations(run.tokenizer, examples, settings.row_tokens), number)

        def updates(state: TrainState, rollouts: Rollouts):
            layout = {"width": settings.row_tokens, "micro_batches": settings.micro_batches, "step": number}
            scalars = coefficients(method, state.method_state, number)
            return update(state, functools.partial(run.pack, rollouts, **layout, coefficients=scalars))

        state, rollouts, metrics = learning.learned(method, estimate, state, rollouts, state.key, updates)
        return state, cursor, metrics | {"tokens": float(np.sum(rollouts.length))}, []

    return step


def can_be_learned(source: Sequence[dict[str, Any]]) -> bool:
    """Whether the examples have something to imitate, a completion or a dialogue."""
    return bool(len(source)) and bool({"completion", "messages"} & source[0].keys())


def make_loss_evaluation(run: Run) -> Callable[[Any, int], dict[str, float]]:
    """Builds `evaluate(params, number) -> {"evaluation/loss": nats a token}` of the held-out completions.

    It is the negative log-likelihood of the first `evaluation.prompts` of them, whatever the method's own loss is.

    Raises ValueError: the held-out examples have nothing to imitate.
    """
    settings, count = run.config.sft, min(run.config.evaluation.prompts, len(run.test_source))
    if not can_be_learned(run.test_source):
        raise ValueError(
            f"the held-out examples have neither 'completion' nor 'messages', only {sorted(run.test_source[0])}; map a column "
            "to one with config.task.options.columns, or measure answers with config.rewards.names"
        )
    score = jax.jit(make_scorer(run.network.without_params()))

    def evaluate(params, number: int) -> dict[str, float]:
        nats = tokens = 0.0
        for start in range(0, count, settings.batch):
            examples = [run.test_source[index] for index in range(start, min(start + settings.batch, count))]
            rows = demonstrations(run.tokenizer, examples, settings.row_tokens)
            batch = run.pack(rows, settings.row_tokens, settings.micro_batches, step=number)
            found = in_parts(lambda piece: score(run.whole(params), run.place(piece)), batch)
            nats -= float((found.logp.astype(np.float64) * batch.mask).sum())
            tokens += float(batch.mask.sum())
        return {"evaluation/loss": nats / max(tokens, 1.0)}

    return evaluate


def _make_annotate(run: Run):
    """Builds `annotate(state, rollouts, step)` with what the method needs in `extras`."""
    network, settings = run.network.without_params(), run.config.sft
    annotators = {"proximal": Annotator(network, lambda state: run.whole(state.params))}
    if run.teacher is not None:
        annotators["teacher"] = Annotator(run.teacher.without_params(), lambda state: run.teacher.params)
    passes = scoring_passes(run.supervised_method, annotators)
    return make_annotate(run, passes, width=settings.row_tokens, parts=settings.micro_batches)


def demonstrations(tokenizer: Tokenizer, examples, width: int) -> Rollouts:
    """One row for each example, with what is to be learned as actions: its completion, or the assistant's turns.

    Raises ValueError: an example that `data.encode_example` refuses, or longer than `width` tokens.
    """
    rows = len(examples)
    tokens, mask, length = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32), np.zeros(rows, np.int32)
    for row, example in enumerate(examples):
        ids, learned = encode_example(tokenizer, example)
        length[row] = len(ids)
        if length[row] > width:
            raise ValueError(f"an example has {length[row]} tokens, more than config.sft.row_tokens = {width}; raise it")
        tokens[row, : length[row]], mask[row, : length[row]] = ids, learned
    return Rollouts(tokens=tokens, mask=mask, length=length, rewards=np.zeros((rows, 1), np.float32))
