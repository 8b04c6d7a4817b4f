"""What a run may ask of its network: a name, experts with their losses and routes, a critic on the policy."""

import jax
import numpy as np
import pytest
from training.tiny_runs import finish, opened, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm import networks
from jaxrl_llm.networks import DecoderConfig, ExpertsConfig, decoder, save_huggingface
from jaxrl_llm.rollouts import requests_for
from jaxrl_llm.training import reinforcement
from jaxrl_llm.training.build import build_tokenizer, network_structure
from jaxrl_llm.training.config import check_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experts_directory(tmp_path_factory):
    """A tiny checkpoint with experts, for the alphabet of the tiny runs."""
    directory = tmp_path_factory.mktemp("experts")
    with opened(tiny_config(), directory / "run") as run:
        plain = run.network.config
    config = DecoderConfig(
        vocab_size=plain.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        family="qwen3_moe",
        qk_norm="head",
        tie_embeddings=True,
        eos_ids=plain.eos_ids,
        pad_id=plain.pad_id,
        experts=ExpertsConfig(count=4, per_token=2, width=12, normalize=True),
    )
    network = decoder(config)
    save_huggingface(network, network.init(jax.random.key(0)), directory)
    return directory


def test_experts_learn_with_router_losses_and_the_routes_of_the_sampler(experts_directory, tmp_path):
    config = tiny_config("grpo", kl_coefficient=0.1)
    config.network.directory = str(experts_directory)
    config.sft.update(steps=1, examples=20)
    config.network.router.update(load_balancing=0.1, z=0.01, replay=True)
    records = finish(config, tmp_path).metrics
    assert [record["phase"] for record in records] == ["sft", "rl", "rl"]
    for record in records:
        assert record["skipped"] == 0 and record["loss/load_balancing"] > 0 and record["loss/router_z"] > 0
        assert record["expert_load_max"] >= 1
        assert record.get("logp_gap", 0) <= 1e-4
    with opened(config, tmp_path) as run:
        state = reinforcement.initial_state(run, run.network.params)
        rollouts = run.io(state.params, 0).sample(requests_for([run.source[0]], [0], samples=2)).rollouts
        assert rollouts.extras["routes"].shape == (*rollouts.tokens.shape, 2, 2)


@pytest.mark.parametrize("change", [{"z": 0.1}, {"load_balancing": 0.1}, {"replay": True}])
def test_options_of_routers_are_refused_without_experts(change, tmp_path):
    config = tiny_config()
    config.network.router.update(change)
    with pytest.raises(ValueError, match="config.network.router is .*, but the network has no experts"):
        finish(config, tmp_path)


def test_a_shared_critic_is_one_network(tmp_path):
    config = tiny_config("ppo", kl_coefficient=0.0)
    config.critic.shared = True
    run = finish(config, tmp_path)
    for record in run.metrics:
        assert record["skipped"] == 0 and record["logp_gap"] <= 1e-4 and np.isfinite(record["loss/value_loss"])
    with opened(config, tmp_path) as opened_run:
        state = reinforcement.initial_state(opened_run, opened_run.network.params)
        assert state.params["value_head"].shape == (1, 16) and "critic" not in state.params
        assert reinforcement.policy_params(opened_run, state) is state.params


@pytest.mark.parametrize(
    ("shared", "head", "loss"),
    [(False, "bins", "categorical_value_loss"), pytest.param(True, "quantiles", "quantile_value_loss", marks=pytest.mark.slow)],
)
def test_critics_of_several_outputs(shared, head, loss, tmp_path):
    config = tiny_config("ppo", kl_coefficient=0.0)
    config.critic.update(shared=shared, head=head, head_options={"count": 5})
    with pytest.raises(ValueError, match="value_clip=0.2 would change nothing with config.critic.head"):
        finish(config, tmp_path)
    config.method.options.value_clip = None
    for record in finish(config, tmp_path).metrics:
        assert record["skipped"] == 0 and record[f"loss/{loss}"] > 0 and "loss/value_loss" not in record


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("ppo", {"head": "bin"}, "config.critic.head is 'bin'; it must be one of"),
        ("ppo", {"head": "bins", "head_options": {"outputs": 3}}, "config.critic.head_options: bins: unknown option 'outputs'"),
        ("reinforce", {"warmup_steps": 2}, "config.critic would change nothing: reinforce has no critic"),
        ("grpo", {"shared": True}, "config.critic would change nothing: grpo has no critic"),
        (
            "ppo",
            {"shared": True, "learning_rate_factor": 2.0},
            "learning_rate_factor would change nothing: config.critic.shared",
        ),
    ],
)
def test_inert_options_of_the_critic_are_refused(method, change, message):
    config = tiny_config(method, value_clip=None) if method == "ppo" else tiny_config(method)
    config.critic.update(change)
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_network_by_its_name():
    config = tiny_config()
    config.network.name = "qwen3-0.6b"
    found = network_structure(config, build_tokenizer(config)).config
    assert found == networks.config("qwen3-0.6b", dtype="float32", param_dtype="float32")
    config.network.directory = "somewhere"
    with pytest.raises(ValueError, match="config.network.name would change nothing"):
        check_config(config)
