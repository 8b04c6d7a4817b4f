"""Methods whose change is on the optimizer's side, and evolution, in the program."""

import jax
import numpy as np
import pytest
from training.tiny_runs import (  # noqa: F401
    assert_a_fault_changes_nothing,
    failing_at,
    finish,
    opened,
    quick_compilation,
    tiny_config,
)  # fmt: skip

from jaxrl_llm import methods
from jaxrl_llm.data import Cursor
from jaxrl_llm.optimizers import evolution
from jaxrl_llm.training import loop, phases, reinforcement
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.programs import planned_run

WRAPPED = [name for name in methods.names() if methods.get(name).wrap.layers and not methods.get(name).needs_critic]
EVOLVED = [name for name in methods.names() if methods.get(name).evolution]
SMALL = {name: {"pairs": 2} for name in EVOLVED} | {"zo_rank_sgd": {"pairs": 2, "best": 2, "scale": 0.3}}


def config_of(name):
    config = tiny_config(name, **SMALL.get(name, {}))
    if "components" in methods.options_of(name):
        config.rewards.names = ("training.tiny_rewards:shortness", "arithmetic")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WRAPPED, *EVOLVED])
def test_every_one_takes_real_steps(name, tmp_path):
    config = config_of(name)
    with opened(config, tmp_path) as run:
        before = jax.device_get(reinforcement.initial_state(run, run.network.params).params)
    run = finish(config, tmp_path)
    for record in run.metrics:
        assert all(value is not None and np.isfinite(value) for key, value in record.items() if key != "phase"), record
        assert record["skipped"] == 0 and record["gradient_norm"] > 0
    after = jax.device_get(loop.checkpoint.restore_params(tmp_path / "checkpoints", before))
    changes = [float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert all(np.isfinite(changes)) and max(changes) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evolution_strategies", "mo_tsivr_pg", "n_pg_igt"])
def test_their_state_survives_a_fault(name, tmp_path, monkeypatch):
    config = config_of(name)
    config.rl.steps, config.checkpoint.every = 4, 2
    place, function = (phases, "make_evolution_step") if name in EVOLVED else (reinforcement, "make_estimate")
    made = getattr(place, function)

    def faulty(*arguments):
        return failing_at(4, made(*arguments))

    assert_a_fault_changes_nothing(config, tmp_path, monkeypatch, place, function, faulty)


@pytest.mark.slow
def test_a_step_of_evolution_is_what_its_rewards_say(tmp_path):
    """The same step by hand: parameters perturbed, sampled and ranked, and a plain step along their noise."""
    config = config_of("evolution_strategies")
    with opened(config, tmp_path) as run:
        state, settings = reinforcement.initial_state(run, run.network.params), run.method.evolution
        params = jax.device_get(state.params)
        key, fitness = jax.random.fold_in(state.key, 0), np.zeros((2, 2))
        for pair, side in np.ndindex(2, 2):
            moved = evolution.perturbed(params, evolution.member(key, pair), (1.0, -1.0)[side] * settings.scale)
            io = run.io(moved, 0, cursor=Cursor())
            collection, *_ = run.method.strategy.run(io, (), config.rl.prompts)
            fitness[pair, side] = collection.rollouts.rewards.sum(axis=1).mean()
        assert len(np.unique(fitness)) > 1
        weights = evolution.centred_ranks()(fitness).astype(np.float32)
        gradient = evolution.evolution_gradient(params, key, weights, settings.scale)
        changes, _ = reinforcement.optimizer(run).update(gradient, state.opt_state, params)
        expected = jax.tree.map(lambda leaf, change: leaf + np.asarray(change), params, changes)
        step = phases.make_evolution_step(run)
        after, cursor, metrics, records = step(state, Cursor(), 0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, expected)
        assert metrics["loss"] == pytest.approx(-fitness.mean()) and metrics["evolution/best"] == pytest.approx(fitness.max())
        assert cursor != Cursor() and len(records) == 4 * 4 * config.rl.prompts


@pytest.mark.parametrize(("change", "message"), [
    ({"epochs": 2}, "config.rl.epochs would change nothing: 'evolution_strategies' takes no gradient"),
    ({"staleness": 1}, "config.rl.staleness would change nothing"),
])  # fmt: skip
def test_what_evolution_has_no_use_for(change, message):
    config = config_of("evolution_strategies")
    config.rl.update(change)
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_evolution_has_no_plan_yet():
    with pytest.raises(ValueError, match="'evolution_strategies' has no update by gradients"):
        planned_run(config_of("evolution_strategies"), jax.devices())


@pytest.mark.parametrize(("phase", "wrap", "message"), [
    ("rl", {"polyak_step": {}, "implicit_transport": {}}, "each stands in the place of AdamW, so give one"),
    ("sft", {"polyak_step": {}}, "only steps of the RL phase have a reward"),
    ("rl", {"soft_reset": {}}, "wrap.soft_reset is {}"), ("rl", {"recursive_momentum": {"share": 3}}, "share is 3"),
    ("rl", {"objective_weights": {"objectives": 1}}, "objectives is 1"),
])  # fmt: skip
def test_impossible_layers(phase, wrap, message):
    config = tiny_config("grpo")
    config.sft.steps = 1
    config[phase].optimizer.wrap = wrap
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_options_of_adam_that_a_rule_would_not_read():
    config = tiny_config("n_pg_igt")
    check_config(config)
    config.rl.optimizer.beta1 = 0.5
    with pytest.raises(ValueError, match="config.rl.optimizer.beta1 would change nothing: implicit_transport"):
        check_config(config)


def test_a_configuration_changes_what_a_method_lays_over():
    from jaxrl_llm.training.wrapping import wrap_of

    settings = tiny_config("sfpo").rl.optimizer
    settings.wrap = {"slow_fast": {"fast_steps": 2}, "extrapolate_every": {"every": 2}}
    assert wrap_of(settings, methods.get("sfpo")) == settings.wrap.to_dict()
    assert methods.get("evolution_strategies").evolution == methods.get("evolution_strategies").evolution
    with pytest.raises(ValueError, match="give at least one pair"):
        methods.get("evolution_strategies", pairs=0)
