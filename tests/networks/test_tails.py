"""The kernel that reads tails, by the interpreter, against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_llm.networks import tails
from jaxrl_llm.networks.past import cells_of
from jaxrl_llm.networks.tails import fits_kernel, tail_attention

SLOTS, HEADS, GROUPS, SIZE = 3, 2, 2, 8
RUN = jax.jit(functools.partial(tail_attention, scale=0.3, interpret=True))
CAPPED = jax.jit(functools.partial(tail_attention, scale=0.3, softcap=5.0, interpret=True))


def by_hand(query, keys, values, first, last, softcap=None):
    """softmax(scale q k) v over the columns that are seen, float64."""
    found = np.zeros(query.shape)
    for slot in range(SLOTS):
        seen = slice(first[slot], last + 1)
        for head in range(HEADS):
            for group in range(GROUPS):
                logits = 0.3 * query[slot, head, group] @ keys[slot, head, :, seen]
                logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
                weights = np.exp(logits - logits.max())
                found[slot, head, group] = weights @ values[slot, head, seen] / weights.sum()
    return found


@given(
    seed=st.integers(0, 2**32 - 1), last=st.integers(0, 255), starts=st.lists(st.floats(0, 1), min_size=SLOTS, max_size=SLOTS),
    dtype=st.sampled_from(["float32", "bfloat16", "int8"]), capped=st.booleans(),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_the_kernel_sees_what_it_shall(seed, last, starts, dtype, capped):
    random = np.random.default_rng(seed)
    query = random.normal(size=(SLOTS, HEADS, GROUPS, SIZE))
    keys, values = random.normal(size=(SLOTS, HEADS, SIZE, 256)), random.normal(size=(SLOTS, HEADS, 256, SIZE))
    cells = cells_of(jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32), dtype)
    own = [np.asarray(part, np.float64) for part in (cells.keys, cells.values)]
    if cells.key_scale is not None:
        own = [own[0] * np.asarray(cells.key_scale)[:, :, None], own[1] * np.asarray(cells.value_scale)[..., None]]
    first = np.array([int(share * last) for share in starts])
    asked = jnp.asarray(query, jnp.float32)
    mixed, total, _ = (CAPPED if capped else RUN)(asked, cells, first, jnp.int32(last))
    expected = by_hand(np.asarray(asked, np.float64), *own, first, last, 5.0 if capped else None)
    np.testing.assert_allclose(mixed / total[..., None], expected, atol=2e-5)


def test_blocks_that_nobody_sees_are_not_read(monkeypatch):
    """What is not a number there would show: 0 times it is none either."""
    keys = jnp.full((SLOTS, HEADS, SIZE, 512), jnp.nan).at[..., 128:256].set(1.0)
    values = jnp.full((SLOTS, HEADS, 512, SIZE), jnp.nan).at[:, :, 128:256].set(2.0)
    query, first = jnp.ones((SLOTS, HEADS, GROUPS, SIZE)), np.full(SLOTS, 130)
    run = functools.partial(tail_attention, scale=1.0, interpret=True)
    monkeypatch.setattr(tails, "_BLOCK_BYTES", 1)  # the smallest blocks
    mixed, total, largest = run(query, cells_of(keys, values, "float32"), first, jnp.int32(200))
    np.testing.assert_allclose(total, 71.0, rtol=1e-6)
    np.testing.assert_allclose(mixed / total[..., None], 2.0, rtol=1e-6)
    np.testing.assert_allclose(largest, 8.0)


def test_widths_that_fit():
    assert [width for width in (64, 128, 192, 256, 300, 512) if fits_kernel(width)] == [256, 512]
