"""Rewards that misbehave, in a module so that worker processes can import them."""

import contextlib
import math
import os
import signal
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


def write_into_every_pipe(prompts, completions, **columns):
    """What a reward does that takes a descriptor for its own."""
    if "bad" in completions:
        for descriptor in range(3, 40):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"\x80\x04garbage\n")
    return lengths(prompts, completions)


def close_every_pipe(prompts, completions, **columns):
    if "bad" in completions:
        os.closerange(3, 40)
    return lengths(prompts, completions)


def flood(prompts, completions, **columns):
    """Endless bytes without an end of a line."""
    while "bad" in completions:
        for descriptor in range(3, 40):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"x" * 65536)
    return lengths(prompts, completions)


def forge(prompts, completions, **columns):
    """Whole messages that nobody asked for, of values that are none."""
    if "bad" in completions:
        for descriptor in range(3, 40):
            with contextlib.suppress(OSError):
                os.write(descriptor, b'["results", [1e39, "", false]]\n')
    return lengths(prompts, completions)


def long_reasons(prompts, completions, **columns):
    raise RuntimeError("x" * 5_000_000)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def unspeakable(prompts, completions, **columns):
    raise Unspeakable


def too_large(prompts, completions, **columns):
    return [1e39 if completion == "bad" else len(completion) for completion in completions]


def die_once(prompts, completions, path, **columns):
    """Is killed from outside, the first time."""
    if "bad" in completions and not os.path.exists(path[0]):
        open(path[0], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return lengths(prompts, completions)


die_once.rowwise = True


def greedy_for_memory(prompts, completions, **columns):
    return [len(bytearray(4_000_000_000 if completion == "bad" else 1)) and len(completion) for completion in completions]


def immortal(prompts, completions, path, **columns):
    """Ignores the alarm, and has a child."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    with open(path[0], "w") as file:
        file.write(f"{os.getpid()} {child.pid}\n")
    child.wait()


def by_answer(completions, answer, **columns):
    """In the usual order of arguments, without the prompts."""
    return [float(completion == gold) for completion, gold in zip(completions, answer, strict=True)]


def narrow(completions, answer):
    return by_answer(completions, answer)


def by_place(prompts, completions, /, **columns):
    return lengths(prompts, completions)


def slow_row(completions):
    """As long as a judge, or an agent, may take."""
    time.sleep(1.5)
    return [1.0] * len(completions)


slow_row.rowwise, slow_row.row_seconds = True, math.inf
