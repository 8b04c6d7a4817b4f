"""`Io`: all that a strategy may do to the world in one step."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.rollouts.collect import Collection, Score, Submit, as_call, rewarded_collection, sample_requests
from jaxrl_llm.rollouts.episodes import Played
from jaxrl_llm.rollouts.facts import Facts, with_facts
from jaxrl_llm.rollouts.harness import Agents
from jaxrl_llm.rollouts.requests import GIVEN, Example, Prompt, Request
from jaxrl_llm.rollouts.views import at_home, seen_behind, view_of
from jaxrl_llm.types import Rollouts

# (cursor, count, weights or None) -> (examples, prompt_ids, cursor)
Draw = Callable[[Any, int, np.ndarray | None], tuple[list[Example], list[int], Any]]
# (rollouts, by, names of statistics) -> arrays [N, T, ...] by name
Statistics = Callable[[Any, str, tuple[str, ...]], Mapping[str, np.ndarray]]
Ahead = Callable[[], contextlib.AbstractContextManager[tuple[Submit, Score]]]


@dataclasses.dataclass(kw_only=True)
class Io:
    """Draws, samples, scores and rewards in one step, and numbers the samples, so that no strategy can repeat noise."""

    tokenizer: Tokenizer  # of prompts and completions
    # by the names that `Request.by` may have, a function that gives the network, without parameters, and its parameters
    policies: Mapping[str, Callable[[], tuple[Any, Any]]]
    sampling: dict[str, Any]  # keyword arguments of `sampling.generate` for all requests, "max_new_tokens" among them
    max_prompt_tokens: int  # longest prompt
    seed: int  # of the run
    step: int  # of the training
    version: int | None = None  # steps that have changed the parameters that answer; None for `step`
    # (column, newer): the first call of the sampler to draw so many columns goes on, as do later ones, with the attributes that
    # `newer()` gives: policies, statistics, and the next version
    in_flight: tuple[int, Callable[[], Mapping[str, Any]]] | None = None
    rewards: Score | None = None  # `(prompts, completions, columns) -> rewards [N, K]`, within +-1e6, NaN where missing
    # "rewards" and "facts", by name, that networks of the run give, see `rollouts.asking`
    asked: Mapping[str, Mapping[str, Callable[..., Any]]] = dataclasses.field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer] = dataclasses.field(default_factory=dict)  # of policies that have one of their own
    facts: Facts | None = None  # what else is found out about rows that are rewarded, see `with_facts`; None for nothing
    # a context of `(submit, rewards)`: the rewards of rows that `submit` is told of, by number, are asked for while others are
    # sampled; None where rewards look at all rows at once
    ahead: Ahead | None = None
    reward_weights: Sequence[float] = ()  # factor of each component in the rollouts; the records keep the rewards as they are
    drawing: Draw | None = None  # draws examples
    cursor: Any = None  # place in the data, moved by `draw`
    examples: Sequence[Example] | None = None  # of the run, by their numbers
    # what `column` has read, kept from step to step
    columns: dict[tuple[Any, ...], list[Any]] = dataclasses.field(default_factory=dict)
    # whom the policy talks with: what answers a request is an episode then; None for one turn
    environment: Played | Agents | None = None
    statistics: Statistics | None = None  # scores rollouts under a policy
    keeps_entropy: bool = False  # whether `extras["behavior_entropy"]` has the entropies of the sampler
    # what surrounds sampling, such as the mesh that it runs on
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    sampled: int = 0  # number of samples so far; the next one has this number
    sampled_tokens: int = 0  # tokens that policies wrote so far, whatever became of them; beginnings that were given are none

    @property
    def now(self) -> int:
        """Version of the parameters that answer at the moment."""
        return self.step if self.version is None else self.version

    def renew(self) -> None:
        """Lets newer parameters answer, once they are there."""
        (_, newer), self.in_flight = self.in_flight, None
        for name, value in newer().items():
            setattr(self, name, value)

    def draw(self, count: int, weights: np.ndarray | None = None) -> tuple[list[Example], list[int]]:
        """The next `count` examples of the source and their numbers.

        Args:
          weights: [examples of the source], at least 0: they are drawn without replacement in proportion to them, from noise
            that depends on the seed and the place in the data alone; None takes them in the order of the epoch.

        Raises ValueError: fewer than `count` weights are above 0, or one is negative or not finite.
        """
        examples, prompt_ids, self.cursor = self._part("drawing")(self.cursor, count, weights)
        return examples, prompt_ids

    def example(self, number: int) -> Example:
        """The example of that number, whether it was drawn in this step or not."""
        return self._part("examples")[number]

    def column(self, name: str, convert: Callable[[Any], Any] = str) -> list[Any]:
        """The column of that name of all examples, converted; read once.

        Raises ValueError: an example has no such column, or one that cannot be converted.
        """
        if (name, convert) not in self.columns:
            self.columns[name, convert] = [
                _converted(number, example, name, convert) for number, example in enumerate(self._part("examples"))
            ]
        return self.columns[name, convert]

    def sample(self, requests: Sequence[Request], *, rewarded: bool = True) -> Collection:
        """Rollouts of all requests, in their order, the samples of each together.

        Args:
          rewarded: whether the rewards are asked at once; otherwise all are NaN, see `reward`.

        Raises ValueError: a prompt of more than `max_prompt_tokens` tokens, a completion for which no room is left, an example
          without the completion that it is to give, a policy that the run does not have, or a reward out of range.
        """
        one_turn = self.environment is None
        if one_turn and rewarded and self.ahead is not None:
            with self.ahead() as (submit, score):
                return self._rewarded(self.turn(requests, self.numbers(requests), submit), score)
        found = self.turn(requests, self.numbers(requests)) if one_turn else self.environment.collect(self, requests)
        return self.reward(found) if rewarded else found

    def numbers(self, requests: Sequence[Request], each: int = 1) -> range:
        """Numbers that no other sample of the step has, so many for each sample of the requests."""
        first, self.sampled = self.sampled, self.sampled + each * sum(request.samples for request in requests)
        return range(first, self.sampled)

    def turn(self, requests: Sequence[Request], uids: Sequence[int], submit: Submit | None = None) -> Collection:
        """Samples of all requests with these numbers, without rewards and without an environment, see `sample_requests`."""
        with self.around():
            found = sample_requests(self, requests, uids, submit)
        for request, tokens in zip(found.requests, found.rollouts.length - found.prompt_length, strict=True):
            begun = 0 if request.prefix is None else len(request.prefix.tokens)
            self.sampled_tokens += 0 if request.by == GIVEN else int(tokens) - begun
        return found

    def reward(self, collection: Collection) -> Collection:
        """The collection with the rewards of its completions, and with what is found out about them."""
        return self._rewarded(collection, self._part("rewards"))

    def _rewarded(self, collection: Collection, score: Score) -> Collection:
        notes: dict[str, Sequence] = {}
        rewarded = rewarded_collection(collection, self._asking("rewards", collection, score, notes), self.reward_weights)
        if self.facts is not None:
            facts = self._asking("facts", rewarded, self.facts, notes)
            rewarded = with_facts(rewarded, facts(*as_call(rewarded)), self.tokenizer)
        for name, told in notes.items():
            records = [record | {name: own} for record, own in zip(rewarded.records, told, strict=True)]
            rewarded = dataclasses.replace(rewarded, records=records)
        return rewarded

    def _asking(self, kind: str, collection: Collection, function: Callable, notes: dict[str, Sequence]) -> Callable:
        """The function of a call, which is also given a way to ask networks once the other rewards [N, K] are known."""
        if not self.asked.get(kind):
            return function

        def ask(known: np.ndarray | None = None) -> dict[str, Sequence]:
            told = collection if known is None else collection.changed(rewards=np.asarray(known, np.float32))
            found = {name: asked(self, told) for name, asked in self.asked[kind].items()}
            notes.update({name: own.notes for name, own in found.items() if own.notes is not None})
            return {name: own.values for name, own in found.items()}

        return functools.partial(function, ask=ask)

    def score(
        self, collection: Collection, by: str, statistics: Sequence[str] = ("logp",),
        view: Callable[[Request], Prompt] | Sequence[Prompt] | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """What a policy says of the rows, [N, T, ...] by name: "logp" (nats) and the other statistics of `scoring`.

        Args:
          collection: with rows.
          by: "policy", "reference" or "teacher".
          statistics: names.
          view: prompts that the policy reads in place of the rows' own, one each or by a function of the request; what it says
            stands at the row's own tokens behind the prompt, and is 0 elsewhere.

        Raises ValueError: a policy that the run does not have, or a statistic that is none.
        """
        scored = self.statistics_of
        if view is None:
            return scored(collection.rollouts, by, tuple(statistics))
        prompts = list(map(view, collection.requests)) if callable(view) else view
        behind = view_of(collection, prompts, self.tokenizer)
        found = scored(seen_behind(collection.rollouts, behind), by, tuple(statistics))
        return {name: at_home(values, collection.rollouts, behind) for name, values in found.items()}

    def statistics_of(self, rollouts: Rollouts, by: str, statistics: Sequence[str]) -> dict[str, np.ndarray]:
        """What a policy says of any rows, as `score` of those of a collection."""
        return dict(self._part("statistics")(rollouts, by, tuple(statistics)))

    def uniform(self, count: int, salt: int) -> np.ndarray:
        """Numbers of [0, 1), float64 [count], that depend on the seed, the step and what they are for, `salt`, alone."""
        key = np.array([self.seed % 2**64, (self.step << 32) + salt], np.uint64)
        return np.random.Generator(np.random.Philox(key=key)).random(count)

    def _part(self, name: str) -> Any:
        """The attribute of that name; an evaluation, for instance, draws nothing and scores nothing."""
        if getattr(self, name) is None:
            raise ValueError(f"Io.{name} is None, and this asks for it; give Io({name}=...)")
        return getattr(self, name)


def _converted(number: int, example: Example, name: str, convert: Callable[[Any], Any]) -> Any:
    if example.get(name) is None:
        raise ValueError(f"example {number} has no {name!r}, which the strategy asks for; its columns are {sorted(example)}")
    try:
        return convert(example[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"the column {name!r} of example {number} is {example[name]!r}; give a {convert.__name__}") from error
