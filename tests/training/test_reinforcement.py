"""A step of the RL phase: annotations against direct scoring, minibatches, epochs, what is measured."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.tiny_runs import opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm import methods
from jaxrl_llm.data import Cursor
from jaxrl_llm.networks import decoder
from jaxrl_llm.rollouts import requests_for
from jaxrl_llm.training import annotate, reinforcement
from jaxrl_llm.training.method_state import with_strategy_state
from jaxrl_llm.training.rollout_metrics import rollout_metrics
from jaxrl_llm.types import Rollouts


@contextlib.contextmanager
def begun(config, workdir):
    """The run, its state and the rollouts of its first prompts."""
    with opened(config, workdir) as run:
        state = reinforcement.initial_state(run, run.network.params)
        io = reinforcement.strategy_io(run, state, None, 0)
        collection, _, _ = run.method.strategy.run(io, (), config.rl.prompts)
        yield run, state, collection


def logp_by_hand(run, params, rollouts, temperature=1.0):
    """Each row alone, by the plain network."""
    apply = jax.jit(decoder(run.network.config).apply)
    result = np.zeros(rollouts.tokens.shape, np.float32)
    logits = jax.nn.log_softmax(apply(params, rollouts.tokens) / temperature)
    taken = np.take_along_axis(np.asarray(logits)[:, :-1], rollouts.tokens[:, 1:, None], axis=-1)[..., 0]
    result[:, 1:] = taken
    return result


def random_like(params, scale=0.3, seed=5):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return structure.unflatten(moved)


# ---- annotations


@pytest.mark.parametrize(("temperature", "micro_batches"), [(1.0, 1), (0.7, 3)])
def test_reference_log_probabilities_are_those_of_the_reference(temperature, micro_batches, tmp_path):
    config = tiny_config("grpo", kl_coefficient=0.1)
    config.rl.update(temperature=temperature, micro_batches=micro_batches)
    with begun(config, tmp_path) as (run, state, collection):
        reference = random_like(run.network.params)
        rollouts = reinforcement.make_annotate(run, reference)(state, collection.rollouts)
        expected = logp_by_hand(run, reference, rollouts, temperature)
        np.testing.assert_allclose(rollouts.extras["reference_logp"][rollouts.mask > 0], expected[rollouts.mask > 0], atol=2e-5)
        behavior = logp_by_hand(run, run.network.params, rollouts, temperature)
        np.testing.assert_allclose(rollouts.behavior_logp[rollouts.mask > 0], behavior[rollouts.mask > 0], atol=2e-5)


def test_a_strategy_may_ask_what_a_policy_says(tmp_path):
    config = tiny_config("grpo", kl_coefficient=0.1)
    config.rl.update(temperature=0.7)
    with begun(config, tmp_path) as (run, state, collection):
        reference = random_like(run.network.params)
        annotators = reinforcement.policy_annotators(run, reference)
        statistics = annotate.make_statistics(run, "grpo", annotators, width=0, parts=2)
        io = reinforcement.strategy_io(run, state, reference, 0, statistics=functools.partial(statistics, state, 0))
        found = io.score(collection, "reference", ("logp", "entropy"))
        mask = collection.rollouts.mask > 0
        expected = logp_by_hand(run, reference, collection.rollouts, 0.7)
        np.testing.assert_allclose(found["logp"][mask], expected[mask], atol=2e-5)
        assert found["entropy"][mask].min() > 0
        behavior = collection.rollouts.behavior_logp
        np.testing.assert_allclose(io.score(collection, "policy")["logp"][mask], behavior[mask], atol=1e-4)
        with pytest.raises(ValueError, match="'grpo' needs a teacher policy, and there is none; set config.teacher.directory"):
            io.score(collection, "teacher")
        kept = io.score(collection, "reference", ("top_entropy:0.3",))["top_entropy:0.3"]
        assert (kept <= found["entropy"] + 1e-5)[mask].all() and kept[mask].max() > 0
        with pytest.raises(ValueError, match="reference_logits is no statistic of a policy"):
            io.score(collection, "reference", ("logits",))


def test_a_strategy_keeps_the_shapes_of_its_state():
    method = methods.get("grpo")
    state = {"strategy": {"visits": np.zeros(3)}, "estimator": ()}
    kept = with_strategy_state(method, state, {"visits": np.ones(3)})
    assert kept["estimator"] == () and kept["strategy"]["visits"].tolist() == [1, 1, 1]
    for found in ({"visits": np.ones(4)}, {"visits": np.ones(3), "more": np.ones(1)}, ()):
        with pytest.raises(ValueError, match=r"the state of grouped\(\) has become .*it must keep the shapes"):
            with_strategy_state(method, state, found)


def test_the_reference_answers_where_it_is_asked(tmp_path):
    with begun(tiny_config("grpo", kl_coefficient=0.1), tmp_path) as (run, state, _):
        reference = random_like(run.network.params)
        io = reinforcement.strategy_io(run, state, reference, 0)
        examples, numbers = io.draw(2)
        rollouts = io.sample(requests_for(examples, numbers, samples=2, by="reference")).rollouts
        mask = rollouts.mask > 0
        expected = logp_by_hand(run, reference, rollouts)
        np.testing.assert_allclose(rollouts.behavior_logp[mask], expected[mask], atol=1e-4)
        assert (rollouts.source == 1).all() and io.cursor == Cursor(0, 2)
        weights = np.zeros(len(run.source))
        weights[3] = 1.0
        assert io.draw(1, weights)[1] == [3]
        with pytest.raises(ValueError, match="give one for each of the"):
            io.draw(1, weights[1:])


def test_values_are_those_of_the_critic_before_each_token(tmp_path):
    with begun(tiny_config("ppo", kl_coefficient=0.0), tmp_path) as (run, state, collection):
        critic = random_like(state.params["critic"])
        state = state.replace(params={**state.params, "critic": critic})
        rollouts = reinforcement.make_annotate(run, None)(state, collection.rollouts)
        network = reinforcement.critic_network(run)
        values = np.asarray(network.value(critic, network.hidden(critic, rollouts.tokens)))
        taken = rollouts.mask[:, 1:] > 0
        np.testing.assert_allclose(rollouts.extras["behavior_value"][:, 1:][taken], values[:, :-1][taken], atol=2e-5)
        assert np.abs(values).max() > 0.05


def test_a_method_that_needs_nothing_gets_nothing(tmp_path):
    with begun(tiny_config("dr_grpo"), tmp_path) as (run, state, collection):
        assert reinforcement.make_annotate(run, None)(state, collection.rollouts) is collection.rollouts


# ---- the critic


def test_the_critic_begins_as_the_policy_and_says_zero(tmp_path):
    config = tiny_config("ppo", kl_coefficient=0.0)
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        policy, critic = state.params["policy"], state.params["critic"]
        assert reinforcement.policy_params(run, state) is policy
        assert critic.keys() - policy.keys() == {"value_head"}
        body = {name: critic[name] for name in policy}
        jax.tree.map(np.testing.assert_array_equal, body, policy)
        # A buffer of its own: those of the policy are given up by the update.
        pairs = zip(jax.tree.leaves(body), jax.tree.leaves(policy), strict=True)
        assert all(one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer() for one, other in pairs)
        network = reinforcement.critic_network(run)
        tokens = jnp.array([[1, 2, 3]])
        np.testing.assert_array_equal(network.value(critic, network.hidden(critic, tokens)), np.zeros((1, 3)))


def test_the_critic_learns_at_its_own_rate(tmp_path):
    config = tiny_config("ppo", kl_coefficient=0.0)
    config.critic.learning_rate_factor = 3.0
    with opened(config, tmp_path) as run:
        params = {"policy": {"w": jnp.ones(2)}, "critic": {"w": jnp.ones(2)}}
        optimizer = reinforcement.optimizer(run)
        changes, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
        np.testing.assert_allclose(changes["policy"]["w"], -1e-2, rtol=1e-3)
        np.testing.assert_allclose(changes["critic"]["w"], -3e-2, rtol=1e-3)


# ---- several updates a step


@pytest.mark.parametrize("minibatches", [1, 2, 3, 5])
def test_minibatches_part_the_rows(minibatches, tmp_path):
    config = tiny_config("dr_grpo")
    config.rl.update(minibatches=minibatches, epochs=2)
    with opened(config, tmp_path) as run:
        parts = {place: reinforcement.minibatch_rows(run, 17, *place) for place in [(0, 0), (0, 1), (1, 0)]}
        for found in parts.values():
            assert len(found) == minibatches
            assert sorted(np.concatenate(found).tolist()) == list(range(17))
            sizes = [len(rows) for rows in found]
            assert max(sizes) - min(sizes) <= 1
        if minibatches > 1:
            orders = [np.concatenate(found).tolist() for found in parts.values()]
            assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]
            again = reinforcement.minibatch_rows(run, 17, 0, 1)
            assert np.concatenate(again).tolist() == orders[1]


def recorded_updates(run, state, rollouts, number=3):
    """The batches that one step hands to the update."""
    batches = []

    def update(state, pack, frozen=None):
        batches.append(pack())
        return state, {"loss": jnp.float32(len(batches)), "logp_gap": jnp.float32(10 * len(batches))}

    _, metrics = reinforcement._updates(run, update, state, rollouts, number)
    return batches, metrics


@pytest.mark.parametrize("method", ["grpo", "cispo"])
def test_every_row_is_used_once_in_every_epoch(method, tmp_path):
    config = tiny_config(method, **({"kl_coefficient": 0.0} if method == "grpo" else {}))
    config.rl.update(minibatches=4, epochs=3)
    with begun(config, tmp_path) as (run, state, collection):
        rollouts, _ = run.method.estimator.update(collection.rollouts, state.method_state["estimator"], state.key)
        rollouts = jax.device_get(rollouts)
        batches, metrics = recorded_updates(run, state, rollouts)
    assert len(batches) == 12
    assert metrics["loss"] == pytest.approx(6.5)
    # The gap is that of the first update, before the policy has moved.
    assert metrics["logp_gap"] == 10.0
    rows = sorted(tuple(row[mask > 0].tolist()) for row, mask in zip(rollouts.tokens, rollouts.mask, strict=True))
    for epoch in range(3):
        of_epoch, weights = batches[4 * epoch : 4 * epoch + 4], []
        seen = []
        for batch in of_epoch:
            assert int(batch.step) == 3
            weights.append(float(batch.weight.sum()))
            for row in range(len(batch.tokens)):
                for segment in range(1, batch.segment[row].max() + 1):
                    own = (batch.segment[row] == segment) & (batch.mask[row] > 0)
                    seen.append(tuple(batch.tokens[row][own].tolist()))
        assert sorted(seen) == rows
        assert np.mean(weights) == pytest.approx(1, rel=1e-5)
        if method == "grpo":  # every sequence alike, so that equal parts have equal shares
            np.testing.assert_allclose(weights, 1, rtol=1e-5)


def test_parts_keep_the_advantages_of_the_whole(tmp_path):
    config = tiny_config("dr_grpo")
    config.rl.minibatches = 2
    with begun(config, tmp_path) as (run, state, collection):
        rollouts, _ = run.method.estimator.update(collection.rollouts, state.method_state["estimator"], state.key)
        rollouts = jax.device_get(rollouts)
        batches, _ = recorded_updates(run, state, rollouts)
    total = sum(float((batch.weight * batch.advantage).sum()) for batch in batches) / 2
    assert total == pytest.approx(float((rollouts.weight * rollouts.advantage).sum()), abs=1e-6)
    assert sorted(a for batch in batches for a in batch.advantage[batch.mask > 0].tolist()) == pytest.approx(
        sorted(rollouts.advantage[rollouts.mask > 0].tolist())
    )


def test_more_parts_than_rows_are_harmless(tmp_path):
    config = tiny_config("dr_grpo")
    config.rl.minibatches = 20
    with begun(config, tmp_path) as (run, state, collection):
        rollouts, _ = run.method.estimator.update(collection.rollouts, state.method_state["estimator"], state.key)
        batches, _ = recorded_updates(run, state, jax.device_get(rollouts))
    assert len(batches) == 20 and sum(float(batch.mask.sum()) for batch in batches) == rollouts.mask.sum()


def test_several_updates_use_one_draw(tmp_path):
    """Minibatches and epochs go over the rollouts of a step; the data moves on by its prompts, once."""
    config = tiny_config("dr_grpo")
    config.rl.update(minibatches=2, epochs=2, steps=1)
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        step = reinforcement.make_reinforcement_step(run, None)
        state, cursor, metrics, records = step(state, Cursor(), 0)
    assert cursor == Cursor(0, 4) and len(records) == 16 and int(state.step) == 4
    # After the first update the policy has left the sampler, yet the gap is that before it.
    assert metrics["logp_gap"] <= 1e-4 and metrics["behavior_kl"] > 1e-7


def test_micro_batches_change_nothing(tmp_path):
    found = []
    for parts in (1, 4):
        config = tiny_config("grpo", kl_coefficient=0.1)
        config.rl.micro_batches = parts
        with opened(config, tmp_path / str(parts)) as run:
            state = reinforcement.initial_state(run, run.network.params)
            step = reinforcement.make_reinforcement_step(run, random_like(run.network.params))
            found.append(step(state, Cursor(), 0)[2])
    for name in found[0]:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4, abs=1e-6), name


# ---- rewards and measures


def made_up_records(rewards, reasons):
    shown = [[None if np.isnan(value) else value for value in row] for row in rewards]
    return [{"rewards": row, "finish_reason": reason} for row, reason in zip(shown, reasons, strict=True)]


def made_up(rewards, lengths=(3, 2, 4, 3), groups=(0, 0, 1, 1)):
    width = 8
    mask = np.zeros((4, width), np.float32)
    for row, length in enumerate(lengths):
        mask[row, 2 : 2 + length] = 1
    return Rollouts(
        tokens=np.zeros((4, width), np.int32),
        length=np.array(lengths, np.int32) + 2,
        mask=mask,
        rewards=np.array(rewards, np.float32),
        group=np.array(groups, np.int32),
        behavior_logp=-0.5 * np.ones((4, width), np.float32),
    )


def test_measures_by_hand(tmp_path):
    config = tiny_config("dr_grpo")
    config.rewards.names = ("exact_match", "arithmetic")
    rewards = [[1.0, np.nan], [0.0, 0.5], [0.25, np.nan], [0.25, 0.0]]
    records = made_up_records(rewards, ("stop", "length", "stop", "stop"))
    with opened(config, tmp_path) as run:
        measured = rollout_metrics(run, made_up(rewards), records)
    assert measured["reward/exact_match"] == pytest.approx(0.375)
    assert measured["reward/arithmetic"] == pytest.approx(0.25)
    assert measured["reward"] == pytest.approx((1 + 0.5 + 0.25 + 0.25) / 4)
    assert measured["reward_missing"] == 0.25
    assert measured["reward_std"] == pytest.approx((0.25 + 0) / 2)
    assert measured["uniform_groups"] == 0.5
    assert measured["entropy"] == pytest.approx(0.5)
    assert (measured["length/mean"], measured["length/max"], measured["tokens"]) == (3.0, 4.0, 20.0)
    assert measured["truncated"] == 0.25


def test_a_reward_that_is_missing_everywhere_has_no_mean(tmp_path):
    records = made_up_records([[np.nan, 1.0]] * 4, ["stop"] * 4)
    config = tiny_config("dr_grpo")
    config.rewards.names = ("exact_match", "arithmetic")
    with opened(config, tmp_path) as run:
        measured = rollout_metrics(run, made_up([[np.nan, 1.0]] * 4), records)
    assert np.isnan(measured["reward/exact_match"]) and measured["reward"] == 1.0


def test_reward_weights_reach_the_advantages(tmp_path):
    """With the weights (0, 1) the first reward is measured, but learned from no more than where it is not there."""
    found = []
    for names, weights in [
        (("training.tiny_rewards:half", "training.tiny_rewards:shortness"), (0.0, 2.0)),
        (("training.tiny_rewards:shortness",), (2.0,)),
        (("training.tiny_rewards:half", "training.tiny_rewards:shortness"), ()),
    ]:
        config = tiny_config("dr_grpo")
        config.rewards.update(names=names, weights=weights)
        with opened(config, tmp_path / str(len(found))) as run:
            state = reinforcement.initial_state(run, run.network.params)
            _, _, metrics, records = reinforcement.make_reinforcement_step(run, None)(state, Cursor(), 0)
            found.append((metrics, records))
    weighted, alone, plain = (metrics for metrics, _ in found)
    assert weighted["surrogate/positive_advantage"] == pytest.approx(alone["surrogate/positive_advantage"], rel=1e-5)
    assert weighted["reward"] == pytest.approx(alone["reward"], rel=1e-5)
    assert weighted["surrogate/positive_advantage"] != pytest.approx(plain["surrogate/positive_advantage"], rel=1e-2)
    # Components are shown as the reward gave them.
    records = found[0][1]
    assert weighted["reward/training.tiny_rewards:half"] == pytest.approx(np.mean([row["rewards"][0] for row in records]))
    assert weighted["reward/training.tiny_rewards:half"] == pytest.approx(plain["reward/training.tiny_rewards:half"])


def test_reward_weights_reach_dynamic_sampling(tmp_path):
    """A group whose weighted rewards are all equal teaches nothing, and is sampled again."""
    config = tiny_config("dapo", max_rounds=2)
    config.rewards.update(names=("training.tiny_rewards:always_right", "training.tiny_rewards:shortness"), weights=(1.0, 0.0))
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        _, _, metrics, _ = reinforcement.make_reinforcement_step(run, None)(state, Cursor(), 0)
    assert metrics["dynamic_sampling/kept"] == 0 and metrics["dynamic_sampling/rounds"] == 2


def test_a_step_without_any_signal_changes_nothing_but_the_optimizer(tmp_path):
    config = tiny_config("dapo", max_rounds=1, overlong_size=0.0)
    config.rewards.names = ("training.tiny_rewards:always_right",)
    with opened(config, tmp_path) as run:
        start = jax.tree.map(np.array, run.network.params)
        state = reinforcement.initial_state(run, run.network.params)
        state, _, metrics, _ = reinforcement.make_reinforcement_step(run, None)(state, Cursor(), 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), start)
    assert metrics["gradient_norm"] == 0 and metrics["uniform_groups"] == 1 and metrics["skipped"] == 0
    assert all(np.isfinite(value) for value in metrics.values())
