"""What a configuration lays over an optimizer, and what it says of rewards, critics, routers and goals."""

import json

import jax
import numpy as np
import optax
import pytest
from training.tiny_preferences import preference_config
from training.tiny_runs import finish, opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm import methods, objectives, optimizers
from jaxrl_llm.training import build, reinforcement, reward_functions, wrapping
from jaxrl_llm.training.config import check_config, reinforcement_method


def params_like(config, tmp_path):
    with opened(config, tmp_path) as run:
        return run, jax.tree.map(np.array, run.network.params)


def test_transforms_stand_behind_adam(tmp_path):
    settings = tiny_config().rl.optimizer
    settings.wrap = {"extrapolate_every": {"every": 2, "share": 0.5}}
    plain = optax.sgd(1.0)
    found, expected = (
        wrapping.wrapped_optimizer(plain, wrapping.wrap_of(settings)),
        optax.chain(plain, optimizers.extrapolate_every(2, share=0.5)),
    )
    params, states = np.ones(3), [each.init(np.ones(3)) for each in (found, expected)]
    for _ in range(3):
        results = [each.update(np.ones(3), state, params) for each, state in zip((found, expected), states, strict=True)]
        states = [state for _, state in results]
        np.testing.assert_array_equal(results[0][0], results[1][0])
    settings.wrap = {}
    assert wrapping.wrapped_optimizer(plain, wrapping.wrap_of(settings)) is plain


@pytest.mark.slow
@pytest.mark.parametrize("separate", [False, True])
def test_the_direction_of_a_merge_is_what_the_phases_before_changed(separate, tmp_path):
    config = tiny_config("ppo", kl_coefficient=0.0) if separate else tiny_config("dr_grpo")
    config.sft.steps = 1
    config.rl.optimizer.wrap = {"online_dare": {"keep": 0.5, "mix": 0.25, "direction_bound": 0.1}}
    with opened(config, tmp_path) as run:
        moved = jax.tree.map(lambda leaf: leaf + 0.05, run.network.params)
        state = reinforcement.initial_state(run, moved)
        merges = [leaf for leaf in jax.tree.leaves(state.opt_state, is_leaf=_is_merge) if _is_merge(leaf)]
        (merge,) = merges
        assert len(jax.tree.leaves(merge.direction)) == len(jax.tree.leaves(moved))
        for leaf in jax.tree.leaves(merge.direction):
            np.testing.assert_allclose(leaf, 0.05, atol=1e-6)
        gradients = jax.tree.map(np.ones_like, state.params)
        updates, _ = reinforcement.optimizer(run).update(gradients, state.opt_state, state.params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def _is_merge(node):
    return type(node).__name__ == "MergingState"


@pytest.mark.slow
def test_a_run_with_everything_laid_over(tmp_path):
    """Behind a supervised phase: slow-fast updates with merged and extrapolated steps, resumed as it was."""
    config = tiny_config("dr_grpo")
    config.sft.steps, config.rl.steps, config.rl.measure_gap = 1, 2, True
    config.rl.optimizer.wrap = {
        "online_ties": {"density": 0.5, "mix": 1e-3},
        "extrapolate_every": {"every": 2},
        "slow_fast": {"fast_steps": 2, "reposition": 0.5},
    }
    run = finish(config, tmp_path)
    rl = [record for record in run.metrics if record["phase"] == "rl"]
    assert len(rl) == 2 and all("fast/loss" in record and record["skipped"] == 0 for record in rl)
    assert all(0 < record["gap/effective_sample_size"] <= 1 + 1e-6 and record["gap/perplexity"] >= 1 for record in rl)


@pytest.mark.parametrize(("wrap", "message"), [
    ({"slow_fst": {}}, "wrap has 'slow_fst'; it must be one of .*'slow_fast'"),
    ({"slow_fast": {"steps": 2}}, "wrap.slow_fast is {'steps': 2}"),
    ({"slow_fast": {"fast_steps": 0}}, "fast_steps is 0"),
    ({"extrapolate_every": {}}, "wrap.extrapolate_every is {}"),
    ({"online_dare": {"keep": 0.5, "mix": 0.1}}, "wrap.online_dare has no direction: no phase comes before"),
    ({"online_ties": {"density": 2.0, "mix": 0.1, "base": "there"}}, "density is 2.0"),
])  # fmt: skip
def test_impossible_wrappers(wrap, message):
    config = tiny_config()
    config.rl.optimizer.wrap = wrap
    with pytest.raises(ValueError, match=message):
        check_config(config)
    config = tiny_config()
    config.sft.optimizer.wrap = {"slow_fast": {}}
    with pytest.raises(ValueError, match="config.sft.optimizer.wrap would change nothing"):
        check_config(config)


# ---- rewards with options


def test_rewards_are_made_out_of_options():
    config = tiny_config()
    config.rewards.names = ("length_cosine", "format_reward", "marked_answer", "training.tiny_rewards:make_constant")
    config.rewards.options = {
        "length_cosine": {"reward": "marked_answer", "exceeded": -3.0},
        "format_reward": {"pattern": "[0-9]+"},
        "marked_answer": {"marker": "#"},
        "make_constant": {"value": 0.75},
    }
    check_config(config)
    made = reward_functions.build_rewards(config)
    texts, columns = ["1#3", "12"], {"answer": ["3", "3"], "completion_length": [3, 12]}
    assert made["format_reward"](["", ""], texts) == [0.0, 1.0]
    assert made["marked_answer"](["", ""], texts, **columns) == [1.0, 0.0]
    assert made["training.tiny_rewards:make_constant"](["", ""], texts) == [0.75, 0.75]
    # The limit is that of the sampler, 12 tokens here.
    found = made["length_cosine"](["", ""], texts, **columns)
    assert found == [pytest.approx(1.0 + 0.5 * (1.0 + np.cos(np.pi * 3 / 12))), -3.0]


@pytest.mark.parametrize(("names", "options", "message"), [
    (("exact_match",), {"format_reward": {}}, "config.rewards.options.format_reward would change nothing"),
    (("exact_match",), {"exact_match": {"strict": True}}, "config.rewards.options.exact_match would change nothing"),
    (("marked_answer",), {}, "config.rewards.options.marked_answer is {}; it takes .*'marker'"),
    (("format_reward",), {"format_reward": {"patern": "x"}}, "config.rewards.options.format_reward is .*it takes .*'pattern'"),
])  # fmt: skip
def test_impossible_options_of_rewards(names, options, message):
    config = tiny_config()
    config.rewards.names, config.rewards.options = names, options
    with pytest.raises(ValueError, match=message):
        check_config(config)
        reward_functions.build_rewards(config)


# ---- critics, routers, goals, methods of one's own


@pytest.mark.parametrize(("head", "options", "expected"), [
    ("plain", {"huber": 2.0, "clip": None}, objectives.value_loss(coefficient=0.5, clip=None, huber=2.0)),
    ("bins", {"smoothing": 0.5}, objectives.categorical_value_loss(low=0.0, high=1.0, coefficient=0.5, smoothing=0.5)),
    ("quantiles", {"huber": 0.3}, objectives.quantile_value_loss(coefficient=0.5, huber=0.3)),
])  # fmt: skip
def test_options_of_the_loss_of_a_critic(head, options, expected):
    config = tiny_config("ppo", value_clip=None)
    config.critic.update(head=head, head_options={} if head == "plain" else {"count": 5}, options=options)
    check_config(config)
    found = reinforcement_method(config)
    assert expected == found.critic.loss and expected in found.objective.terms
    assert found.critic.outputs == (1 if head == "plain" else 5)
    config.critic.options = {"huberr": 1.0}
    with pytest.raises(ValueError, match="config.critic.options: .*huberr"):
        reinforcement_method(config)


def test_routers_pooled_or_by_layer():
    config = tiny_config()
    config.network.router.pooled = False
    with pytest.raises(ValueError, match="config.network.router.pooled would change nothing"):
        check_config(config)


def test_prompts_that_name_the_score_that_is_wanted(tmp_path):
    rows = [
        {"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "0", "chosen_score": 2, "rejected_score": 1} for n in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = preference_config(steps=1)
    config.preference.update(method="reward_augmented_dpo", options={})
    config.task.options, config.task.test_options = {"path": str(tmp_path / "pairs.jsonl")}, {}
    config.task.goal, config.tokenizer = "score {}", "bytes"
    config.task.max_prompt_tokens = 32
    source = build.build_source(config, build.build_tokenizer(config))
    assert len(source) == 8 and source[0]["prompt"] == "score 2\n0+1=" and source[1]["prompt"] == "score 1\n0+1="
    assert (source[1]["chosen"], source[1]["rejected"]) == ("0", "1")


def test_a_method_of_ones_own_is_named_in_a_configuration():
    """Everything public in estimators and objectives is reached by a composition in the configuration's own file."""
    from jaxrl_llm import estimators, rollouts

    @methods.method(paper="- (2026)", url="https://example.com/", certainty="sketch")
    def composed_here(*, samples: int = 4):
        """Median baselines under a soft clip."""
        advantage = estimators.group_advantage(baseline=estimators.median_baseline(), scale=estimators.mad_scale())
        term = objectives.policy(trust=objectives.sapo())
        return (
            rollouts.grouped(samples=samples),
            estimators.chain(advantage, estimators.token_mean()),
            objectives.objective(term),
        )

    try:
        config = tiny_config("composed_here")
        check_config(config)
        assert "median_baseline" in methods.get("composed_here").composition()
    finally:
        methods.base._ENTRIES.pop("composed_here")
