"""Preference runs small enough to be a test; the one that several tests look at happens once."""

import functools
import pathlib
import tempfile

from training.tiny_runs import Finished, finish, tiny_config


def preference_config(steps=5, **options):
    """A reward model on one-digit sums."""
    config = tiny_config()
    config.task.source = "preferences"
    config.task.options = {"size": 60, "digits": (1, 1), "split": "train"}
    config.task.test_options = {"split": "test", "size": 10}
    config.preference.update(steps=steps, batch=6, row_tokens=32, options=options)
    config.preference.optimizer.learning_rate = 1e-2
    config.rl.steps = 0
    config.method.options = {}
    config.evaluation.update(prompts=8, every=2)
    config.checkpoint.every = 2
    return config


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory()


@functools.cache
def finished_reward_model() -> Finished:
    """Five steps, with evaluations and checkpoints on the way."""
    return finish(preference_config(center=0.01), pathlib.Path(_folder().name) / "reward_model")
