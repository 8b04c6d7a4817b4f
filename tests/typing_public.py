"""What users write, for pyright alone: every public name below has a type, and options of factories are checked.

`pyright` reads this file and nothing runs it; `test_typing.py` says what else of the package's types is checked.
"""

from collections.abc import Callable
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrl_llm
from jaxrl_llm import data, distributed, environments, estimators, methods, networks, objectives, rewards, rollouts, sampling
from jaxrl_llm.compose import Composable, composable
from jaxrl_llm.controllers import Controller, scheduled
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.training import TrainState, check_config, default_config, make_update
from jaxrl_llm.training.policies import load_policy
from jaxrl_llm.types import Batch, Rollouts, Scores


def apply(params: dict[str, jax.Array], tokens: jax.Array, positions: Any, segments: Any) -> jax.Array:
    return params["table"][tokens]


# One update in a loop of one's own.
grpo = methods.get("grpo", kl_coefficient=0.0)
assert_type(grpo, methods.Method)
update = make_update(apply, grpo.objective, optax.adam(1e-2), micro_batches=2)
state = TrainState.create({"table": jnp.zeros((16, 16))}, optax.adam(1e-2))
batch = Batch(tokens=jnp.zeros((2, 3), jnp.int32), mask=jnp.ones((2, 3)), advantage=jnp.ones((2, 3)))
state, metrics = update(state, batch)
assert_type(state, TrainState)
assert_type(metrics, dict[str, jax.Array])
assert_type(state.replace(step=jnp.int32(3)), TrainState)
assert_type(batch.replace(behavior_logp=jnp.zeros((2, 3))), Batch)
filled: jax.Array | np.ndarray = batch.weight  # what the constructor fills is never None
scores = make_scorer(apply)(state.params, batch)
assert_type(scores, Scores)
loss, terms = objectives.objective(objectives.policy(trust=objectives.clip(high=0.3)))(scores, batch)
assert_type(loss, jax.Array)

# Estimators.
estimator = estimators.chain(
    estimators.group_advantage(baseline=estimators.leave_one_out_baseline(), scale=None), estimators.token_mean()
)
assert_type(estimator, estimators.Estimator)
sampled = Rollouts(tokens=batch.tokens, length=jnp.array([3, 3]), mask=batch.mask, rewards=jnp.array([[1.0], [0.0]]))
sampled, memory = estimator.update(sampled, estimator.init(), jax.random.key(0))
assert_type(sampled, Rollouts)


# Functions with options: what the decorators make takes the options, with their types.
@estimators.stateless
def halved(rollouts: Rollouts, *, share: float = 0.5) -> Rollouts:
    return rollouts.replace(advantage=share * rollouts.advantage)


@composable(annotations=("reference_logp",))
def spread(scores: Scores, batch: Batch, *, size: float) -> jax.Array:
    return size * jnp.ones_like(scores.logp)


@methods.method("A paper (2026)", "arXiv:0000.00000")
def gentle(samples: int = 8, share: float = 0.5):
    return rollouts.grouped(samples=samples), halved(share=share), objectives.objective(objectives.policy())


assert_type(halved(share=0.2), estimators.Estimator)
assert_type(spread(size=0.2), Composable)
assert_type(objectives.policy(ratio=None, trust=objectives.score_function()), Composable)
assert_type(rollouts.grouped(samples=4), rollouts.Strategy)
assert_type(scheduled(schedule=optax.constant_schedule(0.1)), Controller)
assert_type(gentle(share=0.1), methods.Method)
assert_type(halved.function, Callable[..., Any])
# Each line below is an error that pyright must see, or it complains of the comment.
halved(shares=0.2)  # pyright: ignore[reportCallIssue]
objectives.clip(high="wide")  # pyright: ignore[reportArgumentType]
spread()  # pyright: ignore[reportCallIssue]
gentle(tree=3)  # pyright: ignore[reportCallIssue]
Batch(tokens=batch.tokens)  # pyright: ignore[reportCallIssue]

# Networks and sampling.
network = networks.decoder(networks.config("qwen3-0.6b", num_layers=2))
mesh = distributed.make_mesh(fsdp=8)
samples = sampling.generate(network, {}, [[1, 2]], max_new_tokens=4, temperature=0.7)
assert_type(samples, sampling.Samples)
policy, tokenizer = load_policy("runs/first")
assert_type(policy, networks.Network)
assert_type(tokenizer.encode("1+1="), list[int])
assert_type(networks.load_huggingface("Qwen3-0.6B", dtype="bfloat16"), networks.Network)
assert_type(data.load_tokenizer("bytes"), data.Tokenizer)


# Rewards, environments, and the whole program.
def short(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    return [1.0 / (1 + len(text)) for text in completions]


def begin(example: Any, seed: int) -> tuple[int, str]:
    return 0, "Guess."


def answer(state: int, text: str) -> environments.Transition:
    return environments.Transition(state, reward=1.0, done=True)


assert_type(rewards.exact_match(["1+1="], ["2"], answer=["2"]), list[float | None])
assert_type(environments.Environment(begin, answer), environments.Environment)
with rewards.RewardPool(workers=1) as pool:
    values, failures = pool.score({"short": short}, ["1+1="], ["2"])
    assert_type(values, np.ndarray)
config = default_config()
config.rl.steps = 3
check_config(config)
summary = jaxrl_llm.train(config, "runs/first", rewards=[short])
assert_type(summary, dict[str, Any])
