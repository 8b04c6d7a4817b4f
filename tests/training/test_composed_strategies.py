"""One step in the program of every method whose strategy does more than sample groups."""

import numpy as np
import pytest
from training.tiny_runs import finish, tiny_config

from jaxrl_llm.training import metrics

LEVELS = (("{prompt}{part}", "answer", 0.5), ("{prompt}{part}", "answer", 1.0))
# Method -> its options; the alphabet of the tiny task has digits and signs alone.
OPTIONS = {
    "branch_grpo": {"widths": (2, 2, 2), "segment": 3},
    "brpo": {"samples": 2, "budgets": (3, 6), "summaries": 2, "text": "="},
    "deepvideo_r1": {"levels": LEVELS},
    "dr_po": {"samples": 2},
    "dump": {"column": "answer", "examples": 50},
    "ghpo": {"levels": LEVELS},
    "hindsight": {"template": "{achieved}={prompt}"},
    "gvm_grpo": {},
    "icpo": {"samples": 3, "template": "{completion}{prompt}"},
    "ipo_md": {"samples": 4},
    "jump_start": {"tokens": 1},
    "knapsack_grpo": {"most": 6},
    "mixed_replay": {"capacity": 16, "taken": 2},
    "nash_md": {},
    "opsd": {"template": "{answer};{prompt}", "count": 4},
    "papo": {"template": "="},
    "partial_rollouts": {"window": 4, "capacity": 16},
    "policy_rollout": {"samples": 2, "guided": 2, "template": "{completion}{prompt}"},
    "repo": {"capacity": 64, "taken": 2, "least": 1},
    "s_grpo": {"samples": 1, "count": 3, "text": "="},
    "scaf_grpo": {"levels": LEVELS, "warmup_steps": 0, "learned": "plain"},
    "sdft": {"template": "{completion}{prompt}", "count": 4},
    "sdpo": {"template": "{solution}{prompt}", "count": 4, "share": 0.5},
    "spec_rl": {"capacity": 64},
    "spo_chain": {"continuations": 2, "interval": 3},
    "spo_tree": {"widths": (2, 2), "segment": 3},
    "staged_difficulty": {"column": "answer", "stages": ((0, 9.0),)},
    "svea": {"template": "+{prompt}"},
    "tfpi": {"stages": ((0, "{prompt}", "##"),)},
    "thought_augmented": {"samples": 2, "guided": 2, "template": "{answer};{prompt}"},
    "train_long_think_short": {"template": "[budget]#{prompt}"},
    "tree_po": {"widths": (2, 2), "segment": 3},
    "tree_rl": {"samples": 2},
    "uncertain_prompts": {},
    "variance_aware": {},
    "vine_ppo": {"continuations": 2, "separator": "1"},
    "worst_case": {"column": "answer"},
}
QUICK = ("sdpo", "hindsight", "vine_ppo", "partial_rollouts")
# Those that remember need a step to remember, on prompts that come again.
TWO_STEPS = ("mixed_replay", "partial_rollouts", "repo", "spec_rl", "knapsack_grpo")


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OPTIONS])
def test_steps_in_the_program(method, tmp_path):
    config = tiny_config(method)
    if "widths" in OPTIONS[method] or method == "nash_md":
        del config.method.options.samples
    config.method.options.update(**OPTIONS[method])
    config.rl.max_new_tokens = 20  # room for the completions of the data
    config.rl.update(steps=1 + (method in TWO_STEPS), row_tokens=0, prompts=2)
    config.task.options.size = 2 if method in TWO_STEPS else 50
    config.task.max_prompt_tokens = 24
    done = finish(config, tmp_path)
    assert all(np.isfinite(line["loss"]) and line["skipped"] == 0 for line in done.metrics)
    assert len(done.metrics) == config.rl.steps
    assert not {name for line in done.metrics for name in line if not metrics.defined(name)} - {"step", "phase"}
    if method in ("repo", "mixed_replay"):
        assert done.metrics[1]["replay/rows"] > 0
