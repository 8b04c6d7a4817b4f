"""Whoever asks, when he likes, by one thread that keeps a standing engine at work."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

from jaxrl_llm.data.tokenizers import DecoderState, Tokenizer, decode_step
from jaxrl_llm.sampling import LENGTH, RUNNING, STOP
from jaxrl_llm.sampling.generate import end_of_stop_string
from jaxrl_llm.sampling.standing import Asked, Drawn, Standing, admit, advance, give_up

_COLUMNS = 8  # tokens between two looks at who is waiting
_REASONS = {STOP: "stop", LENGTH: "length"}
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Ticket:
    """A sample that somebody waits for; the engine's thread alone writes to it, and tells him of it."""

    asked: Asked
    stops: tuple[str, ...]  # texts that end it, which are no part of its text
    tell: Callable[["Ticket", str], None]  # told after every stretch, with the text that is new, by the engine's thread
    ids: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)  # nats, at the temperature of the sampling
    reason: str = ""  # "stop", "length", or "error", once it is over
    text: str = ""  # that was told so far
    fault: str = ""
    gone: bool = False  # whether nobody waits any more


class Busy(RuntimeError):
    """Too many are waiting."""


class Scheduler:
    """A thread that admits tickets to the slots of an engine in the order in which they come."""

    def __init__(self, engine: Standing, tokenizer: Tokenizer, *, most_waiting: int = 1024):
        self._engine, self._tokenizer, self._most = engine, tokenizer, most_waiting
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._running: dict[int, Ticket] = {}
        self._news, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        self._thread.start()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queues tickets, all or none.

        Raises Busy: too many are waiting, or the server ends.
        """
        with self._news:
            if self._closed or len(self._waiting) + len(tickets) > self._most:
                raise Busy("the server ends" if self._closed else f"{len(self._waiting)} requests are waiting; ask again later")
            self._waiting.extend(tickets)
            self._news.notify()

    def close(self) -> None:
        """Ends the thread; who still waits is told of an error."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    @property
    def at_work(self) -> int:
        """Tickets that are sampled at the moment."""
        return len(self._running)

    def _work(self) -> None:
        while self._next_round():
            try:
                self._round()
            except Exception as error:  # whatever is wrong with the engine: who waits must be told
                _LOGGER.exception("the engine failed")
                for slot in list(self._running):
                    give_up(self._engine, slot)
                self._end_all(f"{type(error).__name__}: {error}")
        self._end_all("the server ends")

    def _next_round(self) -> bool:
        """Waits until there is something to do; False where the end has come."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self._waiting or self._running)
            return not self._closed

    def _round(self) -> None:
        for slot, ticket in list(self._running.items()):
            if ticket.gone:
                give_up(self._engine, slot)
                del self._running[slot]
        with self._news:
            free = len(self._engine.busy) - int(self._engine.busy.sum())
            fresh = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        fresh = [ticket for ticket in fresh if not ticket.gone]
        try:
            self._running |= dict(zip(admit(self._engine, [ticket.asked for ticket in fresh]), fresh, strict=True))
        except Exception:
            with self._news:  # whoever is told of the failure finds them there
                self._waiting.extendleft(reversed(fresh))
            raise
        for drawn in advance(self._engine, _COLUMNS):
            self._drawn(drawn)

    def _drawn(self, drawn: Drawn) -> None:
        ticket, seen = self._running[drawn.slot], len(self._running[drawn.slot].ids)
        ticket.ids += drawn.tokens
        ticket.logp += drawn.numbers[1].tolist()
        ticket.reason = "" if drawn.reason == RUNNING else _REASONS[drawn.reason]
        end = None
        if ticket.stops and drawn.tokens:
            end = end_of_stop_string(ticket.ids, seen, ticket.stops, self._tokenizer.decode)
        if end is not None:
            del ticket.ids[end:], ticket.logp[end:]
            ticket.reason = "stop"
        text = self._text(ticket)
        fresh, ticket.text = text[len(ticket.text) :], text
        if ticket.reason:
            give_up(self._engine, drawn.slot)
            del self._running[drawn.slot]
        ticket.tell(ticket, fresh)

    def _text(self, ticket: Ticket) -> str:
        """The text that is settled: without what ends it, and without what may still become a part of that."""
        over = bool(ticket.reason)
        text, _ = decode_step(self._tokenizer, ticket.ids, DecoderState(), last=over)
        places = [place for place in map(text.find, ticket.stops) if place >= 0]
        if places:
            return text[: min(places)]
        held = 0 if over or not ticket.stops else max(map(len, ticket.stops)) - 1
        return text[: max(len(text) - held, len(ticket.text))]

    def _end_all(self, fault: str) -> None:
        with self._news:
            left, self._running = [*self._running.values(), *self._waiting], {}
            self._waiting.clear()
        for ticket in left:
            ticket.reason, ticket.fault = "error", fault
            ticket.tell(ticket, "")
