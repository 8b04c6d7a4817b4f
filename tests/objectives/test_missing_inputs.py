"""A batch without what a loss reads is refused by name; it would learn nothing in silence."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import methods, objectives
from jaxrl_llm.compose import composable
from jaxrl_llm.data import batch_from, batch_of_pairs
from jaxrl_llm.types import Batch, Rollouts, Scores

SHAPE = (2, 4)
STATISTICS = {"candidate_logp": (*SHAPE, 3), "router_logits": (*SHAPE, 2, 4), "value_outputs": (*SHAPE, 3)}


def inputs_of(objective, coefficients=()) -> tuple[Scores, Batch]:
    """Shapes of all that the objective says it needs."""
    floats = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    integers = jax.ShapeDtypeStruct(SHAPE, jnp.int32)
    wide = {"candidates": jax.ShapeDtypeStruct((*SHAPE, 3), jnp.int32)}
    needed = {name: wide.get(name, floats) for name in objective.annotations if not name.startswith("rows_of_")}
    needed |= {name: jax.ShapeDtypeStruct((*SHAPE, 3), jnp.float32) for name in needed if name.endswith("candidate_logp")}
    own = {name: value for name, value in needed.items() if name in Batch.__dataclass_fields__}
    extras = {name: value for name, value in needed.items() if name not in own} | {"source": integers, "turn": integers}
    names = {name.partition(":")[0] for name in objective.needs}
    scores = {name: jax.ShapeDtypeStruct(STATISTICS.get(name, SHAPE), jnp.float32) for name in names}

    def build(tokens, mask, own, extras, scores, logp):
        known = dict.fromkeys(coefficients, 1.0)
        return Scores(logp=logp, **scores), Batch(tokens=tokens, mask=mask, extras=extras, coefficients=known, **own)

    return jax.eval_shape(build, integers, floats, own, extras, scores, floats)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("grpo", "advantage"), ("gspo", "advantage"), ("cispo", "advantage"), ("sapo", "advantage"), ("reinforce", "advantage"),
        ("dpo", "group"), ("reward_model", "group"), ("orpo", "group"), ("aot", "group"), ("ipo", "group"),
    ],
)  # fmt: skip
def test_the_missing_field_is_named(name, field):
    objective = methods.get(name).objective
    with pytest.raises(ValueError, match=rf"needs batch\.{field}, which is missing; "):
        jax.eval_shape(objective, *inputs_of(objective))


def test_no_term_takes_a_batch_without_what_it_reads():
    """Each computes its loss, or says which it is; every term of the catalogue once."""
    seen, refusals = set(), {}
    for method in map(methods.get, methods.names()):
        terms = {term.function for term in method.objective.terms}
        if terms <= seen:
            continue
        seen |= terms
        try:
            jax.eval_shape(method.objective, *inputs_of(method.objective, dict(method.controllers)))
        except ValueError as error:
            refusals[method.name] = str(error)
    assert len(refusals) > 10
    assert not {name: text for name, text in refusals.items() if not re.search(r"needs batch\.(advantage|group), which", text)}


def test_a_term_of_ones_own_is_refused_too():
    @composable
    def gain(scores, batch):
        return -batch.advantage * scores.logp, {}

    zeros = np.zeros(SHAPE, np.float32)
    with pytest.raises(ValueError, match=r"gain\(\) needs batch.advantage"):
        objectives.objective(gain())(Scores(logp=zeros), Batch(tokens=zeros.astype(int), mask=zeros))

    @composable
    def broken(scores, batch):
        return batch.nosuch + "text", {}

    with pytest.raises(AttributeError, match="nosuch"):
        objectives.objective(broken())(Scores(logp=zeros), Batch(tokens=zeros.astype(int), mask=zeros))


def test_pairs_of_token_ids_are_a_batch():
    batch = batch_of_pairs([[1, 2], [3]], [[4], [5, 6, 7]], [[8, 9], [4]], margin=[0.0, 2.0])
    assert batch.tokens.tolist() == [[1, 2, 4, 0, 0], [1, 2, 8, 9, 0], [3, 5, 6, 7, 0], [3, 4, 0, 0, 0]]
    assert batch.mask.tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert batch.segment.sum(axis=1).tolist() == [4, 5, 5, 3]  # one place behind each text
    assert batch.group[:, 0].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(batch.weight.sum(axis=1), 0.25)
    assert batch.extras["preference"][:, 0].tolist() == [1, -1, 1, -1] and batch.extras["margin"][2, 0] == 2.0
    scored = Scores(logp=-np.ones((4, 5), np.float32) * np.array([[1.0], [2.0], [1.0], [4.0]], np.float32))
    batch = batch.replace(reference_logp=np.zeros((4, 5), np.float32))
    # Log-ratios of the texts: -1 and -4; -3 and -4.
    expected = np.log1p(np.exp(-0.1 * np.array([3.0, 1.0]))).mean()
    assert float(methods.get("dpo").objective(scored, batch)[0]) == pytest.approx(expected, rel=1e-6)
    for wrong, message in (({"rejected": [[8]]}, "'rejected': 1"), ({"width": 4}, "more than width = 4")):
        with pytest.raises(ValueError, match=message):
            batch_of_pairs(**{"prompts": [[1], [3]], "chosen": [[4], [5, 6, 7]], "rejected": [[8, 9], [4]]} | wrong)


def test_rollouts_are_a_batch_once_an_estimator_has_been_there():
    rollouts = Rollouts(tokens=np.array([[1, 2, 3], [1, 4, 7]]), length=np.array([3, 2]), group=np.array([0, 0]),
                        mask=np.array([[0.0, 1, 1], [0, 1, 0]]), rewards=np.array([[1.0], [0.0]]),
                        behavior_logp=np.full((2, 3), -1.0, np.float32))  # fmt: skip
    with pytest.raises(ValueError, match="let an estimator fill it first"):
        batch_from(rollouts)
    grpo = methods.get("grpo", kl_coefficient=0.0)
    estimated, _ = jax.jit(grpo.estimator.update)(rollouts, grpo.estimator.init(), jax.random.key(0))
    batch = batch_from(estimated)
    assert batch.tokens.tolist() == [[1, 2, 3], [1, 4, 0]] and batch.segment.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.rollout[:, 0].tolist() == [0, 1] and batch.group.tolist() == [[0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(batch.weight, estimated.weight)
    loss, metrics = grpo.objective(Scores(logp=batch.behavior_logp), batch)
    assert float(metrics["surrogate/positive_advantage"]) > 0 and np.isfinite(loss)
    # Where everything was filtered there is nothing to learn, and nothing to refuse.
    assert not batch_from(rollouts.replace(valid=np.zeros(2, np.float32))).weight.any()
