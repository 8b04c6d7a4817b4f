"""Rewards that misbehave, in a module so that worker processes can import them."""

import os
import subprocess
import sys
import time


def lengths(prompts, completions, **columns):
    return [len(completion) for completion in completions]


async def lengths_async(prompts, completions, **columns):
    return lengths(prompts, completions)


def hang_on_bad(prompts, completions, **columns):
    while "bad" in completions:
        time.sleep(0.01)
    return lengths(prompts, completions)


def hang_on_bad_by_row(prompts, completions, **columns):
    return hang_on_bad(prompts, completions)


hang_on_bad_by_row.rowwise = True


def hang_with_child(prompts, completions, path, **columns):
    child = subprocess.Popen(["sleep", "600"])
    with open(path[0], "w") as file:
        file.write(str(child.pid))
    child.wait()


def hang_after_note(prompts, completions, path, **columns):
    with open(path[0], "w") as file:
        file.write(str(os.getpid()))
    while True:
        pass


def raise_on_bad(prompts, completions, **columns):
    if "bad" in completions:
        raise RuntimeError("cannot read this")
    return lengths(prompts, completions)


def exit_on_bad(prompts, completions, **columns):
    if "bad" in completions:
        sys.exit(3)
    return lengths(prompts, completions)


def die_on_bad(prompts, completions, **columns):
    if "bad" in completions:
        os._exit(3)
    return lengths(prompts, completions)


def noisy(prompts, completions, **columns):
    print("a line on standard output" * 1000, flush=True)
    return lengths(prompts, completions)


def modules(prompts, completions, **columns):
    return [float(name in sys.modules) for name in completions]


def process_id(prompts, completions, **columns):
    return [os.getpid()] * len(completions)
