"""One step in the program of every method whose strategy does more than sample groups."""

import numpy as np
import pytest
from training.tiny_runs import finish, tiny_config

LEVELS = (("{prompt}{part}", "answer", 0.5), ("{prompt}{part}", "answer", 1.0))
# Method -> its options; the alphabet of the tiny task has digits and signs alone.
OPTIONS = {
    "deepvideo_r1": {"levels": LEVELS},
    "ghpo": {"levels": LEVELS},
    "hindsight": {"template": "{achieved}={prompt}"},
    "icpo": {"samples": 3, "template": "{completion}{prompt}"},
    "opsd": {"template": "{answer};{prompt}", "count": 4},
    "papo": {"template": "="},
    "policy_rollout": {"samples": 2, "guided": 2, "template": "{completion}{prompt}"},
    "scaf_grpo": {"levels": LEVELS, "warmup_steps": 0, "learned": "plain"},
    "sdft": {"template": "{completion}{prompt}", "count": 4},
    "sdpo": {"template": "{solution}{prompt}", "count": 4, "share": 0.5},
    "svea": {"template": "+{prompt}"},
    "tfpi": {"stages": ((0, "{prompt}", "##"),)},
    "thought_augmented": {"samples": 2, "guided": 2, "template": "{answer};{prompt}"},
    "train_long_think_short": {"template": "[budget]#{prompt}"},
}
QUICK = ("sdpo", "hindsight")


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OPTIONS])
def test_one_step(method, tmp_path):
    config = tiny_config(method)
    config.method.options.update(**OPTIONS[method])
    config.rl.update(steps=1, row_tokens=0, prompts=2)
    config.task.max_prompt_tokens = 24
    done = finish(config, tmp_path)
    (line,) = done.metrics
    assert np.isfinite(line["loss"]) and line["skipped"] == 0
