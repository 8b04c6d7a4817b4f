"""A real training process that kills itself with SIGKILL at a chosen moment: `crash_runner.py WORKDIR [MOMENT CALL DELAY]`.

MOMENT is "save", "sample", "turn" or "update"; the signal comes DELAY seconds after the CALL-th of them has begun.
"""

import importlib
import os
import signal
import sys
import threading

from jaxrl_llm.training import checkpoint, default_config, loop, reinforcement

MOMENTS = {
    "save": (checkpoint, "save"),
    "sample": (importlib.import_module("jaxrl_llm.rollouts.collect"), "generate"),
    "turn": (importlib.import_module("jaxrl_llm.rollouts.episodes"), "draw"),
    "update": (reinforcement, "has_weight"),
}


def tiny_config():
    """Both phases, a reference policy, several updates a step: everything that a checkpoint has to hold."""
    config = default_config()
    config.tokenizer = "characters:0123456789+-*=;#"
    config.network.update(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8)
    config.task.options.update(size=50, digits=(1, 1))
    config.task.test_options.update(split="test", size=8)
    config.task.max_prompt_tokens = 4
    config.sft.update(steps=5, batch=8, row_tokens=64)
    config.rl.update(steps=7, prompts=4, max_new_tokens=12, row_tokens=64, minibatches=2, epochs=2)
    config.rl.optimizer.learning_rate = 1e-3
    config.method.options.update(samples=4, kl_coefficient=0.1)
    # The score is rarely 1 for a model this small; length makes advantages that differ.
    config.rewards.names = ("arithmetic", "reward_functions:shortness")
    config.evaluation.update(prompts=8, batch=8, every=3)
    config.checkpoint.update(every=2, keep=2)
    config.log.update(completions_every=1, trackers=(), live=False)
    return config


def kill_at(moment: str, call: int, delay: float) -> None:
    """Arranges for SIGKILL `delay` seconds after call number `call` of `moment` begins."""
    module, name = MOMENTS[moment]
    original, calls = getattr(module, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*args, **kwargs)

    setattr(module, name, counted)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    workdir, *moment = sys.argv[1:]
    if moment:
        kill_at(moment[0], int(moment[1]), float(moment[2]))
    loop.train(tiny_config(), workdir)
