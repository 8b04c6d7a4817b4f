"""Malformed input of every kind, from seeds: each must be read, or refused by one line that names the file.

python benchmarks/fuzz.py [--count=100000 --kinds=config,tokenizer --first_seed=0]

Prints a JSON line for each kind: inputs read, refused, and those that fail: `raw`, another exception or a message without the
file or of several lines; and `silent`, an input that was read although a value in it cannot be right. The first seeds that
fail are named; `--kinds=KIND --first_seed=SEED --count=1` tries one of them again. A kind is an entry of
`malformed_kinds.KINDS`: a function that takes a folder and gives two others, `make(random, folder)`, which writes an input and
says whether it must be refused, and `read(folder)`.
"""

import json
import os
import pathlib
import random
import sys
import tempfile
import time

from absl import app, flags
from malformed_kinds import KINDS

FLAGS = flags.FLAGS
flags.DEFINE_integer("count", 100_000, "inputs of each kind; a hundredth of it for templates")
flags.DEFINE_integer("first_seed", 0, "of the first input; the others follow")
flags.DEFINE_list("kinds", [], "names of kinds; all by default")

NAMELESS = ("template",)  # They come with messages, not from a file.


def trial(kind: str, make, read, folder: pathlib.Path, seed: int) -> str:
    """What became of the input of a seed: "read", "refused", "raw: ..." or "silent"."""
    wrong = make(random.Random(seed), folder)
    try:
        read(folder)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        named = kind in NAMELESS or str(folder) in message
        plain = type(error) in (ValueError, FileNotFoundError) and "\n" not in message and len(message) < 2000
        return "refused" if named and plain else f"raw: {type(error).__name__}: {message[:300]}"
    except Exception as error:
        return f"raw: {type(error).__name__}: {str(error)[:300]}"
    return "silent" if wrong else "read"


def fuzz(kind: str, seeds: range) -> dict:
    """Counts of what became of the inputs of `seeds`, and the first that failed."""
    counts, failures = {"read": 0, "refused": 0, "raw": 0, "silent": 0}, []
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        make, read = KINDS[kind](pathlib.Path(place))
        for seed in seeds:
            outcome = trial(kind, make, read, pathlib.Path(place), seed)
            name = outcome.partition(":")[0]
            counts[name] += 1
            if name in ("raw", "silent") and len(failures) < 5:
                failures.append(f"seed {seed}: {outcome}")
    return counts | {"failures": failures}


def main(_) -> None:
    """Prints the counts of each kind; the exit status is 1 where an input failed."""
    failed = False
    for kind in FLAGS.kinds or KINDS:
        start = time.perf_counter()
        count = FLAGS.count if kind != "template" else max(FLAGS.count // 100, 1)
        found = fuzz(kind, range(FLAGS.first_seed, FLAGS.first_seed + count))
        failed |= bool(found["raw"] or found["silent"])
        print(
            json.dumps({"kind": kind, "inputs": count, **found, "seconds": round(time.perf_counter() - start, 1)}), flush=True
        )
    sys.exit(failed)


if __name__ == "__main__":
    app.run(main)
