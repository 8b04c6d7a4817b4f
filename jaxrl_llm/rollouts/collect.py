"""From requests to rewarded samples: encode, sample, decode, reward."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.compose import Composable
from jaxrl_llm.data.dialogues import encode_example
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.networks.combined import combined
from jaxrl_llm.rollouts.records import check_range, concatenate, make_rollouts, numbered, select_rows
from jaxrl_llm.rollouts.requests import GIVEN, POLICY, Prefix, Request, Turn, prompt_ids_of, prompt_text
from jaxrl_llm.sampling import STOP, Changing, Samples, finish_name, generate
from jaxrl_llm.types import Rollouts

# (prompts, completions, columns, (group, its size) of each row) -> rewards [N, K]
Score = Callable[[list[str], list[str], dict[str, list], list[tuple[int, int]]], np.ndarray]
# (numbers of rows, their prompts, completions and columns): rewards that are asked for while other rows are sampled.
Submit = Callable[[np.ndarray, list[str], list[str], dict[str, list]], None]


@dataclasses.dataclass(frozen=True)
class Collection:
    """Rollouts with one record a row for people to read."""

    rollouts: Rollouts  # N rows
    records: list[dict[str, Any]]  # N of them
    requests: Sequence[Request]  # that each row answers
    prompt_length: np.ndarray  # int [N], tokens of each row in front of its completion

    def take(self, rows: np.ndarray) -> "Collection":
        """The given rows, their groups numbered anew."""
        records, requests = ([each[row] for row in rows] for each in (self.records, self.requests))
        return Collection(select_rows(self.rollouts, rows), records, requests, self.prompt_length[rows])

    def changed(self, *, extras: Mapping[str, np.ndarray] | None = None, **fields: Any) -> "Collection":
        """The rows with other fields of the rollouts, and with `extras` beside those that they have."""
        given = fields | ({"extras": self.rollouts.extras | extras} if extras else {})
        return dataclasses.replace(self, rollouts=self.rollouts.replace(**given))

    def written_by(self, names: Sequence[str]) -> np.ndarray:
        """Numbers of the rows that one of `names` wrote."""
        return np.flatnonzero([record.get("by", POLICY) in names for record in self.records])


def joined(parts: Sequence[Collection]) -> Collection:
    """All rows of `parts`, which have equal widths; groups of different parts stay apart."""
    rollouts = concatenate([part.rollouts for part in parts])
    records = [record for part in parts for record in part.records]
    requests = [request for part in parts for request in part.requests]
    return Collection(rollouts, records, requests, np.concatenate([part.prompt_length for part in parts]))


def arranged(parts: Sequence[Collection], rows: Sequence[tuple[int, int]], group: Sequence[int]) -> Collection:
    """A collection of the rows `(part, row of the part)`, in these groups; the parts have equal widths."""
    first = np.cumsum([0] + [len(part.records) for part in parts])
    chosen = joined(parts).take(np.array([first[part] + row for part, row in rows]))
    return chosen.changed(group=numbered(np.asarray(group)))


def fork(collection: Collection, row: int, column: int, **changes: Any) -> Request:
    """The request that goes on from a row's tokens in front of a column; `changes` are fields of the request.

    The prefix keeps log-probabilities, versions, turns, and what of it is learned. An episode goes on from the state that its
    environment had then; a column within a reply stands for the end of the reply.
    """
    rollouts, start, request = collection.rollouts, int(collection.prompt_length[row]), collection.requests[row]
    if request.episode is not None:
        turns, begin = _turns_before(request.episode, column - start)
        column, changes = max(column, start + begin), changes | {"episode": turns}
    names = ("tokens", "behavior_logp", "mask", "version", "turn")
    prefix = Prefix(*(getattr(rollouts, name)[row, start:column] for name in names))
    return dataclasses.replace(request, prefix=prefix if column > start else None, samples=1, **changes)


def _turns_before(episode: tuple[Turn, ...], place: int) -> tuple[tuple[Turn, ...], int]:
    """The turns up to the one that a place lies in, which goes on, and where it begins; that of a reply is the turn behind."""
    number = sum(turn.begin <= place for turn in episode[1:])
    number += number + 1 < len(episode) and place >= episode[number].end
    own = episode[number]._replace(end=0, reward=0.0, facts={}, fault="")
    return (*episode[:number], own), own.begin


def sample_requests(io, requests: Sequence[Request], uids: Sequence[int], submit: Submit | None = None) -> Collection:
    """Samples of requests, without rewards; see `Io.sample`.

    Args:
      io: of the step.
      requests: in the order of the rows.
      uids: number of each row within the step.
      submit: told of rows as they end.
    """
    tokenizer, sampling = io.tokenizer, io.sampling
    if not requests:
        raise ValueError("requests is empty; ask for something, or do not ask")
    sampling = {"detokenize": tokenizer.decode} | sampling  # which stops of requests ask for
    first = np.cumsum([0] + [request.samples for request in requests])
    rows_of = [np.arange(start, end) for start, end in zip(first[:-1], first[1:], strict=True)]
    prompts = [encoded_prompts(tokenizer, request, io.max_prompt_tokens) for request in requests]
    width = io.max_prompt_tokens + sampling["max_new_tokens"]
    parts, records, names = [], {}, _field_names(requests)
    for who, beside, mix in dict.fromkeys(map(who_answers, requests)):
        chosen = [n for n, request in enumerate(requests) if who_answers(request) == (who, beside, mix)]
        asked, own_rows = [requests[number] for number in chosen], np.concatenate([rows_of[number] for number in chosen])
        version = io.now
        heads = [prompts[number] for number in chosen]
        if who == GIVEN:
            samples = given_samples(tokenizer, asked, sampling["max_new_tokens"])
        else:
            own_uids = [uids[row] for row in own_rows]
            tell = functools.partial(_finished, tokenizer, _repeated(asked), own_rows, names, records, submit)
            options = {"seed": io.seed, "step": io.step, "uids": own_uids, "finished": tell}
            samples = _generated(*_answering(io, who, beside, mix), asked, heads, sampling, **options)
        rollouts = make_rollouts(
            [learned for _, learned in heads], samples, np.full((len(own_rows), 1), np.nan),
            [request.prompt_id for request in asked], width=width, version=version,
            samples_of=[request.samples for request in asked], prefixes=[request.prefix for request in asked],
            keeps_entropy=io.keeps_entropy,
        )  # fmt: skip
        source = np.full(len(own_rows), int(who != POLICY or beside is not None), np.int32)
        group = np.repeat([request.group for request in asked], [request.samples for request in asked])
        parts.append((own_rows, rollouts.replace(source=source), group, samples.finish_reason))
    return _in_order(tokenizer, requests, parts, [len(learned) for _, learned in prompts], records)


def who_answers(request: Request, by: str = "") -> tuple[str, str | None, Composable | None]:
    """Who is asked, where he is not named otherwise."""
    return by or request.by, request.beside, request.mix


def _repeated(requests: Sequence[Request]) -> list[Request]:
    """The request of each row."""
    return [request for request in requests for _ in range(request.samples)]


def _finished(tokenizer, asked, own_rows, names, records: dict, submit: Submit | None, numbers: np.ndarray, found) -> None:
    """Writes the records of rows that are over while others are sampled, and tells `submit` of them.

    They are `numbers` among the policy's rows, whose requests are `asked` and whose places in the collection, by which records
    are kept, are `own_rows`.
    """
    for number in numbers:
        tokens, prefix = found.tokens[number, : found.length[number]], asked[number].prefix
        tokens = tokens if prefix is None else np.concatenate([prefix.tokens, tokens])
        records[own_rows[number]] = record_of(tokenizer, asked[number], tokens, 0, len(tokens), found.reason[number])
    if submit is not None:
        rows = own_rows[numbers]
        submit(rows, *_for_rewards([records[row] for row in rows], [asked[number] for number in numbers], names))


def _answering(io, who: str, beside: str | None, mix: Composable | None) -> tuple[Any, Any]:
    """Network and parameters of a policy, alone or mixed with another one; of the one that learns, newer ones in their time."""
    if io.in_flight is None or POLICY not in (who, beside):
        return mixed(io.policies, who, beside, mix)

    def given(column: int):
        if column:
            io.renew()
        return mixed(io.policies, who, beside, mix)[1]

    column, _ = io.in_flight
    return mixed(io.policies, who, beside, mix)[0], Changing(column, given)


def mixed(policies, who: str, beside: str | None, mix: Composable | None) -> tuple[Any, Any]:
    """Network and parameters of a policy, alone or mixed with another one."""
    network, params = _policy(policies, who)
    if beside is None:
        return network, params
    other, others = _policy(policies, beside)
    return combined(network, other, mix), {"first": params, "second": others}


def _policy(policies: Mapping[str, Callable[[], tuple[Any, Any]]], who: str) -> tuple[Any, Any]:
    if who not in policies:
        raise ValueError(
            f"Request.by is {who!r}, and this run has {sorted([*policies, GIVEN])}; ask one of these, or name '{who}_samples' "
            "among the annotations of the strategy, for which a run has a reference or a teacher"
        )
    return policies[who]()


def encoded_prompts(tokenizer: Tokenizer, request: Request, longest: int) -> tuple[list[int], list[int]]:
    """Token ids that the sampler and the learner read before the prefix."""
    tools = request.example.get("tools")
    try:
        sampled = prompt_ids_of(tokenizer, request.prompt, tools)
        learned = sampled if request.learned_prompt is None else prompt_ids_of(tokenizer, request.learned_prompt, tools)
    except ValueError as error:
        raise ValueError(f"prompt {request.prompt_id}: {error}") from error
    for prompt in (sampled, learned):
        if len(prompt) > longest:
            raise ValueError(
                f"prompt {request.prompt_id} has {len(prompt)} tokens, more than max_prompt_tokens = {longest}; "
                "raise max_prompt_tokens or set task.drop_long to leave such prompts out"
            )
    return sampled, learned


def _generated(network, params, requests: Sequence[Request], prompts, sampling: dict[str, Any], **others) -> Samples:
    """Samples of requests to one policy; what the requests leave open is as in `sampling`, and `others` go to `generate`."""
    prefixes = [[] if request.prefix is None else request.prefix.tokens.tolist() for request in requests]
    options = {name: value for name, value in sampling.items() if name != "max_new_tokens"}
    most = sampling["max_new_tokens"]
    limits = [room_for(request, len(prefix), most) for request, prefix in zip(requests, prefixes, strict=True)]
    if any(request.temperature is not None for request in requests):
        usual = options.get("temperature", 1.0)
        options["temperature"] = [usual if own.temperature is None else own.temperature for own in requests]
    if any(request.stop for request in requests):
        usual = tuple(options.get("stop_strings", ()))
        options["stop_strings"] = [(*usual, *request.stop) for request in requests]
    if any(request.mask is not None for request in requests):
        options["logit_mask"] = _masks(requests, options.get("logit_mask"))
    samples = generate(
        network, params, [[*prompt, *prefix] for (prompt, _), prefix in zip(prompts, prefixes, strict=True)],
        max_new_tokens=most, limits=None if set(limits) == {most} else limits,
        num_samples=[request.samples for request in requests], **others, **options,
    )  # fmt: skip
    return samples if samples.routes is None else _with_routes_of_learned(samples, prompts, prefixes)


def _masks(requests: Sequence[Request], usual: np.ndarray | None) -> np.ndarray:
    """Which tokens each request may be answered with, bool [P, V]: those that neither it nor the run forbids."""
    own = [request.mask for request in requests if request.mask is not None]
    if len({np.shape(mask) for mask in own}) > 1:
        raise ValueError(f"Request.mask has the shapes {sorted({np.shape(mask) for mask in own})}; give bool [V] each time")
    usual = np.ones_like(own[0], bool) if usual is None else np.asarray(usual, bool)
    return np.stack([usual if request.mask is None else usual & np.asarray(request.mask, bool) for request in requests])


def _with_routes_of_learned(samples: Samples, prompts, prefixes) -> Samples:
    """The samples with routes of the prompts that are learned: free where those are not the ones that were sampled behind."""
    width = max(len(learned) + len(prefix) for (_, learned), prefix in zip(prompts, prefixes, strict=True))
    routes = np.full((len(prompts), width, *samples.routes.shape[2:]), -1, np.int16)
    for own, found, (prompt, learned), prefix in zip(routes, samples.prompt_routes, prompts, prefixes, strict=True):
        own[len(learned) : len(learned) + len(prefix)] = found[len(prompt) : len(prompt) + len(prefix)]
        if learned == prompt:
            own[: len(learned)] = found[: len(learned)]
    return samples.replace(prompt_routes=routes)


def room_for(request: Request, taken: int, most: int) -> int:
    """New tokens that a request may get, of whose completion `taken` are written, and which may have `most`.

    Raises ValueError: there is no room for any.
    """
    if taken >= most:
        raise ValueError(
            f"the prefix of prompt {request.prompt_id} has {taken} tokens and leaves no room in max_new_tokens = {most}; "
            "cut it, or raise max_new_tokens"
        )
    return most - taken if request.limit is None else min(request.limit, most - taken)


def given_samples(tokenizer: Tokenizer, requests: Sequence[Request], width: int) -> Samples:
    """The completions of the requests' own examples, in the form of samples; all log-probabilities are 0.

    That is the convention for text whose author's probabilities are unknown.
    """
    rows = []
    for request in requests:
        ids, learned = encode_example(tokenizer, {"prompt": request.prompt} | request.example)
        row = [token for token, is_learned in zip(ids, learned, strict=True) if is_learned]
        if len(row) > width:
            raise ValueError(
                f"the completion of example {request.prompt_id} has {len(row)} tokens, more than max_new_tokens = {width}"
            )
        rows += [row] * request.samples
    tokens, zeros = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    length = np.array([len(row) for row in rows], np.int32)
    numbers = dict.fromkeys(("logp", "tempered_logp", "sampling_logp", "entropy"), zeros)
    return Samples(tokens=tokens, length=length, finish_reason=np.full(len(rows), STOP, np.int32), **numbers)


def _in_order(tokenizer: Tokenizer, requests: Sequence[Request], parts: list[tuple], learned_lengths, records) -> Collection:
    """The rows of all parts, each with its rows' numbers, in the order of the requests, with a record each.

    Those that `records` has by number stand; the others are written.
    """
    own_rows, made, group, reasons = zip(*parts, strict=True)
    order = np.argsort(np.concatenate(own_rows))
    rollouts = select_rows(concatenate(made), order).replace(group=numbered(np.concatenate(group)[order]))
    asked = _repeated(requests)
    starts = np.repeat(learned_lengths, [request.samples for request in requests]).astype(np.int32)
    reasons = np.concatenate(reasons)[order]
    rows = enumerate(zip(asked, rollouts.tokens, starts, rollouts.length, reasons, strict=True))
    told = [records[number] if number in records else record_of(tokenizer, *row) for number, row in rows]
    return Collection(rollouts, told, asked, starts)


def record_of(tokenizer: Tokenizer, request: Request, tokens: np.ndarray, start: int, end: int, reason: int) -> dict[str, Any]:
    """What people read of a row, whose completion are the `tokens` from `start` up to `end`; `reason` is why it ended."""
    return {
        "prompt_id": request.prompt_id,
        "prompt": prompt_text(tokenizer, request.example.get("prompt", request.prompt)),
        "completion": tokenizer.decode(tokens[start:end]),
        "answer": request.example.get("answer"),
        "rewards": None,
        "length": int(end - start),
        "finish_reason": finish_name(reason),
    } | ({} if request.by == POLICY else {"by": request.by})


def rewarded_collection(collection: Collection, score: Score, weights: Sequence[float] = ()) -> Collection:
    """The collection with rewards in its rollouts, times `weights` where there are some, and in its records.

    Raises ValueError: a reward out of range.
    """
    records, rewards = collection.records, score(*as_call(collection))
    weighted = rewards * np.asarray(weights) if len(weights) else rewards
    check_range(weighted)
    told = [
        record | {"rewards": [None if np.isnan(value) else float(value) for value in values]}
        for record, values in zip(records, rewards, strict=True)
    ]
    return dataclasses.replace(collection.changed(rewards=np.asarray(weighted, np.float32)), records=told)


def as_call(collection: Collection) -> tuple[list[str], list[str], dict[str, list], list[tuple[int, int]]]:
    """Prompts, completions, columns and groups with their sizes, as rewards are given them."""
    groups = np.asarray(collection.rollouts.group)
    sizes = np.bincount(groups)[groups]
    requests = collection.requests
    asked = _for_rewards(collection.records, requests, _field_names(requests))
    return *asked, list(zip(groups.tolist(), sizes.tolist(), strict=True))


def _field_names(requests: Sequence[Request]) -> list[str]:
    """Every field of the examples but the prompt."""
    return sorted({name for request in requests for name in request.example} - {"prompt"})


def _for_rewards(records, requests: Sequence[Request], names: list[str]) -> tuple[list[str], list[str], dict[str, list]]:
    """Prompts, completions and columns, as rewards are given them."""
    columns = {name: [request.example.get(name) for request in requests] for name in names}
    columns["completion_length"] = [record["length"] for record in records]
    return [record["prompt"] for record in records], [record["completion"] for record in records], columns
