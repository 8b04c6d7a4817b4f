"""What the turns of episodes cost beside plain samples of as many tokens; prints a JSON line for each number of turns.

python benchmarks/episodes.py [--rows=32 --samples=4 --prompt=64 --new=256 --reply=8 --turns=1,2,4,8 --uneven --seconds=0.0 ...]

The environment replies with a text and costs nothing, or `seconds` for all rows that it is asked for at once. Each row samples
`new` tokens: in one turn, or in several that are equally long; with `--uneven` turns end by chance, after as many tokens in the
mean and at most three times as many. Told are the seconds of a call, the tokens that were sampled and those that were read in
prefill, and the seconds that the environment took. Trust figures where `others_cpu` is below 0.03.
"""

import json
import time

import jax
import numpy as np
import workload
from absl import app, flags
from quiet import summary, timed

from jaxrl_llm.data import load_tokenizer
from jaxrl_llm.environments import Transition
from jaxrl_llm.networks import Network
from jaxrl_llm.rollouts import Io, Request
from jaxrl_llm.rollouts.episodes import Played
from jaxrl_llm.sampling import harvest, standing, turns

FLAGS = flags.FLAGS
flags.DEFINE_integer("samples", 4, "completions of each prompt; rows must be a multiple of it", lower_bound=1)
flags.DEFINE_integer("reply", 8, "tokens of each reply", lower_bound=0)
flags.DEFINE_list("turns", ["1", "2", "4", "8"], "numbers of turns; 1 for plain samples")
flags.DEFINE_bool("uneven", False, "whether turns end by chance")
flags.DEFINE_float("seconds", 0.0, "that the environment takes", lower_bound=0)
told = {"sampled_tokens": 0, "prefill_tokens": 0, "environment_s": 0.0}


def counted(module, name: str, place: int) -> None:
    """Lets a function of a module count the tokens that it reads: the sum of its argument at that place."""
    original = getattr(module, name)

    def count(*arguments):
        told["prefill_tokens"] += int(np.sum(arguments[place]))
        return original(*arguments)

    setattr(module, name, count)


def environment(turns: int) -> Played:
    """One that replies `reply` tokens to all turns but the last."""

    def reset(examples, seeds):
        return [Transition(b"", None) for _ in examples]

    def step(states, said):
        begin = time.perf_counter()
        time.sleep(FLAGS.seconds)
        answers = [Transition(b"", "." * FLAGS.reply) for _ in said]
        told["environment_s"] += time.perf_counter() - begin
        return lambda: answers

    most = FLAGS.new // turns * (3 if FLAGS.uneven else 1)
    return Played(reset, step, turns=turns, turn_tokens=most)


def source(network: Network, params, turns: int, seed: int) -> Io:
    """What plays so many turns, or samples at once."""
    # An equal share of the vocabulary ends turns: with random parameters all tokens are about as likely.
    stops = range(FLAGS.vocabulary * turns // FLAGS.new) if FLAGS.uneven else ()
    most = (3 if FLAGS.uneven else 1) * FLAGS.new + turns * FLAGS.reply
    sampling = {"max_new_tokens": most if turns > 1 else FLAGS.new, "temperature": 1.0, "stop_ids": tuple(stops)}
    return Io(
        tokenizer=load_tokenizer("bytes"), policies={"policy": lambda: (network, params)}, sampling=sampling,
        max_prompt_tokens=FLAGS.prompt, seed=seed, step=0, environment=environment(turns) if turns > 1 else None,
    )  # fmt: skip


def main(_):
    """Plays, and prints the figures as JSON objects."""
    network, random = workload.network(), np.random.default_rng(0)
    params = network.init(jax.random.key(0))
    for module, name, place in ((harvest, "read", 3), (standing, "read", 3), (turns, "extended", 5)):
        counted(module, name, place)

    def call(number: int, seed: int) -> None:
        texts = [
            "".join(map(chr, codes)) for codes in random.integers(32, 127, (FLAGS.rows // FLAGS.samples, FLAGS.prompt - 1))
        ]
        requests = [Request(text, {"prompt": text}, place, place, FLAGS.samples) for place, text in enumerate(texts)]
        rollouts = source(network, params, number, seed).sample(requests, rewarded=False).rollouts
        told["sampled_tokens"] += int(rollouts.mask.sum())

    for number in map(int, FLAGS.turns):
        call(number, 0)
        call(number, 1)
        told.update(dict.fromkeys(told, 0))
        measured = summary(*timed(lambda repeat, number=number: call(number, 2 + repeat), FLAGS.repeats))
        print(json.dumps({"turns": number, **measured, **{name: round(own / FLAGS.repeats, 4) for name, own in told.items()}}))
    print(json.dumps(workload.settings("samples", "reply", "uneven", "seconds")))


if __name__ == "__main__":
    app.run(main)
