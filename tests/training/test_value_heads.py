"""A method of samples that reads values and has no critic: the policy gets the head, and the head learns."""

import jax
import numpy as np
import pytest
from training.tiny_runs import finish, opened, tiny_config

from jaxrl_llm.training import reinforcement
from jaxrl_llm.training.policies import load_policy


@pytest.mark.slow
def test_the_policy_itself_learns_the_partition_function(tmp_path):
    run = finish(tiny_config("flowrl"), tmp_path)
    first, second = (record for record in run.metrics if "log_partition" in record)
    assert first["log_partition"] == 0 != second["log_partition"]  # the head begins at 0
    assert all(np.isfinite(record["loss"]) and record["skipped"] == 0 for record in (first, second))
    network, _ = load_policy(tmp_path)
    assert network.value is not None and np.abs(jax.tree.leaves(network.params["value_head"])[0]).max() > 0


def test_it_has_no_critic_to_be_configured(tmp_path):
    config = tiny_config("flowrl")
    with opened(config, tmp_path) as run:
        assert not reinforcement.separate_critic(run) and run.network.value is not None
    config.critic.shared = True
    with pytest.raises(ValueError, match="config.critic would change nothing: flowrl has no critic"):
        finish(config, tmp_path / "other")
