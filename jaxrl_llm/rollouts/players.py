"""Whoever speaks in episodes: a standing engine for each policy, in whose slots rows stay until their episodes end."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl_llm.networks.axes import current_row_shards
from jaxrl_llm.rollouts.collect import encoded_prompts, mixed, room_for
from jaxrl_llm.rollouts.records import rollouts_of_texts
from jaxrl_llm.rollouts.requests import POLICY, Prefix, Request, Turn, make_prefix
from jaxrl_llm.sampling import RUNNING, STOP
from jaxrl_llm.sampling.generate import end_of_stop_string, prepared
from jaxrl_llm.sampling.memory import most_slots
from jaxrl_llm.sampling.standing import (
    Asked, Drawn, Standing, admit, advance, give_up, go_on, has_states, keep, renew, standing,
)  # fmt: skip
from jaxrl_llm.types import Rollouts

OF_PREFIX = tuple(field.name for field in dataclasses.fields(Prefix))
Who = tuple[str, str | None, Any]  # `by`, `beside` and `mix` of a request


@dataclasses.dataclass(eq=False)
class Row:
    """What one role has read and said."""

    request: Request  # for the turn that comes next
    uid: int
    role: int
    turns: list[Turn]  # the last one is the one that comes next, or the last of the episode
    prompt: list[int]  # token ids that the sampler reads
    learned: list[int]  # that the learner does
    # of each token behind them, by fields of `Prefix`, and "entropy"
    text: dict[str, list] = dataclasses.field(default_factory=lambda: {name: [] for name in (*OF_PREFIX, "entropy")})
    read: int | None = None  # tokens of the text that its slot has read; None where it has not begun
    slot: int = -1
    drawn: int = 0  # tokens of the turn so far
    experts: list[np.ndarray] = dataclasses.field(default_factory=list)  # of the tokens that were read, in their order
    said: str = ""  # in the last turn that has been answered
    beyond: bool = False  # whether its slot has read more of the last turn than the row has, which a text ended

    def add(self, **columns) -> None:
        """Lays tokens behind the text; what is one number holds for all of them."""
        count = len(columns["tokens"])
        for name, own in self.text.items():
            values = columns.get(name, 0)
            own.extend(values if np.ndim(values) else [values] * count)


@dataclasses.dataclass(eq=False)
class Player:
    """A policy's engine and who is where in it."""

    engine: Standing
    free: list[int]  # slots that no episode holds
    speaking: dict[int, Row] = dataclasses.field(default_factory=dict)


def player_for(io, who: Who, wanted: int, least: int) -> Player:
    """The player of a policy.

    Args:
      io: the `Io` of the step.
      who: the policy.
      wanted: slots that would hold all episodes at once.
      least: those that one episode holds.
    """
    network, params = mixed(io.policies, *who)
    network, vocab_size = prepared(network, params)
    sampling, shards = io.sampling, current_row_shards()
    # A context has room for all of a row, beside a tail for a turn.
    context = io.max_prompt_tokens + sampling["max_new_tokens"]
    most = sampling.get("slots") or shards * most_slots(network, context)
    options = {name: sampling[name] for name in ("stop_ids", "logit_mask", "record_routes") if name in sampling}
    slots = max(min(most, wanted), least)
    engine = standing(network, params, slots=slots, vocab_size=vocab_size, context=context, **options)
    return Player(engine, list(range(len(engine.busy)))[::-1])


def begin_turns(io, player: Player, rows: Sequence[Row]) -> None:
    """Rows with a slot begin to speak, behind what they have said and read."""
    fresh, others = ([row for row in rows if (row.read is None) == new] for new in (True, False))
    admit(player.engine, [_asked(io, row) for row in fresh], [row.slot for row in fresh])
    go_on(player.engine, {row.slot: _asked(io, row) for row in others})
    for row in rows:
        row.drawn, player.speaking[row.slot] = 0, row


def _asked(io, row: Row) -> Asked:
    sampling, request, tokens = io.sampling, row.request, row.text["tokens"]
    usual = {name: sampling[name] for name in ("temperature", "top_k", "top_p", "min_p") if sampling.get(name) is not None}
    usual |= {} if request.temperature is None else {"temperature": request.temperature}
    limit = room_for(request, len(tokens), sampling["max_new_tokens"])
    unread = [*row.prompt, *tokens] if row.read is None else tokens[row.read :]
    return Asked(unread, limit, (io.seed, io.step, row.uid), mask=request.mask, **usual)


def draw(io, players: dict[Who, Player], columns: int, leaving: bool) -> list[Row]:
    """Draws so many tokens of who speaks; rows whose turns are over.

    Args:
      io: the `Io` of the step, which newer parameters may join.
      players: by their policies.
      columns: at most.
      leaving: whether it ends where an eighth of the turns are over.
    """
    over = []
    for who, player in players.items():
        if not player.speaking:
            continue
        own = columns
        if io.in_flight is not None and POLICY in who[:2]:
            if player.engine.columns == io.in_flight[0]:
                _renew(io, players)
            else:
                own = min(columns, io.in_flight[0] - player.engine.columns)
        few = max(len(player.speaking) // 8, 1) if leaving else 0
        over += [row for drawn in advance(player.engine, own, few) if (row := _heard(io, player, drawn)) is not None]
    return over


def _renew(io, players: dict[Who, Player]) -> None:
    """Newer parameters go on, once they are there; those of before are let go first."""
    policies = [who for who in players if POLICY in who[:2]]
    for who in policies:
        players[who].engine.params = players[who].engine.layers = None
    io.renew()
    for who in policies:
        renew(players[who].engine, mixed(io.policies, *who)[1])


def _heard(io, player: Player, drawn: Drawn) -> Row | None:
    """Lays what a slot drew behind its row's text; the row where its turn is over."""
    row, tokens, numbers, reason = player.speaking[drawn.slot], drawn.tokens, drawn.numbers, drawn.reason
    stops, end = (*io.sampling.get("stop_strings", ()), *row.request.stop), None
    if stops and tokens:
        whole = [*row.text["tokens"][len(row.text["tokens"]) - row.drawn :], *tokens]
        end = end_of_stop_string(whole, row.drawn, stops, io.sampling.get("detokenize", io.tokenizer.decode))
    row.beyond = end is not None and end - row.drawn < len(tokens)
    if end is not None:
        tokens, numbers, reason = tokens[: end - row.drawn], numbers[:, : end - row.drawn], STOP
        give_up(player.engine, drawn.slot)
    row.add(
        tokens=tokens, logp=numbers[1].tolist(), entropy=numbers[3].tolist(), mask=1.0, version=io.now,
        turn=len(row.turns) - 1,
    )  # fmt: skip
    row.experts += [] if drawn.routes is None else [drawn.routes]
    row.drawn += len(tokens)
    io.sampled_tokens += len(tokens)
    if reason == RUNNING:
        return None
    del player.speaking[drawn.slot]
    return row


def hold(player: Player, rows: Sequence[Row]) -> None:
    """Rows whose turns are over keep in their slots what they have read: all but their last token."""
    again = [row for row in rows if row.beyond and has_states(player.engine)]
    for row in again:  # states cannot be taken back: all is read anew
        row.read, row.experts = None, []
    rows = [row for row in rows if row not in again]
    keep(player.engine, {row.slot: row.drawn for row in rows})
    for row in rows:
        row.read = len(row.text["tokens"]) - 1
        if row.experts:  # of what was read beyond the text, where a text ended the turn, nothing is left
            row.experts = [np.concatenate(row.experts)[: len(row.prompt) + row.read]]


def row_for(io, request: Request, uid: int, role: int, turns: list[Turn]) -> Row:
    """A row that begins, with the prefix of its request as its text.

    Raises ValueError: its prompt cannot be encoded, or is too long.
    """
    row = Row(request, uid, role, turns, *encoded_prompts(io.tokenizer, request, io.max_prompt_tokens))
    if request.prefix is not None:
        row.add(**{name: getattr(request.prefix, name).tolist() for name in OF_PREFIX})
    return row


def rollouts_of(io, rows: Sequence[Row]) -> Rollouts:
    """The rows, each a group, without rewards."""
    texts = [make_prefix(**{name: row.text[name] for name in OF_PREFIX}) for row in rows]
    prompts, numbers = [row.learned for row in rows], [row.request.prompt_id for row in rows]
    width = io.max_prompt_tokens + io.sampling["max_new_tokens"]
    found = rollouts_of_texts(prompts, texts, numbers, width=width, version=io.now)
    extras, whole = {}, found.tokens.shape
    if io.keeps_entropy:
        extras["behavior_entropy"] = np.zeros(whole, np.float32)
        for own, row in zip(extras["behavior_entropy"], rows, strict=True):
            own[len(row.learned) : len(row.learned) + len(row.text["entropy"])] = row.text["entropy"]
    if any(row.experts for row in rows):
        shape = next(row.experts[0].shape[1:] for row in rows if row.experts)
        extras["routes"] = np.full((*whole, *shape), -1, np.int16)
        for own, row in zip(extras["routes"], rows, strict=True):
            _lay_experts(own, row)
    source = np.array([row.request.by != POLICY or row.request.beside is not None for row in rows], np.int32)
    return found.replace(source=source, extras=extras)


def _lay_experts(own: np.ndarray, row: Row) -> None:
    """Experts of the tokens that were read; those of a prompt that the learner reads otherwise are free."""
    read = np.concatenate(row.experts)[: len(row.prompt) + len(row.text["tokens"]) - 1] if row.experts else own[:0]
    begin = 0 if row.prompt == row.learned else len(row.prompt)
    first = 0 if row.prompt == row.learned else len(row.learned)
    own[first : first + max(len(read) - begin, 0)] = read[begin:]
