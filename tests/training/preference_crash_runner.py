"""A preference run that kills itself, with the arguments of crash_runner.py; MOMENT may be "pairs", too."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from training import crash_runner  # noqa: E402
from training.tiny_preferences import preference_config  # noqa: E402

from jaxrl_llm.training import loop, preference  # noqa: E402

crash_runner.MOMENTS["pairs"] = (preference, "preference_rollouts")

if __name__ == "__main__":
    workdir, *moment = sys.argv[1:]
    if moment:
        crash_runner.kill_at(moment[0], int(moment[1]), float(moment[2]))
    loop.train(preference_config(center=0.01), workdir)
