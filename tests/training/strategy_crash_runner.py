"""A run whose strategy has a state, and that kills itself, with the arguments of crash_runner.py."""

import pathlib
import signal
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from training import crash_runner  # noqa: E402

from jaxrl_llm import methods  # noqa: E402
from jaxrl_llm.rollouts import requests_for, stateful_strategy  # noqa: E402
from jaxrl_llm.training import loop  # noqa: E402

SIZE = 50  # examples


@stateful_strategy(lambda *, samples: {"visits": np.zeros(SIZE, np.int32), "reward": np.zeros(SIZE, np.float32)})
def least_rewarded_first(io, state, prompts, *, samples):
    """Draws prompts in proportion to how little they brought so far."""
    weights = 1 / (0.1 + state["reward"] / np.maximum(state["visits"], 1))
    collection = io.sample(requests_for(*io.draw(prompts, weights), samples=samples))
    visits, reward = (np.array(state[name]) for name in ("visits", "reward"))
    np.add.at(visits, collection.rollouts.prompt_id, 1)
    np.add.at(reward, collection.rollouts.prompt_id, np.nansum(collection.rollouts.rewards, axis=1))
    return collection, {"visits": visits, "reward": reward}, {"visited": float((visits > 0).mean())}


@methods.method(paper="A method of the tests (2026)", url="https://example.org")
def least_rewarded(*, samples: int = 4, kl_coefficient: float = 0.1):
    """GRPO on prompts that brought little so far."""
    plain = methods.get("grpo", samples=samples, kl_coefficient=kl_coefficient)
    return least_rewarded_first(samples=samples), plain.estimator, plain.objective


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workdir, *moment = sys.argv[1:]
    if moment:
        crash_runner.kill_at(moment[0], int(moment[1]), float(moment[2]))
    config = crash_runner.tiny_config()
    config.method.name = "least_rewarded"
    config.rl.staleness = 1  # so that samples that no step has learned from lie in the checkpoints too
    loop.train(config, workdir)
