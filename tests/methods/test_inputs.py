"""What methods read is what they declare; what they declare and nobody gives is refused; and every option does something."""

import re

import jax
import numpy as np
import pytest
from oracles import tiny_policy
from oracles.tiny_policy import given, some_slow

from jaxrl_llm import methods
from jaxrl_llm.data.packing import pack
from jaxrl_llm.training.methods_of import GIVEN, refuse_missing
from jaxrl_llm.types import ROWS_OF, Scores

# What every rollout and every batch has, filled with the plain case where nobody says more.
ROLLOUT_FIELDS = {
    "tokens", "length", "mask", "rewards", "group", "prompt_id", "turn", "source", "version", "valid", "advantage", "weight",
}  # fmt: skip
BATCH_FIELDS = {
    "tokens", "mask", "positions", "segment", "rollout", "group", "advantage", "weight", "source", "turn", "step",
    "coefficients",
}  # fmt: skip
# Read where they are there, without any harm where they are not: rewards of tokens, and a margin of 0.
OPTIONAL = {"token_rewards", "margin"}
# Among rows of one score the likelier one comes first, where that is known.
TIES = {"d3s": {"behavior_logp"}, "ipo_md": {"behavior_logp"}, "online_dpo": {"behavior_logp"}, "pf_ppo": {"behavior_logp"}}
STATISTICS = {
    "logp",
    "entropy",
    "mean_logp",
    "top_entropy",
    "log_collision",
    "candidate_logp",
    "value",
    "value_outputs",
    "max_logp",
}
# Needed by strategies, and by the scorer that says what policies think of the candidates.
FOR_OTHERS = {"reference_samples", "candidates"}


@pytest.fixture(scope="module")
def rollouts():
    """Rollouts with everything that anybody may need."""
    made = tiny_policy.random_rollouts(tiny_policy.init())
    shape = made.tokens.shape
    more = {"margin": np.zeros(shape[0], np.float32)}
    return made.replace(token_rewards=made.extras["token_rewards"], extras=made.extras | more)


def grouped(method, rollouts):
    groups = "six" if "revises" in method.needs else "pair"
    return rollouts.replace(group=rollouts.extras[groups]) if "preference" in method.needs else rollouts


def scores_like(batch, seed=1):
    random = np.random.default_rng(seed)
    shape = batch.tokens.shape
    plain = {
        "logp": -random.exponential(1.0, shape),
        "entropy": random.exponential(1.0, shape),
        "mean_logp": -4.0 - random.exponential(1.0, shape),
        "top_entropy": random.exponential(1.0, shape),
        "log_collision": -random.exponential(1.0, shape),
        "candidate_logp": np.log(0.9 * random.dirichlet(np.ones(6), shape)[..., :5] + 1e-3),
        "value": random.normal(size=shape),
        "value_outputs": random.normal(size=(*shape, 4)),
        "max_logp": -random.exponential(0.3, shape),
    }
    return Scores(**{name: value.astype(np.float32) for name, value in plain.items()})


def coefficients(method):
    return {name: np.float32(0.25) for name, _ in method.controllers}


def names_read(function, *records):
    """Names of the leaves of the records that the traced function reads."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(records)
    traced = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(tree, flat)))(*(leaf for _, leaf in leaves)).jaxpr
    read = {id(variable) for equation in traced.eqns for variable in equation.invars}
    return {_name(path) for (path, _), variable in zip(leaves, traced.invars, strict=True) if id(variable) in read}


def _name(path):
    keys = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
    named = [key for key in keys if key]
    return named[-1] if named[0] == "extras" else named[0]


def arrays_needed(method):
    return {need for need in method.needs if not need.startswith(ROWS_OF)} - FOR_OTHERS


@pytest.mark.parametrize("name", methods.names())
def test_what_is_read_is_declared_and_what_is_declared_is_read(name, rollouts):
    method = methods.get(name)
    brought = getattr(method.strategy, "provides", frozenset())
    step = grouped(method, rollouts)
    state, key = method.estimator.init(), jax.random.key(0)
    by_estimator = names_read(lambda rollouts: method.estimator.update(rollouts, state, key), step)
    shapes = jax.eval_shape(lambda rollouts: method.estimator.update(rollouts, state, key)[0], step)
    after = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes).replace(length=step.length, tokens=step.tokens)
    batch = pack(after, 12, coefficients=coefficients(method))
    by_objective = names_read(lambda scores, batch: method.objective(scores, batch), scores_like(batch), batch)
    declared_by_objective = method.objective.annotations | {need.partition(":")[0] for need in method.objective.needs}
    assert by_estimator <= ROLLOUT_FIELDS | OPTIONAL | TIES.get(name, set()) | method.estimator.annotations
    assert by_objective <= BATCH_FIELDS | OPTIONAL | {"logp"} | declared_by_objective
    reads = by_estimator | by_objective
    unread = {need for need in arrays_needed(method) if need.partition(":")[0] not in reads}
    assert not unread, "declared and not read"
    assert all(one.startswith(ROWS_OF) for one in brought) or reads & brought, "brought by the strategy and not read"


@pytest.mark.parametrize("name", methods.names())
def test_what_is_declared_and_absent_is_refused_by_name(name, rollouts):
    method = methods.get(name)
    whole = given(method, grouped(method, rollouts))
    of_strategy = getattr(method.strategy, "provides", frozenset()) & (
        method.estimator.annotations | method.objective.annotations
    )
    wanted = {need for need in arrays_needed(method) | of_strategy if not need.startswith(ROWS_OF)}
    for need in sorted(wanted - method.objective.needs):
        extras = {key: value for key, value in whole.extras.items() if key != need}
        lacking = whole.replace(extras=extras, **({need: None} if hasattr(whole, need) else {}))
        with pytest.raises(ValueError, match=rf"needs (rollouts|batch)\.(extras\[')?{need}"):
            _abstractly(method, lacking)
    _abstractly(method, whole)


def _abstractly(method, rollouts):
    """Estimator and objective on shapes alone."""
    state, key = method.estimator.init(), jax.random.key(0)
    shapes = jax.eval_shape(lambda rollouts: method.estimator.update(rollouts, state, key)[0], rollouts)
    after = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    after = after.replace(length=rollouts.length, tokens=rollouts.tokens)
    batch = pack(after, 12, coefficients=coefficients(method))
    jax.eval_shape(lambda scores, batch: method.objective(scores, batch), scores_like(batch), batch)


# By what a method learns from: those that the program refuses, and the need that it names.
REFUSED = {
    "ada_grpo": "format", "aspo_tools": "first_call", "evol_rl": "embedding", "fapo": "flawed", "gigpo": "state",
    "group_invariant": "easy", "igpo": "token_rewards", "inpo": "proximal_logp", "otc": "calls", "rae": "role",
    "srpo": "revises", "stratified_grpo": "stratum", "tabnas": "feasible", "tango_verifier": "right",
    "verifree": "answer_mask", "xpo": "rows_of_reference",
}  # fmt: skip


@pytest.mark.parametrize("name", methods.names())
def test_the_program_refuses_what_it_cannot_feed(name):
    method = methods.get(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"{name!r} needs {REFUSED[name]!r}.*which this loop cannot make"):
            refuse_missing(method)
    else:
        refuse_missing(method)


def test_what_each_phase_gives_is_needed_by_a_method_of_it():
    for material, names in GIVEN.items():
        needed = set().union(
            *(methods.get(name).needs for name in methods.names() if methods.get(name).learns_from == material)
        )
        # A margin is read where it is there; candidates go with any method that names a rule for them; a strategy that forks
        # where the sampler was unsure names its entropy.
        assert names - needed <= {"margin", "candidates", "behavior_entropy"}, material


# ---- options

NAMES = ("grpo", "kto", "ppo")
# What an option of None, or of a word, may be instead; those that are refused do not count.
INSTEAD_OF_NONE = (
    0.5, 1, 2.0, 5, 20_475, (0.05, 0.23), (0.5, 2.0), (2.0, 1.0), True, "k2", "none", "floor", "own", "advantage", "mask",
    "token_mean", "token", "sequence",
)  # fmt: skip
WORDS = (
    "k1", "k2", "k3", "abs", "kl", "tv", "none", "forward", "differentiable", "std", "failure", "best", "uniform", "entropy",
    "inside", "exact", "shortfall", "place", "action", "gumbel", "constant",
)  # fmt: skip
# Options that are refused as inert, or have no effect on these batches, unless another one is set.
BESIDE = {
    **dict.fromkeys(("lowest_bound", "upper_bound", "step"), {"positive_share": 0.25}),
    **dict.fromkeys(("kl_kind", "kl_unbiased", "kl_bound", "kl_place"), {"kl_coefficient": 0.1}),
    "forgetting_high": {"drift_half_life": 0.06},
    "clip_level": {"clip": 0.2},
    **dict.fromkeys(("clip_low", "clip_high"), {"clip_low": 0.2, "clip_high": 0.2}),
    "clip_dual": {"clip_low": 0.2, "clip_high": 0.2, "clip": 0.2, "clip_level": "token"},
    "weight_outside": {"weight_high": 1.1},
    "weight_low": {"weight_high": 1.1},
    "degrees_of_freedom": {"scale": "std"},
    "epsilon": {"scale": "std"},
    "alone": {"scale": "std", "alpha": "none"},
}


def alternatives(name, option, value):
    """Other values of an option, likely ones first."""
    if value is None:
        return INSTEAD_OF_NONE
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 2, 0, 1, 2, 3]
    if isinstance(value, float):
        return [0.5 * value, 2 * value, value + 0.05, 0.5, 1.5, 1.0, 0.0, -value, 1e-6, 10.0]
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        return [value[:-1], value * 2]
    if isinstance(value, tuple):
        return [tuple(0.9 * each for each in value), tuple(0.5 * each for each in value)]
    try:
        methods.get(name, **{option: "nonsense"})
    except (ValueError, TypeError, ArithmeticError) as error:
        return re.findall(r"'([\w.+-]+)'", str(error))
    return WORDS


@pytest.mark.parametrize("name", some_slow(NAMES, methods.names()))
def test_every_option_changes_a_loss_a_gradient_or_what_is_sampled(name, rollouts):
    """On one of a few batches: an option that changes nothing anywhere would be silence."""
    plain = Outcomes(methods.get(name), rollouts)
    # The number of rewards is what it is: any other is refused.
    for option, value in ((option, value) for option, value in methods.options_of(name).items() if option != "components"):
        others = [other for other in alternatives(name, option, value) if other != value or type(other) is not type(value)]
        if any(_differs(name, {option: other}, plain, rollouts) for other in others):
            continue
        beside = {other: value for other, value in BESIDE.get(option, {}).items() if other in methods.options_of(name)}
        assert beside, f"{option} changes nothing"
        plain_beside = Outcomes(methods.get(name, **beside), rollouts)
        assert any(_differs(name, beside | {option: other}, plain_beside, rollouts) for other in others), option


def _differs(name, options, plain, rollouts) -> bool:
    try:
        method = methods.get(name, **options)
        if done_by_others(method) != done_by_others(plain.method):
            return True
        other = Outcomes(method, rollouts)
        return any(not _equal(plain.stage(number), other.stage(number)) for number in range(len(STAGES)))
    except (ValueError, TypeError, AttributeError, ZeroDivisionError):
        return False


def done_by_others(method):
    """What is sampled, what the scorer is asked for, which tokens it looks at, and how a critic is read and trained."""
    critic = method.critic and (method.critic.head, method.critic.follow, method.critic.warmup_steps)
    return method.strategy, method.needs, method.candidates, critic, method.wrap, method.evolution


def _equal(one, other):
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), one, other))


# Rewards of both signs or of a verifier, how far the policy has moved (nats), and at which steps.
STAGES = ((False, 0.3, (3,)), (True, 0.3, (3,)), (True, 3.0, (3,)), (True, 0.01, (3, 450, 451)))


class Outcomes:
    """What a method makes of the stages, each looked at when it is first asked for."""

    def __init__(self, method, rollouts):
        self.method, self.rollouts, self.known = method, rollouts, {}

    def stage(self, number):
        if number not in self.known:
            verified, moved, steps = STAGES[number]
            step = _verified(self.rollouts) if verified else self.rollouts
            self.known[number] = _outcome(self.method, given(self.method, grouped(self.method, step)), moved, steps)
        return self.known[number]


def _verified(rollouts):
    """Groups of 7, 2 and 1 rows, half of them right, most with one answer and few different tokens, and little drift."""
    row = np.arange(len(rollouts.group))
    right = ((row % 2 == 0) | (row == 9)).astype(np.float32)
    extras = {"answer": (row % 4 == 3).astype(np.int32), "drift": (row * 1e-3).astype(np.float32)}
    rewards, group = np.stack([right, np.zeros_like(right)], axis=1), np.select([row > 8, row > 6], [2, 1]).astype(np.int32)
    tokens, extras = rollouts.tokens % 2, rollouts.extras | extras
    # Every fourth token is a tool's.
    mask = rollouts.mask * ((np.arange(rollouts.mask.shape[1]) + row[:, None]) % 4 > 0)
    source = np.where(row % 5 == 4, 2, rollouts.source)  # some are replayed
    changed = {"token_rewards": None, "tokens": tokens, "extras": extras, "mask": mask, "source": source}
    return rollouts.replace(rewards=rewards, group=group, **changed)


def _outcome(method, step, moved, steps):
    state, found = method.estimator.init(), []
    controllers = {name: controller.init() for name, controller in method.controllers}
    for number in steps:
        # Schedules that count steps themselves have counted those before.
        state = jax.tree.map(lambda leaf, more=number: leaf + more if _is_count(leaf) else leaf, state)
        after, state = method.estimator.update(step, state, jax.random.key(number))
        scalars = {name: np.float32(controller.value(controllers[name], number)) for name, controller in method.controllers}
        batch = pack(jax.tree.map(np.asarray, after), 12, rows=10, step=number, coefficients=scalars)
        scores = _near(scores_like(batch, number), batch, moved)
        (loss, metrics), gradient = _differentiated(method.objective, scores, batch)
        # Policies that were sure of themselves, and then are not.
        measured = {"entropy": 0.01 if number < 450 else 3.0, "reference_kl": 3.0, "reward_center": 2.0} | {
            k: float(v) for k, v in metrics.items()
        }
        controllers = {name: controller.update(controllers[name], measured) for name, controller in method.controllers}
        later = {name: controller.value(controllers[name], number + 1) for name, controller in method.controllers}
        found.append((loss, gradient.logp, gradient.entropy, gradient.value, batch.advantage, batch.weight, scalars, later))
    return jax.tree.map(np.asarray, (found, state))


def _is_count(leaf):
    return np.ndim(leaf) == 0 and np.issubdtype(np.asarray(leaf).dtype, np.integer)


def _near(scores, batch, moved):
    """Log-probabilities about `moved` nats from those of the sampler, or of whoever else the batch knows."""
    others = [batch.behavior_logp, *(batch.extras.get(f"{who}_logp") for who in ("proximal", "reference", "teacher"))]
    known = next((other for other in (batch.behavior_logp, batch.reference_logp, *others) if other is not None), None)
    if known is None:
        return scores
    noise = np.random.default_rng(5).normal(size=known.shape).astype(np.float32)
    return scores.replace(logp=np.minimum(known + moved * noise, -1e-3))


def _differentiated(objective, scores, batch):
    return jax.value_and_grad(lambda scores: objective(scores, batch), has_aux=True)(scores)
