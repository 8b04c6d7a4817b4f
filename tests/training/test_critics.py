"""Critics in the program: their heads, averages and warm-up, every method that has one, and what a checkpoint holds of them."""

import jax
import numpy as np
import optax
import pytest
from training.tiny_preferences import preference_config
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
from jaxrl_llm.objectives import gaussian_value_loss, heads, quantile_value_loss
from jaxrl_llm.training import critics, reinforcement
from jaxrl_llm.training.config import reinforcement_method
from jaxrl_llm.training.policies import load_policy

WITH_CRITIC = [name for name in methods.names() if methods.get(name).needs_critic]
# Methods that begin with a warm-up have a short one here.
SHORT = {name: {"warmup_steps": 1} for name in WITH_CRITIC if "warmup_steps" in methods.options_of(name)}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CRITIC)
def test_every_critic_takes_real_steps(name, tmp_path):
    records = finish(tiny_config(name, **SHORT.get(name, {})), tmp_path).metrics
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        assert all(value is not None and np.isfinite(value) for key, value in record.items() if key != "phase"), record
        assert record["skipped"] == 0 and record["gradient_norm"] > 0
    with opened(tiny_config(name, **SHORT.get(name, {})), tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        assert state.params["critic"]["value_head"].shape == (run.method.critic.outputs, 16)
        assert ("target" in state.method_state) == (run.method.critic.follow is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dsac_t", "sac"])
def test_averages_and_prices_survive_a_fault(name, tmp_path, monkeypatch):
    config = tiny_config(name)
    config.rl.steps, config.checkpoint.every = 4, 2
    faulty = failing_at(4, reinforcement.scale_weights)
    assert_a_fault_changes_nothing(config, tmp_path, monkeypatch, reinforcement, "scale_weights", faulty)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_in_the_warm_up_the_critic_alone_learns(shared, tmp_path):
    config = tiny_config("ppo", kl_coefficient=0.0)
    config.rl.steps = 1
    config.critic.update(warmup_steps=1, shared=shared)
    with opened(config, tmp_path) as run:
        before = jax.device_get(reinforcement.initial_state(run, run.network.params).params)
    run = finish(config, tmp_path)
    after = jax.device_get(load_policy(tmp_path)[0].params)
    policy = before if shared else before["policy"]
    for name in policy:
        same = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (policy[name], after[name])), strict=True))
        assert same == (name != "value_head"), name
    assert run.metrics[0]["loss/value_loss"] > 0


def test_a_frozen_critic_learns_in_the_warm_up_alone():
    transform = critics.within(optax.sgd(1.0), 0, 2)
    late = critics.within(optax.adam(1.0), 2)
    states = [transform.init(np.zeros(2)), late.init(np.zeros(2))]
    moved = []
    for _ in range(4):
        (one, states[0]), (two, states[1]) = transform.update(np.ones(2), states[0]), late.update(np.ones(2), states[1])
        moved.append((float(one[0]), float(two[0])))
    assert [one != 0 for one, _ in moved] == [True, True, False, False]
    assert [two != 0 for _, two in moved] == [False, False, True, True]
    # Its own count begins when it runs: the first step of Adam has the size of the learning rate.
    assert moved[2][1] == pytest.approx(-1.0, rel=1e-5)


@pytest.mark.slow
def test_the_average_follows_the_critic(tmp_path):
    config = tiny_config("hubl", follow=0.25)
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        start = jax.device_get(state.params["critic"])
        step, cursor = reinforcement.make_reinforcement_step(run, None), Cursor()
        state, *_ = step(state, cursor, 0)
        expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start, jax.device_get(state.params["critic"]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            state.method_state["target"]["average"],
            expected,
        )


def test_settings_lie_over_a_critic():
    config = tiny_config("ppo", value_clip=None)
    config.critic.update(head="gaussian", head_options={"members": 2}, options={"least_deviation": 0.2}, warmup_steps=3)
    critic = reinforcement_method(config).critic
    assert critic.loss == gaussian_value_loss(least_deviation=0.2) and critic.head == heads.gaussian(members=2)
    assert critic.warmup_steps == 3 and critic.outputs == 4
    config = tiny_config("risk_averse_ppo")
    config.critic.update(head_options={"count": 8}, options={"huber": 0.5})
    critic = reinforcement_method(config).critic
    assert critic.outputs == 8 and critic.head.function is heads.quantiles.function
    assert critic.loss == quantile_value_loss(huber=0.5, samples="return_samples")


@pytest.mark.parametrize(("name", "change", "message"), [
    ("risk_averse_ppo", {"head": "bins"}, "config.critic.head is 'bins', but 'risk_averse_ppo' has quantiles"),
    ("vapo", {"head": "ensemble"}, "value_clip=0.2 would change nothing with config.critic.head='ensemble'"),
])  # fmt: skip
def test_settings_that_do_not_fit(name, change, message):
    config = tiny_config(name)
    config.critic.update(change)
    with pytest.raises(ValueError, match=message):
        reinforcement_method(config)


def test_a_method_that_reads_values_names_a_critic():
    from jaxrl_llm import estimators, objectives, rollouts
    from jaxrl_llm.methods.updates import Critic

    @methods.method(paper="- (2026)", url="https://example.com/", certainty="sketch")
    def half_a_critic(*, named: bool = False, follow: float | None = None):
        """Values that nobody learns."""
        parts = rollouts.grouped(), estimators.chain(estimators.gae(), estimators.token_mean())
        critic = (Critic(loss=objectives.value_loss(), follow=follow),) if named else ()
        return *parts, objectives.objective(objectives.policy()), *critic

    try:
        with pytest.raises(ValueError, match="'half_a_critic' reads values of a critic; return Critic"):
            methods.get("half_a_critic")
        with pytest.raises(ValueError, match="the average of the critic is not needed"):
            methods.get("half_a_critic", named=True, follow=0.1)
        assert methods.get("half_a_critic", named=True).needs_critic
        for wrong in ({"follow": 2.0}, {"warmup_steps": -1}, {"frozen": True}):
            with pytest.raises(ValueError):
                Critic(loss=objectives.value_loss(), **wrong)
    finally:
        methods.base._ENTRIES.pop("half_a_critic")


@pytest.mark.slow
def test_inverse_preferences_train_a_policy_with_values(tmp_path):
    config = preference_config(steps=2)
    config.preference.update(method="ipl", options={})
    records = finish(config, tmp_path).metrics
    assert all(record["skipped"] == 0 and record["loss/inverse_preference"] > 0 for record in records)
    network, _ = load_policy(tmp_path)
    assert network.value is not None and network.config.language_head
    assert np.abs(jax.tree.leaves(network.params["value_head"])[0]).max() > 0
