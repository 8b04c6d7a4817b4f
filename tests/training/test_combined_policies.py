"""Runs whose policy is a combination: of a network and a grammar, and of a residual on a frozen base."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.tiny_runs import ALPHABET, SIZES, tiny_config

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.data.grammars import token_table
from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.networks.combined import allowed, automaton, behind, combined, residual
from jaxrl_llm.training import loop
from jaxrl_llm.training.chat import converse
from jaxrl_llm.training.config import check_config
from jaxrl_llm.training.evaluate import evaluate_policy
from jaxrl_llm.training.metrics import read_jsonl
from jaxrl_llm.training.policies import convert, load_policy
from jaxrl_llm.training.programs import planned_run
from jaxrl_llm.training.rounds import round_config

TOKENIZER = load_tokenizer(ALPHABET)
NETWORK = decoder(
    DecoderConfig(vocab_size=TOKENIZER.vocab_size, eos_ids=tuple(TOKENIZER.stop_ids), tie_embeddings=True, **SIZES)
)


def run(network, params, workdir):
    config = tiny_config("grpo", kl_coefficient=0.0)
    config.network.trains = "^first"
    told = []
    loop.train(
        config,
        workdir,
        network=network.with_params(params),
        callbacks=[lambda step, metrics, records: told.append((metrics, records))],
    )
    return told


def test_a_policy_under_a_grammar_samples_and_learns_what_the_grammar_allows(tmp_path):
    table = behind(jnp.asarray(token_table(TOKENIZER, pattern="[0-9]{1,3}#[0-9]")), TOKENIZER.encode("=")[0])
    network = combined(NETWORK, automaton(TOKENIZER.vocab_size), allowed())
    told = run(network, {"first": NETWORK.init(jax.random.key(0)), "second": {"next": table}}, tmp_path)
    for metrics, records in told:
        assert all(re.fullmatch("[0-9]{1,3}#[0-9]", record["completion"]) for record in records)
        assert metrics["logp_gap"] < 1e-4 and metrics["skipped"] == 0 and metrics["gradient_norm"] > 0


def test_a_residual_learns_on_top_of_a_frozen_base(tmp_path):
    network = combined(NETWORK, NETWORK, residual())
    params = {"first": NETWORK.init(jax.random.key(0)), "second": NETWORK.init(jax.random.key(1))}
    told = run(network, params, tmp_path)
    assert all(metrics["logp_gap"] < 1e-4 and metrics["gradient_norm"] > 0 for metrics, _ in told)


def laid_around(method="grpo", **sections):
    config = tiny_config(method, kl_coefficient=0.0)
    for name, values in sections.items():
        config.network[name].update(values)
    return config


GRAMMAR = {"pattern": "[0-9]{1,3}#[0-9]", "behind": "="}
REFERENCE = {"mode": "geometric", "weight": 0.3}


def test_a_configuration_lays_a_reference_a_grammar_and_temperatures_around_a_policy_with_a_critic(tmp_path, capsys):
    config = laid_around("ppo", combined=REFERENCE, grammar=GRAMMAR, entropy_temperature={"strength": 0.2})
    summary = loop.train(config, tmp_path)
    steps = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(step["logp_gap"] < 1e-4 and step["gradient_norm"] > 0 and step["skipped"] == 0 for step in steps)
    assert steps[-1]["evaluation/logp_gap"] < 1e-4 and steps[-1]["evaluation/greedy_mismatch"] == 0
    network, _ = load_policy(tmp_path)
    assert set(network.params) == set(network.params["first"]) == {"first", "second"}
    own, reference = network.params["first"]["first"], network.params["first"]["second"]
    distance = jax.tree.map(lambda one, other: np.abs(one - other).max(), own, reference)
    assert max(jax.tree.leaves(distance)) > 1e-3  # the one has learned, the other has not
    measured, records = evaluate_policy(tmp_path, config)
    assert measured["evaluation/accuracy"] == summary["accuracy_after"] and measured["evaluation/logp_gap"] < 1e-4
    assert all(re.fullmatch(GRAMMAR["pattern"], record["completion"]) for record in records)
    sampling = {"max_new_tokens": 8, "temperature": 1.0, "seed": 0}
    converse(str(tmp_path), "1+2=", sampling=sampling)
    assert re.fullmatch(GRAMMAR["pattern"], capsys.readouterr().out.strip())
    with pytest.raises(ValueError, match="the grammar does not begin where the prompt '1\\+2' ends"):
        converse(str(tmp_path), "1+2", sampling=sampling)
    with pytest.raises(ValueError, match="holds several networks, and convert writes one"):
        convert(tmp_path, tmp_path / "converted", to="orbax")
    resumed = laid_around("ppo", combined=REFERENCE, grammar=GRAMMAR, entropy_temperature={"strength": 0.2})
    resumed.rl.steps = 3
    loop.train(resumed, tmp_path)
    assert read_jsonl(tmp_path / "metrics.jsonl")[:2] == steps


def test_a_small_residual_learns_on_the_policy_of_a_folder(tmp_path):
    base = tiny_config("grpo")
    base.rl.steps, base.sft.steps, base.rewards.names = 0, 1, ()
    loop.train(base, tmp_path / "base")
    config = laid_around(combined={"mode": "residual", "beside": str(tmp_path / "base")})
    config.network.hidden_size = 8
    config.rl.steps = 1
    loop.train(config, tmp_path / "run")
    (step,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert step["logp_gap"] < 1e-4 and step["gradient_norm"] > 0
    found, below = load_policy(tmp_path / "run")[0].params, load_policy(tmp_path / "base")[0].params
    jax.tree.map(np.testing.assert_array_equal, found["second"], below)
    assert found["first"]["embedding"].shape[1] == 8


def test_prompts_behind_which_a_grammar_does_not_begin_are_refused(tmp_path):
    with pytest.raises(ValueError, match="config.network.grammar.behind is '3=', and the grammar does not begin where"):
        loop.train(laid_around(grammar=GRAMMAR | {"behind": "3="}), tmp_path)


@pytest.mark.parametrize(
    ("sections", "changes", "fault"),
    [
        ({"combined": {"mode": "mean"}}, {}, "config.network.combined.mode is 'mean'; it must be '' or one of"),
        ({"combined": {"weight": 0.5}}, {}, "which would change nothing: set its mode"),
        ({"grammar": {"pattern": "1"}}, {}, "give a pattern or a schema, and in `behind` the text"),
        ({"grammar": GRAMMAR | {"schema": "{}"}}, {}, "give a pattern or a schema, and in `behind` the text"),
        ({"grammar": {"schema": "{type", "behind": "="}}, {}, "config.network.grammar.schema is '{type', which is no JSON"),
        ({"entropy_temperature": {"strength": 1.0}}, {}, "strength is 1.0; it must be from 0 to below 1"),
        ({"entropy_temperature": {"width": 2.0}}, {}, "would change nothing: its strength is 0"),
        ({"combined": REFERENCE}, {"method.name": "flowrl"}, "'flowrl' needs values of the policy's own network"),
        ({"combined": REFERENCE}, {"network.router.z": 1.0}, "and routers are left out"),
        ({"combined": REFERENCE}, {"mesh.actors": 1}, "are for one network"),
        ({"grammar": GRAMMAR}, {"sft.steps": 1}, "given texts need not match it"),
    ],
)
def test_what_does_not_go_together_is_refused(sections, changes, fault):
    config = laid_around(**sections)
    if changes.get("method.name") == "flowrl":
        config.method.options = {}
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=fault):
        check_config(config)


def test_what_is_for_one_network_says_so():
    config = laid_around(combined=REFERENCE)
    with pytest.raises(ValueError, match="no plan has the programs of several networks"):
        planned_run(config, jax.devices()[:1])
    config.rounds = ({"phase": "rl"},)
    with pytest.raises(ValueError, match="rounds train whole networks"):
        round_config(config, 0)
