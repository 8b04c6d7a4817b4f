"""How rollouts are laid out for networks that cannot read all of them alike."""

import jax
import numpy as np
import pytest

from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.networks.config import DeltaConfig
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training.layout import lay_out
from jaxrl_llm.types import Rollouts

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
DELTA = {"delta": DeltaConfig(key_heads=1, value_heads=2, key_dim=4, value_dim=4), "layer_types": ("delta", "full")}


def forked(count):
    """Rows that leave a common way one after the other; in the order of their tokens, those that leave it last come first."""
    random = np.random.default_rng(0)
    way = random.integers(0, 39, 120)
    tokens = np.stack([np.concatenate([way[: row + 1], [39], random.integers(0, 40, 118 - row)]) for row in range(count)])
    mask = np.broadcast_to((np.arange(120) >= count).astype(np.float32), tokens.shape)
    length = np.full(count, 120, np.int32)
    return Rollouts(tokens=tokens.astype(np.int32), length=length, mask=mask, rewards=np.zeros((count, 1), np.float32))


@pytest.mark.parametrize(("count", "forest"), [(5, True), (24, False)])
def test_states_have_room_for_so_many_open_forks(count, forest):
    network, dense = decoder(DecoderConfig(**SIZES, **DELTA)), decoder(DecoderConfig(**SIZES))
    rollouts = forked(count)
    batch = lay_out(network, rollouts, 3000, 1)
    assert (batch.forest is not None) == forest
    assert lay_out(dense, rollouts, 3000, 1).forest is not None
    params = network.init(jax.random.key(0))
    logp = np.asarray(jax.jit(make_scorer(network))(params, batch).logp)
    assert np.isfinite(logp).all() and logp.min() < 0
