"""A module whose import hangs in a worker, which it notes first."""

import os
import time

note = os.environ.get("NOTE_OF_IMPORT")
if note and os.path.basename(note) not in os.listdir(os.path.dirname(note)):
    with open(note, "w") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(600)


def reward(prompts, completions, **columns):
    return [0.0] * len(completions)
