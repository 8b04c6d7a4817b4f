"""Agents and what they decide: requests that would have it otherwise are refused before anybody is served."""

import numpy as np
import pytest
from rollouts.test_requests import io

from jaxrl_llm.rollouts import Request
from jaxrl_llm.rollouts.harness import Agents


@pytest.mark.parametrize(
    ("wish", "field"),
    [({"by": "reference"}, "by"), ({"temperature": 0.0}, "temperature"), ({"limit": 2}, "limit"), ({"stop": ("x",)}, "stop"),
     ({"mask": np.ones(16, bool)}, "mask"), ({"learned_prompt": "1"}, "learned_prompt")],
)  # fmt: skip
def test_what_agents_decide_is_refused_by_name(wish, field):
    source = io(environment=Agents(lambda addresses, examples: pytest.fail("somebody was asked")))
    with pytest.raises(ValueError, match=f"Request.{field} is"):
        source.sample([Request("1", {"prompt": "1"}, **wish)])
