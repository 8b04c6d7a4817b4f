"""What stays the same during a run: everything that the configuration names, opened once."""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrl_llm import distributed, methods, reading, rewards, rollouts
from jaxrl_llm.data import Cursor, Tokenizer, encode_prompt, next_indices, weighted_indices
from jaxrl_llm.environments import Agent, Environment
from jaxrl_llm.networks import Network, join_params
from jaxrl_llm.training import bucket, build, combining, meshes, metrics, scores
from jaxrl_llm.training.bucket import Folder
from jaxrl_llm.training.config import (
    check_config,
    flat,
    flat_config,
    preference_method,
    reinforcement_method,
    supervised_method,
)
from jaxrl_llm.training.given import NOTHING, Given, named
from jaxrl_llm.training.layout import lay_out
from jaxrl_llm.training.lock import locked
from jaxrl_llm.training.policies import build_module, build_policy, build_teacher, load_policy
from jaxrl_llm.training.report import say
from jaxrl_llm.training.reward_functions import build_environment, build_rewards, environment_settings, load_asked
from jaxrl_llm.training.timing import timed
from jaxrl_llm.types import Batch, Rollouts

# Evaluation samples must not repeat the noise of training samples.
EVALUATION_SEED_OFFSET = 1_000_003
_GAP_PROMPTS = 8  # on which the gap of a quantised base is measured
_LOST = 2.0**-14  # half of the last bit of a bfloat16 of 0.02, a usual parameter
# Keys that a resumed run may change without becoming another run.
_CHANGEABLE = ("log.", "checkpoint.", "rewards.workers", "rewards.memory_gb", "mesh.", "rl.overlap")


@dataclasses.dataclass(frozen=True)
class Run:
    """The fixed parts of a run."""

    config: ConfigDict  # checked configuration
    workdir: pathlib.Path  # folder of all files of the run
    tokenizer: Tokenizer  # of prompts and completions
    network: Network  # of the policy, with its first parameters; without the frozen ones
    source: Sequence[dict[str, Any]]  # examples to train on
    test_source: Sequence[dict[str, Any]]  # held-out examples
    method: methods.Method  # of the RL phase
    preference_method: methods.Method  # of the preference phase
    supervised_method: methods.Method  # of the supervised phase
    pool: rewards.RewardPool  # of reward workers
    rewards: dict[str, Callable]  # functions by name
    frozen: Any = None  # parameters that do not train; None where all do
    # what learns beside the policy, by name, each as a run of its own; a network without parameters begins as a copy of it
    modules: dict[str, "Run"] = dataclasses.field(default_factory=dict)
    teacher: Network | None = None  # the network of the teacher, with its parameters; None where no method needs it
    mesh: jax.sharding.Mesh | None = None  # of devices; None for one device
    sampling_mesh: jax.sharding.Mesh | None = None  # of the same devices, for sampling
    given: Given = NOTHING  # Python objects that `train` was given
    # examples, held-out ones, and those of both that were dropped
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    told: set = dataclasses.field(default_factory=set)  # what `scores` said already; it and `columns` alone change
    environment: Environment | Agent | None = None  # whom the policy talks with; None for nobody
    # policies of other folders that rewards ask, with their parameters and tokenizers
    judges: dict[str, tuple[Network, Tokenizer]] = dataclasses.field(default_factory=dict)
    columns: dict = dataclasses.field(default_factory=dict)  # those of the source that strategies asked for
    store: Folder = pathlib.Path()  # where its checkpoints lie: in the workdir, or in a bucket
    copy: Callable[[], None] = lambda: None  # brings what is new in the workdir to the bucket, see `bucket.opened`

    def whole(self, params):
        """All parameters of the network: those that train, and the frozen ones, which nobody copies."""
        return params if self.frozen is None else join_params(params, self.frozen)

    def base_params(self, directory: str):
        """Parameters of the structure of those that train: of the folder, or, of "", those with which the run began.

        Raises ValueError: the network in the folder is another one.
        """
        if directory:
            found = load_policy(directory, dtype=self.config.network.param_dtype, mesh=self.mesh)[0].params
        else:
            # Made anew: the first update was given the buffers of those that there were.
            found = build_policy(self.config, self.tokenizer, self.mesh, given=self.given.network).params
        trained, _ = build.trained_and_frozen(self.config, found)
        own = self.network.params
        if jax.tree.map(jnp.shape, trained) != jax.tree.map(jnp.shape, own):
            raise ValueError(
                f"{directory} holds parameters of other names or shapes than the run's; give the checkpoint before it"
            )
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), trained, own)

    def place(self, batch: Batch) -> Batch:
        """The batch with its rows split over the mesh, where there is one."""
        return distributed.shard_rows(batch, self.mesh)

    def pack(self, rollouts: Rollouts, width: int, micro_batches: int, **options) -> Batch:
        """Packed rows for the run's networks, which all read alike; see `lay_out`."""
        with timed("pack"):
            if self.mesh is not None:
                options |= {"platform": self.mesh.devices.flat[0].platform, "columns": self.mesh.shape["context"]}
            return lay_out(self.network, rollouts, width, micro_batches, shards=self.shards, **options)

    @property
    def shards(self) -> int:
        """Devices that share out the rows."""
        return distributed.row_shards(self.mesh)

    def draw(
        self, cursor: Cursor, count: int, weights: np.ndarray | None = None
    ) -> tuple[list[dict[str, Any]], list[int], Cursor]:
        """The next `count` examples of the source, or so many in proportion to weights; their numbers, and the cursor then."""
        if weights is None:
            indices, cursor = next_indices(len(self.source), cursor, count, self.config.seed)
        else:
            indices, cursor = weighted_indices(self._checked_weights(weights), cursor, count, self.config.seed)
        return [self.source[int(index)] for index in indices], [int(index) for index in indices], cursor

    def scorer(self, names: Sequence[str], step: int, failures: list | None = None) -> tuple[Callable, Callable | None]:
        """The attributes `rewards` and `ahead` of `rollouts.Io` of these rewards; failures are logged under `step`.

        Args:
          names: of the rewards.
          step: of training.
          failures: a list that they are added to.
        """
        return scores.make_score(*self._asked({name: name for name in names}), **self._noted(step, failures))

    def facts(self, step: int, failures: list | None = None) -> Callable | None:
        """The attribute `facts` of `rollouts.Io`: what the configuration wants to know. Arguments as in `scorer`."""
        named = self.config.rewards.facts.to_dict()
        return scores.make_facts(*self._asked(named), **self._noted(step, failures)) if named else None

    def _asked(self, names: dict[str, str]) -> tuple:
        functions = {name: self.rewards[function] for name, function in names.items()}
        return self.pool, functions, self.config.rewards.deadline_seconds

    def asked(self, names: Mapping[str, str]) -> dict[str, Callable]:
        """Those of the functions, by the names that results have, that networks of the run are asked for."""
        return {name: self.rewards[own] for name, own in names.items() if hasattr(self.rewards[own], "asks")}

    def _noted(self, step: int, failures: list | None) -> dict[str, Any]:
        log, failures = self.workdir / "reward_failures.jsonl", [] if failures is None else failures
        return {"told": self.told, "failures": failures, "log": log, "step": step}

    def _checked_weights(self, weights: np.ndarray) -> np.ndarray:
        if np.shape(weights) != (len(self.source),):
            raise ValueError(f"weights has shape {np.shape(weights)}; give one for each of the {len(self.source)} examples")
        return weights

    def policies(self, params) -> dict[str, Callable[[], tuple[Network, Any]]]:
        """The policy with these parameters and the teacher, where there is one, as `rollouts.Io` wants them."""
        found = {"policy": self.sampled_by(self.network, lambda: self.whole(params))}
        if self.teacher is not None:
            found["teacher"] = self.sampled_by(self.teacher, lambda: self.teacher.params)
        judges = {name: network for name, (network, _) in self.judges.items()}
        return found | {name: self.sampled_by(own, lambda own=own: own.params) for name, own in judges.items()}

    def sampled_by(self, network: Network, params: Callable[[], Any]) -> Callable[[], tuple[Network, Any]]:
        """A function that gives the network and its parameters as they are sampled with; a copy is made when first asked."""
        network = network.without_params()
        return functools.cache(lambda: (network, distributed.for_sampling(network, params(), self.sampling_mesh)))

    def io(self, params, step: int, failures: list | None = None, **changes) -> rollouts.Io:
        """What a strategy may do in a step of training under `params`; `changes` are attributes of `rollouts.Io`."""
        scorer = self.scorer(self.config.rewards.names, step + 1, failures)
        usual = {"reward_weights": tuple(self.config.rewards.weights), "drawing": self.draw, "cursor": Cursor()}
        usual |= {"facts": self.facts(step + 1, failures), "examples": self.source, "columns": self.columns}
        facts = self.asked(self.config.rewards.facts.to_dict())
        usual["asked"] = {"rewards": self.asked({name: name for name in self.config.rewards.names}), "facts": facts}
        sampling = build.training_sampling(self.config, self.tokenizer)
        learners = ("policy", *self.modules)
        return self._io(params, scorer, sampling, self.config.seed, step, learners=learners, **(usual | changes))

    def evaluation_io(self, params, step: int, failures: list | None = None, **changes) -> rollouts.Io:
        """The same for held-out prompts: scored by the evaluation's reward alone, and of roles the policy's rows alone."""
        name = self.config.evaluation.reward or self.config.rewards.names[0]
        scorer, changes = self.scorer((name,), step, failures), {"asked": {"rewards": self.asked({name: name})}} | changes
        sampling = build.evaluation_sampling(self.config, self.tokenizer)
        return self._io(params, scorer, sampling, self.config.seed + EVALUATION_SEED_OFFSET, step, **changes)

    def _io(self, params, scorer, sampling, seed: int, step: int, learners=("policy",), **changes) -> rollouts.Io:
        usual = {"tokenizer": self.tokenizer, "max_prompt_tokens": self.config.task.max_prompt_tokens}
        usual |= {"policies": self.policies(params), "sampling": sampling, "seed": seed, "step": step}
        usual["tokenizers"] = {name: tokenizer for name, (_, tokenizer) in self.judges.items()}
        usual["around"] = functools.partial(distributed.sharded, self.sampling_mesh)
        usual |= dict(zip(("rewards", "ahead"), scorer, strict=True))
        if self.environment is not None:
            options = self._noted(step, None) | environment_settings(self.config) | {"learners": learners}
            usual["environment"] = scores.make_environment(
                self.pool, self.environment, self.config.rewards.deadline_seconds, **options
            )
        return rollouts.Io(**(usual | changes))


@contextlib.contextmanager
def open_run(config: ConfigDict, workdir: str | pathlib.Path, given: Given = NOTHING) -> Iterator[Run]:
    """Checks the configuration, opens what it names and writes it to `workdir/config.json`.

    Raises ValueError: an impossible configuration, one that differs from that of the run in `workdir`, or another process is at
      work there.
    """
    config = named(config, given)
    check_config(config)
    with bucket.opened(workdir) as (place, store, copy), _opened_run(config, place, store, copy, given) as run:
        yield run


@contextlib.contextmanager
def _opened_run(config: ConfigDict, workdir: pathlib.Path, store: Folder, copy, given: Given) -> Iterator[Run]:
    distributed.check_same(flat_config(config), "config.")
    changed = _check_same_run(config, workdir, store)
    tell = functools.partial(say, enabled=config.log.live)
    tell(_what_runs(config, store))
    if any(name.startswith("mesh.") for name in changed):
        tell("another mesh than before: the run goes on with the same prompts, and with numbers that are equal up to rounding")
    warn_of_lost_steps(config)
    tokenizer, mesh = build.build_tokenizer(config), meshes.build_mesh(config)
    sampling_mesh = meshes.build_sampling_mesh(config, mesh)
    with locked(workdir, store), build.build_pool(config) as pool, distributed.sharded(mesh):
        # Before anything is loaded or compiled, all that is named is there and all data can be read.
        functions, counts = build_rewards(config, mesh, given.functions, str(workdir)), {}
        vocab_size, source_of = _vocab_size(config, tokenizer, given), functools.partial(build.build_source, config, tokenizer)
        source, test_source = (
            source_of(test=test, vocab_size=vocab_size, given=given, counts=counts) for test in (False, True)
        )
        environment = build_environment(config, tokenizer)
        tell(_what_is_read(counts))
        report = functools.partial(_report_gap, workdir, source, tokenizer)
        network = build_policy(config, tokenizer, mesh, report, given.network)
        for examples in (source, test_source):
            combining.check_prompts(config, tokenizer, network, examples)
        trained, frozen = build.trained_and_frozen(config, network.params)
        tell(_what_trains(network.params, trained))
        run = Run(
            config=config, workdir=workdir, tokenizer=tokenizer, network=network.with_params(trained), frozen=frozen, mesh=mesh,
            sampling_mesh=sampling_mesh, teacher=build_teacher(config, network, mesh), source=source, test_source=test_source,
            method=reinforcement_method(config), preference_method=preference_method(config),
            supervised_method=supervised_method(config), pool=pool, rewards=functions, given=given, counts=counts, store=store,
            copy=copy, environment=environment, judges=load_asked(functions, config, mesh),
        )  # fmt: skip
        built = functools.partial(build_module, config, policy=network, frozen=frozen, tokenizer=tokenizer, mesh=mesh)
        run = dataclasses.replace(run, modules={name: dataclasses.replace(run, **built(name)) for name in config.modules})
        # Only now: a start that failed must not pin its configuration.
        metrics.write_atomically(workdir / "config.json", [json.dumps(config.to_dict(), indent=2) + "\n"])
        copy()
        _check_shared(store)
        yield run


def _check_shared(workdir: Folder) -> None:
    """Raises ValueError where a process does not see what the first one has written."""
    path = workdir / "config.json"
    written = distributed.gathered(path.read_bytes() if distributed.is_first() else None)[0]
    seen = distributed.gathered(path.exists() and path.read_bytes() == written)
    if not all(seen):
        raise ValueError(
            f"process {seen.index(False)} does not see what process 0 wrote to {path}; give a --workdir "
            "on a file system that all hosts share, such as a mounted bucket"
        )


def _vocab_size(config: ConfigDict, tokenizer: Tokenizer, given: Given) -> int | None:
    """Number of the tokens that the network knows; None for a function of the user's own."""
    if given.network is None:
        return build.base_structure(config, tokenizer).config.vocab_size
    return getattr(getattr(given.network, "config", None), "vocab_size", None)


def _what_runs(config: ConfigDict, workdir: Folder) -> str:
    """The beginning of a run in one line: methods, network, devices, folder."""
    chosen = {"sft": config.sft.method, "preference": config.preference.method, "rl": config.method.name}
    phases = ", ".join(f"{config[phase].steps} steps of {method}" for phase, method in chosen.items() if config[phase].steps)
    named = config.network.directory or config.network.name or ("a given one" if config.given else "one of its own sizes")
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    return f"{phases}; network: {named} in {config.network.dtype}; devices: {devices}; folder: {workdir}"


def _what_is_read(counts: dict[str, int]) -> str:
    dropped = (counts["dropped"], counts["held_out_dropped"])
    told = f"; dropped as too long: {dropped[0]} and {dropped[1]} of these" if any(dropped) else ""
    return f"data: {counts['examples']} examples and {counts['held_out']} held-out ones{told}"


def _what_trains(params, trained) -> str:
    whole, own = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, trained))
    return f"parameters: {whole:,}" + (f", of which {own:,} train" if own != whole else "")


def _report_gap(workdir: pathlib.Path, source, tokenizer: Tokenizer, gap: Callable) -> None:
    """Writes how far the quantised base is from the exact one, on the first prompts of the source."""
    path = workdir / "quantization.json"
    if path.exists():
        return
    examples = [source[index] for index in range(min(_GAP_PROMPTS, len(source)))]
    texts = [encode_prompt(tokenizer, example["prompt"], tools=example.get("tools")) for example in examples]
    width = max(map(len, texts))
    tokens = np.array([np.pad(text, (0, width - len(text))) for text in texts])
    segments = np.array([np.arange(width) < len(text) for text in texts], np.int32)
    found = gap(tokens, segments)._asdict() | {"prompts": len(texts), "unit": "nats a token"}
    metrics.write_atomically(path, [json.dumps(found, indent=2) + "\n"])


def _check_same_run(config: ConfigDict, workdir: pathlib.Path, store: Folder) -> list[str]:
    """The keys of the run in `workdir`, or a `store`, in which the configuration differs from it, all of which may change.

    Raises ValueError: another one differs.
    """
    path = workdir / "config.json"
    # A learning rate that falls until the last step is another one when that step moves.
    changeable = _CHANGEABLE + (("rl.steps",) if config.rl.optimizer.decay == "constant" else ())
    ours = flat_config(config)
    theirs = flat(reading.read_object(path)) if path.exists() else ours
    _check_same_objects(ours, theirs, store)
    changed = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    for name in changed:
        if not name.startswith(changeable):
            raise ValueError(
                f"config.{name} is {ours.get(name)!r}, but the run in {store} was made with {theirs.get(name)!r}; "
                "give the same configuration to resume it, or another --workdir"
            )
    return [name for name in changed if name in theirs]


def warn_of_lost_steps(config: ConfigDict) -> None:
    """Tells the log where parameters are kept in so few bits that most steps of an optimizer change none of them."""
    dtype, phases = config.network.param_dtype, ("sft", "preference", "rl")
    small = [name for name in phases if config[name].steps and config[name].optimizer.learning_rate < _LOST]
    if dtype == "float32" or config.network.adapter.pattern or not small:
        return
    logging.getLogger(__name__).warning(
        "config.network.param_dtype is %s and config.%s.optimizer.learning_rate %g: most steps are smaller than half of "
        "the last bit of a parameter and are lost; keep parameters in float32, of which sampling makes a rounded copy",
        dtype,
        small[0],
        config[small[0]].optimizer.learning_rate,
    )


def _check_same_objects(ours: dict[str, Any], theirs: dict[str, Any], workdir: Folder) -> None:
    """Raises ValueError where the run in `workdir` was given other Python objects, or some where now there are none."""
    for name in sorted(name for name in ours.keys() | theirs.keys() if name.startswith("given.")):
        if ours.get(name) != theirs.get(name):
            argument, now, then = name.split(".")[1], ours.get(name, "none"), theirs.get(name, "none")
            raise ValueError(
                f"train() is given {argument} = {now}, but the run in {workdir} was made with {then} ({name} in its "
                f"config.json); give {argument}=... as it was to resume it, or another workdir"
            )
