"""Runs that train an adapter, or a part of the parameters, over a frozen and maybe quantised base."""

import json

import jax
import numpy as np
import pytest
from training.tiny_runs import finish, opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm.networks import load_huggingface, load_peft, remove_adapter
from jaxrl_llm.training import metrics, policies, reinforcement
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.policies import convert, load_policy

pytestmark = pytest.mark.slow

HIDDEN = 64  # codes of 4 bits come in blocks of 64 inputs


def adapted_config(method="grpo", quantization="", **options):
    config = tiny_config(method, **options)
    config.network.update(hidden_size=HIDDEN, intermediate_size=64, num_heads=2, num_kv_heads=1, head_dim=32)
    config.network.adapter.update(pattern=r"attention\.(query|value)|mlp\.", rank=2)
    config.network.quantization = quantization
    return config


def arrays(tree):
    return jax.tree.leaves(tree)


@pytest.mark.parametrize("quantization", [pytest.param("", marks=pytest.mark.slow), "nf4"])
def test_an_adapter_learns_over_a_base_that_stays(quantization, tmp_path):
    config = adapted_config(quantization=quantization, kl_coefficient=0.1)
    config.sft.update(steps=1, examples=20)
    run = finish(config, tmp_path)
    assert all(record["skipped"] == 0 and record.get("logp_gap", 0) <= 1e-4 for record in run.metrics)
    assert run.metrics[1]["reference_kl"] == pytest.approx(0, abs=1e-9) and run.metrics[2]["reference_kl"] > 1e-9
    network, _ = load_policy(tmp_path)
    with opened(config, tmp_path) as again:
        whole = again.whole(again.network.params)
        trained = jax.tree_util.tree_leaves_with_path(again.network.params)
        assert {path[-1].key for path, _ in trained} == {"lora_a", "lora_b"}
        # Neither moments nor gradients of the base: its share of the state is nothing.
        state = reinforcement.initial_state(again, again.network.params)
        assert sum(leaf.size for leaf in arrays(state.params)) < sum(leaf.size for leaf in arrays(whole)) / 4
        base = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(whole) if "lora" not in path[-1].key}
        after = dict(jax.tree_util.tree_leaves_with_path(network.params))
        for path, leaf in base.items():
            np.testing.assert_array_equal(after[path], leaf)
        assert all(np.abs(after[path] - leaf).max() > 0 for path, leaf in trained)
    report = tmp_path / "quantization.json"
    assert report.exists() == bool(quantization)
    if quantization:
        gap = json.loads(report.read_text())
        assert 0 < gap["mean"] <= gap["largest"] < 1 and gap["kl"] > 0


def test_a_run_over_a_frozen_base_resumes_to_the_bit(tmp_path):
    config = adapted_config(quantization="int8", kl_coefficient=0.1)
    config.rl.steps = 1
    finish(config, tmp_path / "resumed")
    config.rl.steps = 2
    resumed, longer = (finish(config, tmp_path / name).metrics for name in ("resumed", "longer"))
    # The shorter run evaluated at its end.
    held_out = {name for name in resumed[0] if name.startswith("evaluation/")}
    assert [{k: v for k, v in record.items() if k not in held_out} for record in resumed[:1]] == longer[:1]
    assert resumed[1] == longer[1]


def test_policy_and_critic_share_the_frozen_base(tmp_path):
    config = adapted_config("ppo", kl_coefficient=0.0)
    records = finish(config, tmp_path).metrics
    assert all(record["skipped"] == 0 and record["loss/value_loss"] > 0 for record in records)
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        assert state.params["critic"].keys() - state.params["policy"].keys() == {"value_head"}
        frozen = reinforcement.frozen_params(run)
        assert all(a is b for a, b in zip(arrays(frozen["policy"]), arrays(frozen["critic"]), strict=True))


@pytest.mark.slow
def test_an_adapter_is_converted_alone_or_merged(tmp_path):
    config = adapted_config()
    finish(config, tmp_path / "run")
    network, _ = load_policy(tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "merged", to="huggingface")
    convert(tmp_path / "run", tmp_path / "adapter", to="peft")
    convert(tmp_path / "run", tmp_path / "orbax", to="orbax")
    tokens = np.arange(8)[None] % network.config.vocab_size
    expected = network.apply(network.params, tokens)
    merged = load_huggingface(tmp_path / "merged")
    np.testing.assert_allclose(merged.apply(merged.params, tokens), expected, atol=2e-5)
    with opened(config, tmp_path / "run") as run:
        base, params = remove_adapter(run.network.without_params(), run.whole(run.network.params))
    again, params = load_peft(base, params, tmp_path / "adapter")
    np.testing.assert_allclose(again.apply(params, tokens), expected, atol=2e-5)
    same = policies._load_orbax(tmp_path / "orbax")
    np.testing.assert_array_equal(same.apply(same.params, tokens), expected)


@pytest.mark.slow
def test_a_chosen_part_of_the_parameters_trains(tmp_path):
    config = tiny_config("dr_grpo")
    config.network.trains = r"mlp\.down"
    finish(config, tmp_path)
    network, _ = load_policy(tmp_path)
    with opened(config, tmp_path) as run:
        before = dict(jax.tree_util.tree_leaves_with_path(run.whole(run.network.params)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.params):
        moved = np.abs(leaf - before[path]).max() > 0
        assert moved == ("down" in jax.tree_util.keystr(path)), path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization": "int8"}, "config.network.quantization is 'int8', but codes cannot train"),
        ({"quantization": "int8", "trains": "mlp"}, "trains='mlp' is found in .*codes, which is int8"),
        ({"quantization": "int3", "trains": "norm"}, "quantization.kind='int3' is unknown; choose one of int8"),
        ({"trains": "nowhere"}, "trains='nowhere' is found in no path"),
        ({"adapter": {"pattern": "nowhere"}}, "adapter.pattern='nowhere' is found in"),
        ({"adapter": {"pattern": "mlp", "rank": 0}}, "adapter.rank=0 must be at least 1"),
    ],
)
def test_what_cannot_train_is_refused(change, message, tmp_path):
    config = tiny_config()
    config.network.update(hidden_size=HIDDEN, intermediate_size=64)
    config.network.update(change)
    with pytest.raises(ValueError, match=message):
        check_config(config)
        finish(config, tmp_path)
    assert not metrics.read_jsonl(tmp_path / "metrics.jsonl")
