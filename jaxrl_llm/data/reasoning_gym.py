"""Examples from the generators of reasoning-gym."""

import os
import pickle
import subprocess
import sys
from typing import Any

from jaxrl_llm.data.sources import Source

_GENERATE = "import sys; from jaxrl_llm.data.reasoning_gym import _generate_to_stdout; _generate_to_stdout()"


def reasoning_gym_source(name: str, size: int, seed: int, **config: Any) -> Source:
    """Problems of one generator, or of several through "composite".

    All problems are made here and now, in a process of its own with a fixed hash seed: some generators walk over sets
    of strings, so that their problems would otherwise change from one run to the next.

    Args:
      name: one of `reasoning_gym.factory.DATASETS`.
      size: number of problems.
      seed: seed of the problems.
      **config: options of the generator; for "composite", `datasets` as dicts with name, weight and config.

    Returns: Examples with "prompt", "answer" (None where only the generator can tell), "entry" (the problem as the generator
      made it) and "generator" (its name and options), which is what `rewards.reasoning_gym_score` needs.
    Raises ValueError: an unknown generator, or options that it does not take.
    """
    request = pickle.dumps((name, {**config, "size": size, "seed": seed}))
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run([sys.executable, "-P", "-c", _GENERATE], input=request, capture_output=True, env=environment)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        mend = "see reasoning_gym.factory.DATASETS for the generators and their options"
        options = str(config or "its default options")[:200]
        raise ValueError(f"reasoning-gym generator {name!r} with {options} failed: {reason}; {mend}")
    entries = pickle.loads(done.stdout)
    generator = {"name": name, "config": config}

    def fetch(index: int) -> dict[str, Any]:
        entry = entries[index]
        return {"prompt": entry["question"], "answer": entry["answer"], "entry": entry, "generator": generator}

    return Source(f"reasoning-gym {name}", size, fetch)


def generate(name: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Problems as the generator makes them in this process."""
    import reasoning_gym

    if "datasets" in config:
        config = {**config, "datasets": [reasoning_gym.composite.DatasetSpec(**spec) for spec in config["datasets"]]}
    data = reasoning_gym.create_dataset(name, **config)
    return [data[index] for index in range(config["size"])]


def _generate_to_stdout() -> None:
    """Answers one pickled request on stdin with the pickled problems on stdout."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a generator prints must not end up among the problems
    output.write(pickle.dumps(generate(*pickle.load(sys.stdin.buffer))))
    output.close()
