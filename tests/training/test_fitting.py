"""Micro-batches that fit into memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.tiny_runs import finish, finished, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm.training import fitting, run


def test_bytes_of_a_program_count_inputs_outputs_and_what_lies_between():
    square = jax.jit(lambda x: (jnp.sin(x) @ jnp.cos(x)).sum(axis=0))
    size = 64 * 64 * 4
    found = fitting.program_bytes(square, jnp.ones((64, 64)))
    assert size + 64 * 4 <= found <= 4 * size
    donating = jax.jit(lambda x: x + 1, donate_argnums=0)
    assert fitting.program_bytes(donating, jnp.ones((64, 64))) == size


def test_a_program_that_the_compiler_refuses_needs_more_than_there_is():
    class Refused:
        def lower(self, *_):
            raise jax.errors.JaxRuntimeError(self.reason)

    refused = Refused()
    refused.reason = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"
    assert fitting.program_bytes(refused) == np.inf
    refused.reason = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        fitting.program_bytes(refused)


def test_an_update_without_room_is_cut_into_parts_of_fewer_rows_and_stays_the_same(tmp_path, monkeypatch):
    whole, asked, lay_out = finished("dr_grpo").metrics, [], run.lay_out

    def listen(*args, part_tokens=0, **options):
        asked.append(part_tokens)
        return lay_out(*args, part_tokens=part_tokens, **options)

    monkeypatch.setattr(run, "lay_out", listen)
    monkeypatch.setattr(fitting, "device_memory", lambda: 1)
    cut = finish(tiny_config("dr_grpo"), tmp_path).metrics
    # Rows of 64 tokens, three of them in the one part that suits the device: halves of that, until there is one.
    assert asked.count(64) == 2 and set(asked) == {0, 64}
    for mine, theirs in zip(cut, whole, strict=True):
        for name in mine.keys() - {"phase"}:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-4, atol=2e-6, err_msg=name)
