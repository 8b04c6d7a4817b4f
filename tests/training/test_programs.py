"""The configuration that trains on programs: demonstrations that forget parentheses, then tests in the sandbox."""

import pytest
from rewards.sandboxes import needs_sandbox
from training.tiny_runs import SIZES, finish

from jaxrl_llm import cli


@pytest.mark.slow
@needs_sandbox
def test_programs_are_rewarded_in_a_run(tmp_path):
    config = cli.load_config(str(cli.CONFIGS / "programs.py"), [])
    config.network.update(**(SIZES | {"hidden_size": 32}))
    config.sft.update(steps=60, batch=16)
    config.rl.update(steps=2, prompts=4)
    config.task.options.size = 200
    config.task.test_options.size = 8
    config.evaluation.update(prompts=8, batch=8)
    config.method.options.samples = 4
    config.log.update(trackers=(), live=False)
    run = finish(config, tmp_path)
    rewards = [line["reward/code"] for line in run.metrics if "reward/code" in line]
    assert len(rewards) == 2 and all(0 <= reward <= 1 for reward in rewards)
    assert not (tmp_path / "reward_failures.jsonl").exists() and run.summary["reward_missing"] == 0
