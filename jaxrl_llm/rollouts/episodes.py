"""Episodes: rows whose policy talks with an environment over several turns.

A row keeps its number in every turn and its noise depends on that and on the place of the token, so that it makes no
difference which rows are sampled together. What was sampled stays as ids; replies of the environment are appended to it.
"""

import bisect
import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_llm.data.dialogues import continue_dialogue
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.environments.base import Reply, Transition
from jaxrl_llm.rollouts.collect import Collection, arranged
from jaxrl_llm.rollouts.facts import with_facts
from jaxrl_llm.rollouts.requests import GIVEN, POLICY, Example, Prefix, Prompt, Request, Turn, prompt_ids_of

# What rows of episodes have in their `extras`, beside the facts of the environment.
GIVEN_BY_EPISODES = frozenset(("state", "role", "calls", "first_call", "token_rewards"))
_OWN = ("state", "calls", "first_call")
OUTCOME = "environment_reward"  # column for rewards: the reward of the last turn


class Played(NamedTuple):
    """An environment as strategies see it: calls for many rows, each answered by a transition or why there is none."""

    reset: Callable[[list[Example], list[int]], list[Transition | str]]
    step: Callable[[list[bytes], list[str]], list[Transition | str]]
    tools: tuple = ()  # as in `Environment`
    stop: tuple[str, ...] = ()  # as in `Environment`
    roles: int = 1  # as in `Environment`
    by: tuple[str, ...] = ()  # who plays each role, "" for whom the request asks; rows of others are left out in the end
    turns: int = 8  # most turns of an episode, those of all roles together
    turn_tokens: int = 0  # most tokens of a turn; 0 for as many as there is room for

    def collect(self, io, requests: Sequence[Request]) -> Collection:
        """What answers requests, see `play`."""
        return play(io, requests, self)


@dataclasses.dataclass
class _Row:
    """What one role has read and said."""

    request: Request  # for the turn that comes next
    uid: int
    role: int
    turns: list[Turn]  # the last one is the one that comes next, or the last of the episode
    place: tuple[int, int] = (0, 0)  # which wave sampled it last, and its row there
    said: str = ""  # in the last turn that has been answered
    entropy: np.ndarray | float = 0.0


@dataclasses.dataclass
class _Episode:
    """An episode under way."""

    asked: Request
    uid: int  # of its first role
    rows: dict[int, _Row] = dataclasses.field(default_factory=dict)  # by role, of those that have been spoken to
    speaker: int = 0
    ended: str = ""  # why, once it has
    outcome: Sequence[float] = ()

    @property
    def row(self) -> _Row:
        """Of the role that speaks."""
        return self.rows[self.speaker]

    @property
    def spoken(self) -> int:
        """Turns that have been or are under way."""
        return sum(len(row.turns) for row in self.rows.values())


def play(io, requests: Sequence[Request], environment: Played) -> Collection:
    """Episodes of all requests, in their order, without rewards: a row for each role that has spoken.

    The reward of a role's last turn, with its outcome, stands among the columns of its request's example under
    "environment_reward", the rewards of the turns before it in `token_rewards` at their last tokens. `turn` counts a role's
    turns; replies have mask 0 and belong to the turn that reads them. `extras` have "state" [N, T], a hash of what the turn
    has seen, "role" [N], "calls" [N], "first_call" [N], the actions before the first tool call or -1, and other facts as last
    said. Rows are compared with those of the same request and role. A row whose environment fails ends there, with a missing
    reward, and takes no part in the step (`valid` = 0); so does one whose prompt cannot be encoded or is too long.

    Args:
      io: the `Io` of the step; its seed, with the number of an example, is that of the episode's beginning.
      requests: whom to ask for what; those with an `episode` go on with it.
      environment: whom the policy talks with.

    Raises ValueError: a request for given completions, or one that goes on with an episode of several roles.
    """
    uids, most = io.numbers(requests, environment.roles), io.sampling["max_new_tokens"]
    refused = functools.partial(_fault_of_prompt, io.tokenizer, list(environment.tools) or None, io.max_prompt_tokens)
    episodes = _begun(requests, uids, environment, io.seed, refused)
    waves: list[Collection] = []
    while live := [episode for episode in episodes if not episode.ended]:
        found = io.turn(*_filled([episode.row for episode in live], len(episodes), uids[-1] + 1))
        for place, episode in enumerate(live):
            episode.row.place = len(waves), place
            own = found.rollouts.extras.get("behavior_entropy", np.zeros((len(live), 1)))[place]
            episode.row.entropy = episode.row.entropy + own
        waves.append(found)
        said = [_said(io.tokenizer, found, place, episode.row.turns[-1].begin) for place, episode in enumerate(live)]
        sound = [place for place, episode in enumerate(live) if not episode.row.turns[-1].fault]
        states = [live[place].row.turns[-1].state for place in sound]
        answers = environment.step(states, [said[place] for place in sound]) if sound else []
        by_place = dict(zip(sound, answers, strict=True))
        for place, episode in enumerate(live):
            answer = by_place.get(place, "")
            _advance(episode, found, place, said[place], answer, environment, io.tokenizer, most, refused)
    return _collected(episodes, environment, waves, io.tokenizer)


def _filled(rows: list[_Row], most: int, free: int) -> tuple[list[Request], list[int]]:
    """Requests and numbers of a wave, with some that end at once: few numbers of rows mean few programs.

    Args:
      rows: that are asked.
      most: rows of the first wave, which needs none.
      free: first number that no row has.
    """
    missing = min(1 << (len(rows) - 1).bit_length(), most) - len(rows)
    filling = [dataclasses.replace(rows[0].request, limit=1)] * missing
    return [*(row.request for row in rows), *filling], [*(row.uid for row in rows), *range(free, free + missing)]


def _fault_of_prompt(tokenizer: Tokenizer, tools: list | None, longest: int, prompt: Prompt) -> str:
    """Why nobody can be given this prompt; "" where he can."""
    try:
        size = len(prompt_ids_of(tokenizer, prompt, tools))
    except ValueError as error:
        return str(error)
    return f"its prompt has {size} tokens, more than max_prompt_tokens = {longest}" if size > longest else ""


def _begun(
    requests: Sequence[Request], uids: Sequence[int], environment: Played, seed: int, refused: Callable[[Prompt], str]
) -> list[_Episode]:
    if any(request.by == GIVEN for request in requests):
        raise ValueError(f"Request.by is {GIVEN!r}, and an environment is not played by given completions; ask a policy")
    fresh = [request for request in requests if request.episode is None]
    if environment.roles > 1 and len(fresh) < len(requests):
        raise ValueError(
            f"Request.episode goes on with a game of {environment.roles} roles, of which a row knows one; leave it out"
        )
    seeds = [int(np.random.SeedSequence((seed, request.prompt_id)).generate_state(1)[0]) for request in fresh]
    answers = iter(environment.reset([request.example for request in fresh], seeds) if fresh else ())
    episodes: list[_Episode] = []
    for request in requests:
        answer = None if request.episode is not None else next(answers)
        if isinstance(answer, Transition):
            answer = refused(answer.reply or request.prompt) or answer
        for _ in range(request.samples):
            episode = _Episode(request, uids[len(episodes) * environment.roles])
            episodes.append(episode)
            if answer is None:
                _speak(episode, environment, 0, request.prompt, list(request.episode), request.prefix)
            elif isinstance(answer, str):
                _fail_at_once(episode, environment, answer)
            else:
                prompt = answer.reply or request.prompt
                messages = () if isinstance(prompt, str) else tuple(prompt)
                begun = [Turn(0, answer.state, messages, _seen(answer, prompt))]
                _speak(episode, environment, answer.role, prompt, begun, request.prefix)
    return episodes


def _speak(episode: _Episode, environment: Played, role: int, prompt, turns: list[Turn], prefix: Prefix | None = None) -> None:
    """A role is spoken to for the first time, or goes on with an episode."""
    if not 0 <= role < environment.roles:
        raise ValueError(f"the environment says that role {role} speaks; it has {environment.roles}, numbered from 0")
    asked = episode.asked
    example = asked.example | ({"tools": list(environment.tools)} if environment.tools else {})
    by = environment.by[role] if role < len(environment.by) else ""
    request = dataclasses.replace(
        asked, prompt=prompt, example=example, samples=1, prefix=prefix, episode=None, by=by or asked.by,
        stop=(*asked.stop, *environment.stop),
    )  # fmt: skip
    row = episode.rows[role] = _Row(request, episode.uid + role, role, turns)
    row.request = dataclasses.replace(request, limit=_limit(asked, environment, _size(prefix)))
    episode.speaker = role


def _fail_at_once(episode: _Episode, environment: Played, why: str) -> None:
    """An environment that does not begin: a row of one token, which takes no part."""
    if not episode.asked.prompt:
        number = episode.asked.prompt_id
        raise ValueError(f"the environment did not begin with example {number}: {why}; mend it or the example")
    _speak(episode, environment, 0, episode.asked.prompt, [Turn(0, b"", (), "", fault=why)])
    episode.row.request = dataclasses.replace(episode.row.request, limit=1)


def _seen(answer: Transition, reply) -> str:
    """What tells apart the states that turns begin in: what the environment calls it, else what it said last."""
    return str(answer.facts["state"]) if "state" in answer.facts else json.dumps(reply, sort_keys=True)


def _size(prefix: Prefix | None) -> int:
    return 0 if prefix is None else len(prefix.tokens)


def _limit(asked: Request, environment: Played, written: int) -> int | None:
    """Most tokens of the next turn, where so many of the completion are written; None for as many as there is room for."""
    left = None if asked.limit is None else asked.limit + _size(asked.prefix) - written
    limits = [most for most in (left, environment.turn_tokens or None) if most is not None]
    return max(min(limits), 1) if limits else None


def _said(tokenizer: Tokenizer, found: Collection, place: int, begin: int) -> str:
    """The text of a row's last turn, special tokens in it too, without the token that ends it."""
    start, end = int(found.prompt_length[place]) + begin, int(found.rollouts.length[place])
    ids = found.rollouts.tokens[place, start:end].tolist()
    ids = ids[:-1] if ids and ids[-1] in tokenizer.stop_ids else ids
    return tokenizer.decode(ids, skip_special_tokens=False)


def _advance(
    episode: _Episode, found: Collection, place: int, text: str, answer, environment: Played, tokenizer, most, refused
) -> None:
    """Takes the answer to a turn into account: the episode ends, or its next turn is asked for."""
    row = episode.row
    turn, start = row.turns[-1], int(found.prompt_length[place])
    end = int(found.rollouts.length[place]) - start
    if turn.fault or isinstance(answer, str):
        row.turns[-1], episode.ended = turn._replace(end=end, fault=turn.fault or answer), "failed"
        return
    names = ("tokens", "behavior_logp", "mask", "version", "turn")
    whole = Prefix(*(np.asarray(getattr(found.rollouts, name)[place, start : start + end]) for name in names))
    row.turns[-1] = turn._replace(end=end, reward=answer.reward, facts=dict(answer.facts))
    row.said, row.request = text, dataclasses.replace(row.request, prefix=whole)
    if answer.done or episode.spoken >= environment.turns:
        episode.ended, episode.outcome = ("done", answer.outcome) if answer.done else ("turns", ())
        return
    try:
        _go_on(episode, answer, environment, tokenizer, most, refused)
    except ValueError as error:  # a reply that the tokenizer, or the template, does not take
        row.turns[-1], episode.ended = row.turns[-1]._replace(fault=str(error)), "failed"


def _go_on(episode: _Episode, answer: Transition, environment: Played, tokenizer: Tokenizer, most: int, refused) -> None:
    """The next turn, of whoever speaks.

    Raises ValueError: what it is told cannot be encoded; the episode stands as it was.
    """
    if answer.role not in episode.rows:
        if fault := refused(answer.reply):
            raise ValueError(fault)
        messages = () if isinstance(answer.reply, str) else tuple(answer.reply)
        _speak(episode, environment, answer.role, answer.reply, [Turn(0, answer.state, messages, _seen(answer, answer.reply))])
        return
    row, asked = episode.rows[answer.role], episode.asked
    messages, added = _reply_ids(row, answer.reply, tokenizer)
    episode.speaker = answer.role
    written = _size(row.request.prefix) + len(added)
    if written >= min(most, most if asked.limit is None else asked.limit + _size(asked.prefix)):
        episode.ended = "length"
        return
    prefix = _appended(row.request.prefix, added, len(row.turns))
    row.turns.append(Turn(written, answer.state, messages, _seen(answer, answer.reply)))
    row.request = dataclasses.replace(row.request, prefix=prefix, limit=_limit(asked, environment, written))


def _reply_ids(row: _Row, reply: Reply, tokenizer: Tokenizer) -> tuple[tuple, list[int]]:
    """The chat so far, and the tokens that a reply adds behind what the role has read and said."""
    messages, plain, ids = row.turns[-1].messages, isinstance(reply, str), row.request.prefix.tokens.tolist()
    if not messages:
        if not plain:
            raise ValueError(
                f"the environment replies {reply!r} to a prompt that is a text; reply with a text, or begin a chat"
            )
        return (), tokenizer.encode(reply)
    told = [{"role": "user", "content": reply}] if plain else reply
    known = (*messages, {"role": "assistant", "content": row.said}, *told)
    tools = row.request.example.get("tools")
    return known, continue_dialogue(tokenizer, ids, known, **({"tools": tools} if tools else {}))[len(ids) :]


def _appended(whole: Prefix, added: Sequence[int], turn: int) -> Prefix:
    """The prefix with the tokens of a reply, which nobody learns, at the beginning of a turn."""
    zeros = np.zeros(len(added), np.float32)
    version = np.full(len(added), whole.version[-1] if len(whole.version) else 0, np.int32)
    more = (np.asarray(added, np.int32), zeros, zeros, version, np.full(len(added), turn, np.int32))
    own = (whole.tokens, whole.logp, whole.mask, whole.version, whole.turn)
    return Prefix(*(np.concatenate(pair) for pair in zip(own, more, strict=True)))


def _collected(episodes: list[_Episode], environment: Played, waves: list[Collection], tokenizer: Tokenizer) -> Collection:
    played = [(episode, episode.rows[role]) for episode in episodes for role in sorted(episode.rows)]
    others = [role for role, by in enumerate(environment.by) if by and by != POLICY]
    kept = [(episode, row) for episode, row in played if row.role not in others] or played
    groups = [episode.asked.group * environment.roles + row.role for episode, row in kept]
    found = arranged(waves, [row.place for _, row in kept], groups)
    rollouts, rows = found.rollouts, [row for _, row in kept]
    token_rewards, state = np.zeros(rollouts.tokens.shape, np.float32), np.zeros(rollouts.tokens.shape, np.int32)
    for number, (row, start) in enumerate(zip(rows, found.prompt_length, strict=True)):
        before = 0
        for turn in row.turns:
            state[number, before : start + turn.end] = zlib.crc32(turn.seen.encode()) >> 1
            before = start + turn.end
        for turn in row.turns[:-1]:
            token_rewards[number, start + turn.end - 1] = turn.reward
    extras = rollouts.extras | {"state": state, "role": np.array([row.role for row in rows], np.int32)}
    extras["calls"] = np.array([sum(_calls(turn) for turn in row.turns) for row in rows], np.int32)
    extras["first_call"] = np.array([_first_call(row, found, at, tokenizer) for at, row in enumerate(rows)], np.int32)
    if "behavior_entropy" in extras:
        extras["behavior_entropy"] = np.stack([row.entropy for row in rows]).astype(np.float32)
    valid = rollouts.valid * np.array([episode.ended != "failed" for episode, _ in kept], np.float32)
    told = [record | _told(*own) for record, own in zip(found.records, kept, strict=True)]
    requests = [_answered(*own) for own in kept]
    rollouts = rollouts.replace(token_rewards=token_rewards, extras=extras, valid=valid.astype(np.float32))
    whole = dataclasses.replace(found, rollouts=rollouts, records=told, requests=requests)
    last = [{name: value for turn in row.turns for name, value in turn.facts.items()} for row in rows]
    names = sorted({name for facts in last for name in facts} - {*_OWN})
    return with_facts(whole, {name: [facts.get(name, float("nan")) for facts in last] for name in names}, tokenizer)


def _answered(episode: _Episode, row: _Row) -> Request:
    """The request of a row as it was asked, with its outcome for rewards and its turns for forks."""
    example = row.request.example | {OUTCOME: _outcome(episode, row)}
    return dataclasses.replace(
        row.request,
        example=example,
        prefix=episode.asked.prefix,
        limit=episode.asked.limit,
        stop=episode.asked.stop,
        episode=tuple(row.turns),
    )


def _outcome(episode: _Episode, row: _Row) -> float | None:
    if episode.ended == "failed":
        return None
    return row.turns[-1].reward + (episode.outcome[row.role] if row.role < len(episode.outcome) else 0.0)


def _calls(turn: Turn) -> int:
    return int(turn.facts.get("calls", 0))


def _first_call(row: _Row, found: Collection, number: int, tokenizer: Tokenizer) -> int:
    """Actions of the row before its first call of a tool; -1 where there is none."""
    turn = next((turn for turn in row.turns if _calls(turn)), None)
    if turn is None:
        return -1
    start, character = int(found.prompt_length[number]), int(turn.facts.get("first_call", 0))
    ids = found.rollouts.tokens[number, start + turn.begin : start + turn.end].tolist()

    def characters(count: int) -> int:
        return len(tokenizer.decode(ids[:count], skip_special_tokens=False))

    # The token whose text reaches beyond the character.
    before = bisect.bisect_left(range(1, len(ids) + 1), character + 1, key=characters)
    return int(found.rollouts.mask[number, : start + turn.begin + before].sum())


def _told(episode: _Episode, row: _Row) -> dict:
    """What the record of a row says of its episode."""
    told = {"turns": len(row.turns), "ended": episode.ended, "turn_rewards": [turn.reward for turn in row.turns]}
    told["finish_reason"] = "stop" if episode.ended == "done" else "length"
    told |= {"role": row.role} if len(episode.rows) > 1 else {}
    return told | ({"fault": row.turns[-1].fault} if episode.ended == "failed" else {})
