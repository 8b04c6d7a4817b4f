"""A run whose strategy has a state, and that kills itself: METHOD in front of the arguments of crash_runner.py."""

import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from training import crash_runner  # noqa: E402

from jaxrl_llm.training import loop  # noqa: E402

# Rows that are replayed, rows that go on in the next step, a table of prompts; the data is small, so that prompts return.
OPTIONS = {
    "repo": {"capacity": 24, "taken": 2, "least": 2},
    "partial_rollouts": {"window": 5, "capacity": 16},
    "uncertain_prompts": {"examples": 50},
    "spec_rl": {"capacity": 24},
    "gigpo": {},  # whose policy talks with an environment
}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workdir, method, *moment = sys.argv[1:]
    if moment:
        crash_runner.kill_at(moment[0], int(moment[1]), float(moment[2]))
    config = crash_runner.tiny_config()
    config.method.name = method
    config.method.options = {"samples": 4} | OPTIONS[method]
    config.task.options.size = 6
    if method == "gigpo":
        config.environment.update(name="training.tiny_environments:twice", turn_tokens=4)
        config.rewards.names = ("environment",)
    # Samples that no step has learned from, some of which newer parameters have gone on with, lie in the checkpoints too.
    config.rl.update(staleness=1, in_flight=3)
    loop.train(config, workdir)
