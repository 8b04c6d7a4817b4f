"""What was sampled for each rollout, token for token, and how its calls become rows to learn from."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.data.chat import Message, encode_prompt
from jaxrl_llm.data.dialogues import continue_dialogue
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.serving.tool_calls import for_template


@dataclasses.dataclass(frozen=True)
class Call:
    """One answer of the policy."""

    prompt: list[int]  # token ids
    completion: list[int]  # token ids that were sampled
    logp: list[float]  # nats, of each of them
    reason: str  # "stop" or "length"
    messages: list[dict[str, Any]] | None = None  # that the prompt was made of; None of a text
    reply: dict[str, Any] | None = None  # the message that was answered


class Sessions:
    """Calls by the name of their rollout, in the order in which they ended."""

    def __init__(self):
        self._calls: dict[str, list[Call]] = {}
        self._turn = threading.Lock()

    def add(self, rollout: str, call: Call) -> None:
        """Notes a call."""
        with self._turn:
            self._calls.setdefault(rollout, []).append(call)

    def calls(self, rollout: str) -> list[Call]:
        """Those of a rollout so far."""
        with self._turn:
            return list(self._calls.get(rollout, ()))

    def forget(self, rollout: str) -> None:
        """Drops those of a rollout."""
        with self._turn:
            self._calls.pop(rollout, None)

    def prompt_ids(self, tokenizer: Tokenizer, rollout: str | None, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of a chat: where it goes on from an earlier call of its rollout, from the very ids that were sampled.

        It does where its messages begin with those of the call and the answer as it was given; otherwise somebody has rewritten
        the history, and all of it is encoded anew.
        """
        written = for_template(messages)
        for call in reversed(self.calls(rollout) if rollout else ()):
            if call.messages is None or len(messages) <= len(call.messages) + 1:
                continue
            known = [*call.messages, call.reply]
            if all(_same(one, other) for one, other in zip(known, messages, strict=False)):
                return continue_dialogue(tokenizer, [*call.prompt, *call.completion], written, **variables)
        return encode_prompt(tokenizer, written, **variables)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two messages say the same, however absent fields are written."""
    return _plain(one) == _plain(other)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if value not in (None, [], "")}
    if isinstance(kept.get("content"), list):  # parts of text
        kept["content"] = "".join(str(part.get("text", "")) for part in kept["content"])
    calls = [{"id": call.get("id"), "function": dict(call.get("function", {}))} for call in kept.pop("tool_calls", ())]
    return {name: kept[name] for name in ("role", "content", "tool_call_id", "name") if name in kept} | {"calls": calls}


class Row(NamedTuple):
    """A text to learn from: what was read and what was sampled, in the order of the tokens."""

    prompt: list[int]  # token ids in front of the first sampled one
    tokens: list[int]  # behind them
    mask: list[float]  # 1 where the policy sampled the token, in this row first
    logp: list[float]  # nats; 0 where it did not
    turn: list[int]  # of each token; what is read belongs to the turn that reads it
    reason: str = ""  # why the last sample of it ended


def rows_of(calls: Sequence[Call]) -> list[Row]:
    """Rows of a rollout's calls.

    A call whose prompt begins with all of a row goes on with it. Any other one, as after somebody rewrote the history, begins a
    row of its own: a branch, in which nothing that it only reads is learned.
    """
    rows: list[Row] = []
    for call in calls:
        before = [row for row in rows if call.prompt[: _size(row)] == [*row.prompt, *row.tokens]]
        row = max(before, key=_size, default=None)
        if row is None:
            row = Row(list(call.prompt), [], [], [], [])
            rows.append(row)
        read = call.prompt[_size(row) :]
        turn = row.turn[-1] + 1 if row.turn else 0
        row.tokens.extend([*read, *call.completion])
        row.mask.extend([0.0] * len(read) + [1.0] * len(call.completion))
        row.logp.extend([0.0] * len(read) + call.logp)
        row.turn.extend([turn] * (len(read) + len(call.completion)))
        rows[next(place for place, own in enumerate(rows) if own is row)] = row._replace(reason=call.reason)
    return rows


def _size(row: Row) -> int:
    return len(row.prompt) + len(row.tokens)
