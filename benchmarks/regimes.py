"""Six small regimes in which methods that learn from samples should differ, and the task and the rewards that they share.

A prompt is a row of digits, "7302=", and its working their running sums modulo ten, "7002#2": each step needs the one before
it, and only what stands behind "#" is looked at. Demonstrations are careless: a step is one too high with some probability, and
the next goes on from what is written, so that a single slip spoils the answer. A policy that imitates them slips as often, and
nothing but the verifier tells it what it does well. A regime is how long the chain is, how careless the demonstrations are and
what is odd about samples or verdicts; what a policy is worth there is one measure, stated beside it.
"""

import dataclasses
import zlib

import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm import methods
from jaxrl_llm.data import ARITHMETIC_ALPHABET
from jaxrl_llm.rewards import NAMED
from jaxrl_llm.training import default_config

TRAINING, HELD_OUT = 16384, 256  # prompts
SAMPLES, SAMPLES_PER_STEP = 8, 128
FLIPPED = 0.2  # share of the verdicts of the noisy verifier
STALENESS = 8  # updates by which samples are old
STARTS, SHARES = (2, 5, 7, 8), (0.4, 0.3, 0.2, 0.1)  # digits that a chain of several right answers may begin with

# What a method is told, as far as it has the option: nobody is held by a reference, and nobody may sample more than others.
OPTIONS = {"kl_coefficient": 0.0, "max_rounds": 1}
SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}


@dataclasses.dataclass(frozen=True)
class Regime:
    """One task, how it is learned, and what decides."""

    about: str  # what is hard, for the page
    chain: int  # digits of a prompt, steps of its working
    careless: float  # probability that a step of a demonstration is one too high
    measure: str = "evaluation/accuracy"  # at temperature 1 on held-out prompts; its mean over the run decides
    steps: int = 60
    imitation: int = 600  # supervised steps before
    learning_rate: float = 1e-4
    staleness: int = 0  # updates by which samples are old; 0 for four updates on new samples in each step
    flipped: float = 0.0  # share of the verdicts in training that say the opposite
    hidden: bool = False  # whether the working begins at one of STARTS, which the prompt does not tell
    guessed: float = 0.0  # share of the demonstrations that answer "#0" without any working
    zeros: float = 0.0  # share of the prompts whose sum is made to be 0

    @property
    def samples(self) -> int:
        """Samples of each held-out prompt."""
        return int(self.measure.partition("@")[2] or 4)


REGIMES = {
    "long_credit": Regime(
        "twelve steps, each needed, and a reward for the last alone", chain=12, careless=0.15, imitation=1000
    ),
    "noisy_verifier": Regime("a fifth of the verdicts are flipped", chain=8, careless=0.2, flipped=FLIPPED),
    "rare_success": Regime("one sample in fifty is right at the start", chain=8, careless=0.385, learning_rate=5e-5),
    "off_policy": Regime(
        "samples are eight updates old, and each update is four times as large",
        chain=8, careless=0.2, staleness=STALENESS, learning_rate=4e-4, steps=90,
    ),
    "diversity": Regime(
        "one of four beginnings is right, and no prompt tells which: a policy that always takes the most frequent one is right "
        "four times out of ten however often it is asked; pass@16 decides",
        chain=6, careless=0.2, hidden=True, measure="evaluation/pass@16",
    ),
    "length": Regime(
        "half of the answers are a guess of one token that is right one time in three, the others a working of eight steps",
        chain=8, careless=0.07, guessed=0.5, zeros=0.25, imitation=1000,
    ),
}  # fmt: skip


def setting(regime: Regime) -> int:
    """A digest of the numbers of a regime, which its results carry."""
    shared = (TRAINING, HELD_OUT, SAMPLES, SAMPLES_PER_STEP, STARTS, SHARES, OPTIONS, SIZES)
    return zlib.crc32(repr((dataclasses.replace(regime, about=""), shared)).encode())


def rows(regime: Regime, split: str) -> list[dict[str, str]]:
    """Prompts with the demonstration and the right answer of each; those of "test" begin with a digit sum of their own.

    A prompt is held out when the hash of its digits says so, so that the splits are disjoint.
    """
    random, found = np.random.default_rng([zlib.crc32(split.encode()), regime.chain]), []
    while len(found) < (TRAINING if split == "train" else HELD_OUT):
        digits = random.integers(10, size=regime.chain)
        if random.random() < regime.zeros:
            digits[-1] = -digits[:-1].sum() % 10
        prompt = "".join(map(str, digits)) + "="
        start = int(random.choice(STARTS, p=SHARES)) if regime.hidden else 0
        slips, guessed = random.random(regime.chain) < regime.careless, random.random() < regime.guessed
        if (zlib.crc32(prompt.encode()) % 16 == 0) == (split == "test"):
            completion = "#0" if guessed else worked(digits, start, slips, written=regime.hidden)
            found.append({"prompt": prompt, "completion": completion, "answer": str((start + digits.sum()) % 10)})
    return found


def worked(digits: np.ndarray, start: int, slips: np.ndarray, *, written: bool) -> str:
    """The running sums from `start` on, each one too high where it slips, then "#" and the last of them.

    Args:
      digits: int [chain].
      start: what the sum begins with.
      slips: bool [chain].
      written: whether the start stands before the sums.
    """
    sums = [start]
    for digit, slip in zip(digits, slips, strict=True):
        sums.append((sums[-1] + digit + slip) % 10)
    shown = sums if written else sums[1:]
    return "".join(str(int(value)) for value in shown) + f"#{sums[-1]}"


def configuration(regime: Regime, method: str = "grpo", seed: int = 0) -> ConfigDict:
    """The configuration of the RL phase; the supervised one, of the policy that all begin with, is `beginning`."""
    config = _shared(regime)
    config.seed = seed
    known = methods.options_of(method)
    # Methods of pairs take their two.
    samples = SAMPLES if known.get("samples") != 2 else 2
    config.method.name = method
    config.method.options = ConfigDict({key: value for key, value in OPTIONS.items() if key in known})
    if "kl_target" in known:  # Its coefficient follows what is measured, and may not be 0.
        del config.method.options["kl_coefficient"]
    if "samples" in known:
        config.method.options.samples = samples
    config.rl.update(steps=regime.steps, prompts=SAMPLES_PER_STEP // samples, staleness=regime.staleness, overlap=False)
    if not methods.get(method).evolution and not regime.staleness:
        config.rl.update(epochs=2, minibatches=2)  # four updates a step, so that ratios leave 1
    config.rl.optimizer.update(learning_rate=regime.learning_rate, warmup_steps=4)
    config.rewards.names = ("regimes:verdicts",)
    if regime.flipped:
        config.rewards.names = ("regimes:noisy_verdicts",)
        config.rewards.options.noisy_verdicts = {"share": regime.flipped, "seed": seed}
    config.evaluation.every = regime.steps // 6
    return config


def beginning(regime: Regime) -> ConfigDict:
    """The configuration of the supervised phase, the same for all methods and seeds."""
    config = _shared(regime)
    config.rl.steps = 0
    config.sft.update(steps=regime.imitation, batch=64, row_tokens=config.rl.row_tokens)
    config.sft.optimizer.update(learning_rate=3e-3, warmup_steps=20, decay="cosine")
    return config


def _shared(regime: Regime) -> ConfigDict:
    config = default_config()
    config.tokenizer = f"characters:{ARITHMETIC_ALPHABET}"
    config.network.update(SIZES)
    longest = regime.chain + regime.hidden + 3  # with "#", the answer and the end
    config.task.max_prompt_tokens = regime.chain + 1
    config.rl.update(max_new_tokens=longest, row_tokens=2 * (regime.chain + 1 + longest))
    config.evaluation.update(prompts=HELD_OUT // (regime.samples // 4), batch=HELD_OUT, samples=regime.samples)
    config.evaluation.update(temperature=1.0, reward="regimes:verdicts")
    config.log.update(live=False, trackers=(), completions_every=0)
    config.checkpoint.update(every=1000, keep=1)  # A run is shorter than what it would take to save it often.
    config.rewards.names = ("regimes:verdicts",)
    return config


def verdicts(prompts, completions, answer, **columns) -> list[float]:
    """1.0 where what follows the last "#" is the answer, else 0.0."""
    return NAMED["arithmetic"](prompts, completions, answer)


def noisy_verdicts(*, share: float, seed: int):
    """Reward: `verdicts`, of which a share says the opposite; see `flips`."""

    def reward(prompts, completions, answer, **columns):
        honest = verdicts(prompts, completions, answer)
        return [1.0 - value if flip else value for value, flip in zip(honest, flips(prompts, share, seed), strict=True)]

    reward.in_process, reward.answer = True, verdicts.answer
    return reward


def flips(prompts, share: float, seed: int) -> list[bool]:
    """Which verdicts are flipped: a hash of the seed, the prompt, and how many rows before this one have the same prompt.

    Samples of one prompt are flipped apart from each other, and the same row is so in every run of the seed.
    """
    found, seen = [], {}
    for prompt in prompts:
        place = seen[prompt] = seen.get(prompt, -1) + 1
        found.append(zlib.crc32(f"{seed} {prompt} {place}".encode()) < share * 2**32)
    return found


# So little work is done where it is asked for, without a process of its own.
verdicts.in_process, verdicts.answer = True, NAMED["arithmetic"].answer
