"""New tokens per second of `generate`; prints one JSON line.

python benchmarks/sampling.py [--rows=32 --prompt=32 --new=128 --samples=1 --repeats=7 ...]

The network is Qwen3-like, random, float32 unless told otherwise. Times are wall clock around `generate`, which ends with
NumPy arrays on the host; the first call, which compiles, stands apart. `others_cpu` is the share of the machine that other
processes used during the timed calls: trust figures where it is below 0.03.
"""

import json
import time

import jax
import numpy as np
from absl import app, flags
from networks import random_network
from quiet import summary, timed

from jaxrl_llm.sampling import generate

FLAGS = flags.FLAGS
flags.DEFINE_integer("rows", 32, "completions sampled at once", lower_bound=1)
flags.DEFINE_integer("samples", 1, "completions of each prompt; rows must be a multiple of it", lower_bound=1)
flags.DEFINE_integer("prompt", 32, "tokens of each prompt", lower_bound=1)
flags.DEFINE_integer("new", 128, "new tokens of each row", lower_bound=1)
flags.DEFINE_float("temperature", 1.0, "0 is greedy")
flags.DEFINE_float("top_p", None, "share of the probability that stays")
flags.DEFINE_integer("repeats", 7, "timed calls", lower_bound=1)
SETTINGS = ("rows", "samples", "prompt", "new", "layers", "width", "vocabulary", "dtype", "temperature", "top_p", "repeats")
