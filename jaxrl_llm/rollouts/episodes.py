"""Episodes: rows whose policy talks with an environment over several turns.

A row keeps its number in every turn and its noise depends on that and on the place of the token, so that it makes no
difference which rows are sampled together. What was sampled stays as ids; replies of the environment are appended to it.
"""

import bisect
import collections
import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data.dialogues import continue_dialogue
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.environments.base import Reply, Transition
from jaxrl_llm.rollouts.collect import Collection, record_of, who_answers
from jaxrl_llm.rollouts.facts import with_facts
from jaxrl_llm.rollouts.players import Player, Row, Who, begin_turns, draw, hold, player_for, rollouts_of, row_for
from jaxrl_llm.rollouts.records import numbered
from jaxrl_llm.rollouts.requests import GIVEN, POLICY, Example, Prefix, Prompt, Request, Turn, prompt_ids_of
from jaxrl_llm.sampling import LENGTH

# What rows of episodes have in their `extras`, beside the facts of the environment.
GIVEN_BY_EPISODES = frozenset(("state", "role", "calls", "first_call", "token_rewards"))
_OWN = ("state", "calls", "first_call")
OUTCOME = "environment_reward"  # column for rewards: the reward of the last turn
STRETCH = 16  # tokens between two looks at whose turns are over

Answers = list[Transition | str]


class Played(NamedTuple):
    """An environment as strategies see it: calls for many rows, each answered by a transition or why there is none."""

    reset: Callable[[list[Example], list[int]], Answers]
    step: Callable[[list[bytes], list[str]], Callable[[], Answers]]  # begins, and gives a function that waits for the answers
    tools: tuple[Any, ...] = ()  # as in `Environment`
    stop: tuple[str, ...] = ()  # as in `Environment`
    roles: int = 1  # as in `Environment`
    by: tuple[str, ...] = ()  # who plays each role, "" for whom the request asks
    learners: tuple[str, ...] = (POLICY,)  # of these; rows of others are left out in the end
    turns: int = 8  # most turns of an episode, those of all roles together
    turn_tokens: int = 0  # most tokens of a turn; 0 for as many as there is room for
    overlap: int = 8  # tokens that others draw before anybody waits for answers

    def collect(self, io: Any, requests: Sequence[Request]) -> Collection:
        """What answers requests, see `play`."""
        return play(io, requests, self)


@dataclasses.dataclass(eq=False)
class _Episode:
    """An episode under way."""

    asked: Request
    uid: int  # of its first role
    whose: tuple[Who, ...]  # the policy of each role
    slots: tuple[int, ...] = ()  # of each role's policy, until the episode ends
    rows: dict[int, Row] = dataclasses.field(default_factory=dict)  # by role, of those that have been spoken to
    speaker: int = 0
    ended: str = ""  # why, once it has
    outcome: Sequence[float] = ()

    @property
    def row(self) -> Row:
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
    refused = functools.partial(_fault_of_prompt, io.tokenizer, list(environment.tools) or None, io.max_prompt_tokens)
    episodes = _begun(io, requests, environment, refused)
    with io.around():
        _play(io, [episode for episode in episodes if not episode.ended], environment, refused)
    return _collected(io, episodes, environment)


class _Question(NamedTuple):
    """Turns that the environment has been told of."""

    episodes: list[_Episode]
    said: list[str]
    answers: Callable[[], Answers]
    due: int  # column at which they are waited for


def _play(io, episodes: list[_Episode], environment: Played, refused: Callable[[Prompt], str]) -> None:
    """Plays episodes to their ends. Who has spoken waits for the answer in his slot, while others speak.

    When he goes on is decided by the columns that were drawn, never by the clock: an episode is the same, bit for bit, however
    long its environment takes.
    """
    queue, players = collections.deque(episodes), _players(io, episodes)
    by_uid = {episode.uid + role: episode for episode in episodes for role in range(environment.roles)}
    heard: list[_Episode] = []
    asked: _Question | None = None
    while True:
        now, coming = sum(player.engine.columns for player in players.values()), []
        if asked is not None and (now >= asked.due or not _speaking(players)):
            coming, asked = _answered(io, asked, players, environment, refused), None
        coming += _entering(queue, players)
        if heard and asked is None:
            said = [_said(io.tokenizer, episode.row) for episode in heard]
            answers = environment.step([episode.row.turns[-1].state for episode in heard], said)
            heard, asked = [], _Question(heard, said, answers, now + environment.overlap)
        for who, player in players.items():
            begin_turns(io, player, [episode.row for episode in coming if episode.whose[episode.speaker] == who])
        if not _speaking(players) and asked is None:
            return
        # Nobody else is asked while an answer is waited for; those who end meanwhile are asked together.
        over = draw(io, players, STRETCH if asked is None else asked.due - now, leaving=asked is None)
        heard += [by_uid[row.uid] for row in over]
        for who, player in players.items():
            own = [episode for episode in (by_uid[row.uid] for row in over) if episode.whose[episode.speaker] == who]
            hold(player, [episode.row for episode in own if episode.spoken < environment.turns])


def _speaking(players: dict[Who, Player]) -> bool:
    return any(player.speaking for player in players.values())


def _players(io, episodes: list[_Episode]) -> dict[Who, Player]:
    """Engines of the policies that episodes want, each with room for one of them at least."""
    wanted, least = collections.Counter(), collections.Counter()
    for episode in episodes:
        own = collections.Counter(episode.whose)
        wanted, least = wanted + own, least | own
    return {who: player_for(io, who, count, least[who]) for who, count in wanted.items()}


def _entering(queue: collections.deque[_Episode], players: dict[Who, Player]) -> list[_Episode]:
    """Episodes that begin, in their order: those for which there are slots for all of their roles."""
    entered = []
    while queue and all(len(players[who].free) >= count for who, count in collections.Counter(queue[0].whose).items()):
        entered.append(queue.popleft())
        entered[-1].slots = tuple(players[who].free.pop() for who in entered[-1].whose)
        entered[-1].row.slot = entered[-1].slots[entered[-1].speaker]
    return entered


def _answered(io, asked: _Question, players: dict[Who, Player], environment: Played, refused) -> list[_Episode]:
    """Takes answers into account, once they are there: episodes that go on, where others have left their slots."""
    for episode, said, answer in zip(asked.episodes, asked.said, asked.answers(), strict=True):
        _advance(io, episode, said, answer, environment, refused)
        episode.row.slot = episode.slots[episode.speaker]
        for who, slot in zip(episode.whose, episode.slots, strict=True) if episode.ended else ():
            players[who].free.append(slot)
    return [episode for episode in asked.episodes if not episode.ended]


def _fault_of_prompt(tokenizer: Tokenizer, tools: list | None, longest: int, prompt: Prompt) -> str:
    """Why nobody can be given this prompt; "" where he can."""
    try:
        size = len(prompt_ids_of(tokenizer, prompt, tools))
    except ValueError as error:
        return str(error)
    return f"its prompt has {size} tokens, more than max_prompt_tokens = {longest}" if size > longest else ""


def _begun(io, requests: Sequence[Request], environment: Played, refused: Callable[[Prompt], str]) -> list[_Episode]:
    if any(request.by == GIVEN for request in requests):
        raise ValueError(f"Request.by is {GIVEN!r}, and an environment is not played by given completions; ask a policy")
    fresh = [request for request in requests if request.episode is None]
    if environment.roles > 1 and len(fresh) < len(requests):
        raise ValueError(
            f"Request.episode goes on with a game of {environment.roles} roles, of which a row knows one; leave it out"
        )
    uids = io.numbers(requests, environment.roles)
    seeds = [int(np.random.SeedSequence((io.seed, request.prompt_id)).generate_state(1)[0]) for request in fresh]
    answers = iter(environment.reset([request.example for request in fresh], seeds) if fresh else ())
    by = (*environment.by, *[""] * environment.roles)[: environment.roles]
    episodes: list[_Episode] = []
    for request in requests:
        answer = None if request.episode is not None else next(answers)
        if isinstance(answer, Transition):
            answer = refused(answer.reply or request.prompt) or answer
        for _ in range(request.samples):
            whose = tuple(who_answers(request, own) for own in by)
            episode = _Episode(request, uids[len(episodes) * environment.roles], whose)
            episodes.append(episode)
            if answer is None:
                _speak(io, episode, environment, 0, request.prompt, list(request.episode), request.prefix)
            elif isinstance(answer, str):
                _fail_at_once(io, episode, environment, answer)
            else:
                prompt = answer.reply or request.prompt
                messages = () if isinstance(prompt, str) else tuple(prompt)
                begun = [Turn(0, answer.state, messages, _seen(answer, prompt))]
                _speak(io, episode, environment, answer.role, prompt, begun, request.prefix)
    return episodes


def _speak(io, episode: _Episode, environment: Played, role: int, prompt, turns: list[Turn], prefix: Prefix | None = None):
    """A role is spoken to for the first time, or goes on with an episode."""
    if not 0 <= role < environment.roles:
        raise ValueError(f"the environment says that role {role} speaks; it has {environment.roles}, numbered from 0")
    asked = episode.asked
    example = asked.example | ({"tools": list(environment.tools)} if environment.tools else {})
    written = 0 if prefix is None else len(prefix.tokens)
    request = dataclasses.replace(
        asked, prompt=prompt, example=example, samples=1, prefix=prefix, episode=None, by=episode.whose[role][0],
        stop=(*asked.stop, *environment.stop), limit=_limit(asked, environment, written),
    )  # fmt: skip
    episode.rows[role] = row_for(io, request, episode.uid + role, role, turns)
    episode.speaker = role


def _fail_at_once(io, episode: _Episode, environment: Played, why: str) -> None:
    """An environment that does not begin: a row without a completion, which takes no part."""
    if not episode.asked.prompt:
        number = episode.asked.prompt_id
        raise ValueError(f"the environment did not begin with example {number}: {why}; mend it or the example")
    _speak(io, episode, environment, 0, episode.asked.prompt, [Turn(0, b"", (), "", fault=why)])
    episode.ended = "failed"


def _seen(answer: Transition, reply) -> str:
    """What tells apart the states that turns begin in: what the environment calls it, else what it said last."""
    return str(answer.facts["state"]) if "state" in answer.facts else json.dumps(reply, sort_keys=True)


def _room(asked: Request) -> int | None:
    """Most tokens of a row's completion, with its prefix, as its request wants it."""
    return None if asked.limit is None else asked.limit + (0 if asked.prefix is None else len(asked.prefix.tokens))


def _limit(asked: Request, environment: Played, written: int) -> int | None:
    """Most tokens of the next turn, where so many of the completion are written; None for as many as there is room for."""
    room = _room(asked)
    limits = [most for most in (None if room is None else room - written, environment.turn_tokens or None) if most is not None]
    return max(min(limits), 1) if limits else None


def _said(tokenizer: Tokenizer, row: Row) -> str:
    """The text of a row's last turn, special tokens in it too, without the token that ends it."""
    ids = row.text["tokens"][row.turns[-1].begin :]
    ids = ids[:-1] if ids and ids[-1] in tokenizer.stop_ids else ids
    return tokenizer.decode(ids, skip_special_tokens=False)


def _advance(io, episode: _Episode, text: str, answer: Transition | str, environment: Played, refused) -> None:
    """Takes the answer to a turn into account: the episode ends, or its next turn is asked for."""
    row = episode.row
    row.turns[-1], row.said = row.turns[-1]._replace(end=len(row.text["tokens"])), text
    if isinstance(answer, str):
        row.turns[-1], episode.ended = row.turns[-1]._replace(fault=answer), "failed"
        return
    row.turns[-1] = row.turns[-1]._replace(reward=answer.reward, facts=dict(answer.facts))
    if answer.done or episode.spoken >= environment.turns:
        episode.ended, episode.outcome = ("done", answer.outcome) if answer.done else ("turns", ())
        return
    try:
        _go_on(io, episode, answer, environment, refused)
    except ValueError as error:  # a reply that the tokenizer, or the template, does not take
        row.turns[-1], episode.ended = row.turns[-1]._replace(fault=str(error)), "failed"


def _go_on(io, episode: _Episode, answer: Transition, environment: Played, refused) -> None:
    """The next turn, of whoever speaks.

    Raises ValueError: what it is told cannot be encoded; the episode stands as it was.
    """
    if answer.role not in episode.rows:
        if fault := refused(answer.reply):
            raise ValueError(fault)
        messages = () if isinstance(answer.reply, str) else tuple(answer.reply)
        turns = [Turn(0, answer.state, messages, _seen(answer, answer.reply))]
        _speak(io, episode, environment, answer.role, answer.reply, turns)
        return
    row, asked = episode.rows[answer.role], episode.asked
    messages, added = _reply_ids(row, answer.reply, io.tokenizer)
    episode.speaker = answer.role
    written, rooms = len(row.text["tokens"]) + len(added), (_room(asked), io.sampling["max_new_tokens"])
    if written >= min(room for room in rooms if room is not None):
        episode.ended = "length"
        return
    version = row.text["version"][-1] if row.text["version"] else 0
    row.add(tokens=added, version=version, turn=len(row.turns))
    row.turns.append(Turn(written, answer.state, messages, _seen(answer, answer.reply)))
    row.request = dataclasses.replace(row.request, limit=_limit(asked, environment, written))


def _reply_ids(row: Row, reply: Reply, tokenizer: Tokenizer) -> tuple[tuple, list[int]]:
    """The chat so far, and the tokens that a reply adds behind what the role has read and said."""
    messages, plain, ids = row.turns[-1].messages, isinstance(reply, str), row.text["tokens"]
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


def _collected(io, episodes: list[_Episode], environment: Played) -> Collection:
    played = [(episode, episode.rows[role]) for episode in episodes for role in sorted(episode.rows)]
    others = [role for role, by in enumerate(environment.by) if by and by not in environment.learners]
    kept = [(episode, row) for episode, row in played if row.role not in others] or played
    rows, rollouts = [row for _, row in kept], rollouts_of(io, [row for _, row in kept])
    starts = np.array([len(row.learned) for row in rows], np.int32)
    token_rewards, state = np.zeros(rollouts.tokens.shape, np.float32), np.zeros(rollouts.tokens.shape, np.int32)
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        before = 0
        for turn in row.turns:
            state[number, before : start + turn.end] = zlib.crc32(turn.seen.encode()) >> 1
            before = start + turn.end
        for turn in row.turns[:-1]:
            token_rewards[number, start + turn.end - 1] = turn.reward
    extras = rollouts.extras | {"state": state, "role": np.array([row.role for row in rows], np.int32)}
    extras["calls"] = np.array([sum(_calls(turn) for turn in row.turns) for row in rows], np.int32)
    extras["first_call"] = np.array([_first_call(row, io.tokenizer) for row in rows], np.int32)
    rollouts = rollouts.replace(
        token_rewards=token_rewards, extras=extras,
        valid=np.array([episode.ended != "failed" for episode, _ in kept], np.float32),
        group=numbered(np.array([episode.asked.group * environment.roles + row.role for episode, row in kept])),
    )  # fmt: skip
    requests = [_as_asked(*own) for own in kept]
    ends = zip(requests, rollouts.tokens, starts, rollouts.length, strict=True)
    records = [record_of(io.tokenizer, *own, LENGTH) | _told(*pair) for own, pair in zip(ends, kept, strict=True)]
    whole = Collection(rollouts, records, requests, starts)
    last = [{name: value for turn in row.turns for name, value in turn.facts.items()} for row in rows]
    names = sorted({name for facts in last for name in facts} - {*_OWN})
    return with_facts(whole, {name: [facts.get(name, float("nan")) for facts in last] for name in names}, io.tokenizer)


def _as_asked(episode: _Episode, row: Row) -> Request:
    """The request of a row as it was asked, with its outcome for rewards and its turns for forks."""
    example, asked = row.request.example | {OUTCOME: _outcome(episode, row)}, episode.asked
    own = {"prefix": asked.prefix, "limit": asked.limit, "stop": asked.stop, "episode": tuple(row.turns)}
    return dataclasses.replace(row.request, example=example, **own)


def _outcome(episode: _Episode, row: Row) -> float | None:
    if episode.ended == "failed":
        return None
    return row.turns[-1].reward + (episode.outcome[row.role] if row.role < len(episode.outcome) else 0.0)


def _calls(turn: Turn) -> int:
    return int(turn.facts.get("calls", 0))


def _first_call(row: Row, tokenizer: Tokenizer) -> int:
    """Actions of the row before its first call of a tool; -1 where there is none."""
    turn = next((turn for turn in row.turns if _calls(turn)), None)
    if turn is None:
        return -1
    ids, character = row.text["tokens"][turn.begin : turn.end], int(turn.facts.get("first_call", 0))

    def characters(count: int) -> int:
        return len(tokenizer.decode(ids[:count], skip_special_tokens=False))

    # The token whose text reaches beyond the character.
    before = bisect.bisect_left(range(1, len(ids) + 1), character + 1, key=characters)
    return int(sum(row.text["mask"][: turn.begin + before]))


def _told(episode: _Episode, row: Row) -> dict:
    """What the record of a row says of its episode."""
    told = {"turns": len(row.turns), "ended": episode.ended, "turn_rewards": [turn.reward for turn in row.turns]}
    told["finish_reason"] = "stop" if episode.ended == "done" else "length"
    told |= {"role": row.role} if len(episode.rows) > 1 else {}
    return told | ({"fault": row.turns[-1].fault} if episode.ended == "failed" else {})
