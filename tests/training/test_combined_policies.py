"""Runs whose policy is a combination: of a network and a grammar, and of a residual on a frozen base."""

import re

import jax
import jax.numpy as jnp
from training.tiny_runs import ALPHABET, SIZES, tiny_config

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.data.grammars import token_table
from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.networks.combined import allowed, automaton, behind, combined, residual
from jaxrl_llm.training import loop

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
