"""The server: chat completions, completions and models as OpenAI's clients ask for them, and what each rollout sampled.

A client that asks below "/rollouts/NAME/v1", or sends the header "x-rollout-id", has its calls remembered under that name.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.sampling.standing import Asked
from jaxrl_llm.serving.bodies import BadRequest, Wanted, wanted_of_chat, wanted_of_text
from jaxrl_llm.serving.scheduler import Busy, Scheduler, Ticket
from jaxrl_llm.serving.sessions import Call, Sessions

LARGEST_BODY = 1 << 24  # bytes
_LOOK_SECONDS = 0.2  # between two looks whether a client is still there
_START_SECONDS = 30.0


@dataclasses.dataclass(eq=False)
class Served:
    """What a server offers."""

    scheduler: Scheduler
    tokenizer: Tokenizer
    name: str  # of the model
    context: int  # most tokens of a prompt with its answer
    usual_limit: int = 512  # most new tokens, where a request does not say
    usual: dict[str, Any] = dataclasses.field(default_factory=dict)  # "temperature" and the like, where a request does not say
    sessions: Sessions = dataclasses.field(default_factory=Sessions)
    token: str = ""  # that clients must send; "" for none
    # `(text, tools) -> (content, tool calls)` of what was said to somebody who gave tools; None leaves texts as they are
    parse: Callable[[str, list], tuple[str, list[dict]]] | None = None


def make_app(served: Served) -> Starlette:
    """The application, for any ASGI server."""
    own = [
        Route("/models", functools.partial(_models, served)),
        Route("/chat/completions", functools.partial(_answer, served, True), methods=["POST"]),
        Route("/completions", functools.partial(_answer, served, False), methods=["POST"]),
    ]
    rollouts = [Route("/calls", functools.partial(_calls, served), methods=["GET", "DELETE"]), Mount("/v1", routes=own)]
    routes = [Mount("/v1", routes=own), Mount("/rollouts/{rollout}", routes=rollouts), Route("/health", _health)]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _failed})


@contextlib.contextmanager
def listening(served: Served, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The server at work in a thread; gives its address, such as "http://127.0.0.1:8000".

    Raises ValueError: nobody may listen there.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ValueError(f"nobody can listen on {host}, port {port}: {error}; give another port, or 0 for any") from error
    server = uvicorn.Server(uvicorn.Config(make_app(served), log_level="warning", lifespan="off", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, args=([bound],), name="server", daemon=True)
    thread.start()
    try:
        ends = time.monotonic() + _START_SECONDS
        while not server.started and thread.is_alive() and time.monotonic() < ends:
            time.sleep(0.01)
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        served.scheduler.close()
        thread.join(_START_SECONDS)
        bound.close()


def _error(message: str, status: int, field: str | None = None, kind: str = "invalid_request_error") -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": field, "code": None}}, status)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return _error(f"{type(error).__name__}: {error}", 500, kind="server_error")


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _allowed(served: Served, request: Request) -> bool:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return not served.token or hmac.compare_digest(given.encode(), served.token.encode())


async def _models(served: Served, request: Request) -> Response:
    if not _allowed(served, request):
        return _error("the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'", 401)
    model = {"id": served.name, "object": "model", "created": 0, "owned_by": "jaxrl_llm"}
    return JSONResponse({"object": "list", "data": [model]})


async def _calls(served: Served, request: Request) -> Response:
    """What a rollout has sampled so far; DELETE forgets it."""
    if not _allowed(served, request):
        return _error("the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'", 401)
    rollout = request.path_params["rollout"]
    found = [dataclasses.asdict(call) for call in served.sessions.calls(rollout)]
    if request.method == "DELETE":
        served.sessions.forget(rollout)
    return JSONResponse({"rollout": rollout, "calls": found})


async def _answer(served: Served, chat: bool, request: Request) -> Response:
    if not _allowed(served, request):
        return _error("the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'", 401)
    rollout = request.path_params.get("rollout") or request.headers.get("x-rollout-id")
    try:
        body = await _body(request)
        wanted = wanted_of_chat(body) if chat else wanted_of_text(body)
        if body.get("model", served.name) != served.name:
            raise BadRequest(f"model is {body['model']!r}; this server has {served.name!r}", "model", 404)
        ids = await run_in_threadpool(_prompt_ids, served, wanted, chat, rollout)
        answer = _Answer(served, wanted, chat, rollout, ids)
        served.scheduler.submit(answer.tickets)
    except BadRequest as error:
        return _error(str(error), error.status, error.field)
    except Busy as error:
        return _error(str(error), 429, kind="rate_limit_error")
    except ClientDisconnect:
        return Response(status_code=499)
    if wanted.stream:
        return StreamingResponse(answer.streamed(), media_type="text/event-stream")
    return await answer.whole(request)


async def _body(request: Request) -> Any:
    """The JSON of a body, of which no more is read than may be.

    Raises BadRequest: it is too large, or no JSON.
    """
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > LARGEST_BODY:
            raise BadRequest(f"the body has more than {LARGEST_BODY} bytes; send less", status=413)
    try:
        return json.loads(found)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {str(error)[:200]}") from error


def _prompt_ids(served: Served, wanted: Wanted, chat: bool, rollout: str | None) -> list[int]:
    """Token ids of the prompt.

    Raises BadRequest: it cannot be encoded, or leaves no room.
    """
    field, tools = "messages" if chat else "prompt", {"tools": wanted.tools} if wanted.tools else {}
    try:
        if chat:
            ids = served.sessions.prompt_ids(served.tokenizer, rollout, wanted.prompt, **tools)
        else:
            ids = encode_prompt(served.tokenizer, wanted.prompt) if isinstance(wanted.prompt, str) else wanted.prompt
    except (ValueError, UnicodeError) as error:
        raise BadRequest(f"{field}: {error}", field) from error
    size = served.tokenizer.vocab_size
    if not all(0 <= token < size for token in ids):
        raise BadRequest(f"{field} holds token ids outside of 0 to {size - 1}", field)
    room = served.context - len(ids)
    if room < (wanted.limit or 1):
        asked = f" and max_tokens {wanted.limit}" if wanted.limit else ""
        raise BadRequest(f"{field} has {len(ids)} tokens{asked}; both together may have {served.context}: shorten it", field)
    return ids


class _Answer:
    """The samples of one request, and how they are told."""

    def __init__(self, served: Served, wanted: Wanted, chat: bool, rollout: str | None, ids: list[int]):
        self.served, self.wanted, self.chat, self.rollout, self.ids = served, wanted, chat, rollout, ids
        loop, self.news = asyncio.get_running_loop(), asyncio.Queue()
        room = served.context - len(ids)
        limit = min(room, served.usual_limit) if wanted.limit is None else wanted.limit
        seed = self._own_seed() if wanted.seed is None else wanted.seed
        options = {name: getattr(wanted, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        options = served.usual | {name: value for name, value in options.items() if value is not None}

        def told(number: int, ticket: Ticket, text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self.news.put_nowait, (number, text, len(ticket.ids), ticket.reason))

        self.tickets = [
            Ticket(Asked(ids, limit, _noise_of(seed, number), **options), wanted.stop, functools.partial(told, number))
            for number in range(wanted.samples)
        ]
        kind = "chatcmpl" if chat else "cmpl"
        self.head = {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}

    def _own_seed(self) -> int:
        """That of the call of its rollout, by name and number, so that it can be drawn again; elsewhere any."""
        if not self.rollout:
            return secrets.randbits(63)
        name = f"{self.rollout} {len(self.served.sessions.calls(self.rollout))}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")

    def give_up(self) -> None:
        """Nobody waits any more."""
        for ticket in self.tickets:
            ticket.gone = True

    async def whole(self, request: Request) -> Response:
        """The answer once all samples are over."""
        left, watch = len(self.tickets), asyncio.ensure_future(_gone(request))
        try:
            while left:
                news = asyncio.ensure_future(self.news.get())
                await asyncio.wait([news, watch], return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    news.cancel()
                    return Response(status_code=499)
                left -= bool(news.result()[3])
        finally:
            watch.cancel()
            self.give_up()
        if faults := [ticket.fault for ticket in self.tickets if ticket.reason == "error"]:
            return _error(faults[0], 503, kind="server_error")
        choices = [self._choice(number) for number in range(len(self.tickets))]
        kind = "chat.completion" if self.chat else "text_completion"
        return JSONResponse({**self.head, "object": kind, "choices": choices, "usage": self._usage()})

    async def streamed(self):
        """The answer as server-sent events, as it is sampled; where there are tools, each sample at once when it is over."""
        left, told = len(self.tickets), [0] * len(self.tickets)
        try:
            if self.chat:
                for number in range(left):
                    yield self._event(number, {"role": "assistant", "content": ""})
            while left:
                number, text, end, reason = await self.news.get()
                ticket = self.tickets[number]
                if reason == "error":
                    yield f"data: {json.dumps({'error': {'message': ticket.fault, 'type': 'server_error'}})}\n\n"
                    return
                left -= bool(reason)
                whole = self._choice(number) if reason else None
                if self.chat and self.wanted.tools:
                    message = {} if whole is None else {name: own for name, own in whole["message"].items() if name != "role"}
                    message |= {"tool_calls": _numbered(message["tool_calls"])} if "tool_calls" in message else {}
                else:
                    message = {"content": text} if text else {}
                if message or reason:
                    span, told[number] = slice(told[number], end), end
                    yield self._event(number, message, whole and whole["finish_reason"], self._logprobs(ticket, span))
            if self.wanted.usage:
                yield self._event(None, {}, None, None)
            yield "data: [DONE]\n\n"
        finally:
            self.give_up()

    def _event(self, number: int | None, message: dict, reason: str | None = None, logprobs=None) -> str:
        choice = {"index": number, "logprobs": logprobs, "finish_reason": reason}
        choice |= {"delta": message} if self.chat else {"text": message.get("content", "")}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        event = {**self.head, "object": kind, "choices": [] if number is None else [choice]}
        if number is None:
            event["usage"] = self._usage()
        return f"data: {json.dumps(event)}\n\n"

    def _choice(self, number: int) -> dict:
        """One sample that is over, which is noted."""
        ticket, content, calls = self.tickets[number], self.tickets[number].text, []
        if self.chat and self.wanted.tools and self.served.parse is not None:
            content, calls = self.served.parse(_raw(self.served.tokenizer, ticket), self.wanted.tools)
        reply = {"role": "assistant", "content": content or (None if calls else "")}
        reply |= {"tool_calls": calls} if calls else {}
        if self.rollout:
            messages = [dict(message) for message in self.wanted.prompt] if self.chat else None
            call = Call(list(self.ids), ticket.ids, ticket.logp, ticket.reason, messages, reply if self.chat else None)
            self.served.sessions.add(self.rollout, call)
        reason = "tool_calls" if calls else ticket.reason
        told = {"message": reply} if self.chat else {"text": content}
        return {"index": number, **told, "logprobs": self._logprobs(ticket, slice(None)), "finish_reason": reason}

    def _logprobs(self, ticket: Ticket, span: slice) -> dict | None:
        if not self.wanted.logprobs:
            return None
        texts = [self.served.tokenizer.decode([token], skip_special_tokens=False) for token in ticket.ids[span]]
        if not self.chat:
            return {"tokens": texts, "token_logprobs": ticket.logp[span], "top_logprobs": None, "text_offset": None}
        pairs = zip(texts, ticket.logp[span], strict=True)
        told = [{"token": text, "logprob": logp, "bytes": list(text.encode()), "top_logprobs": []} for text, logp in pairs]
        return {"content": told, "refusal": None}

    def _usage(self) -> dict:
        sampled, asked = sum(len(ticket.ids) for ticket in self.tickets), len(self.ids)
        return {"prompt_tokens": asked, "completion_tokens": sampled, "total_tokens": asked + sampled}


def _noise_of(seed: int, number: int) -> tuple[int, int, int]:
    """The noise of one of a request's samples: the first has the request's own seed."""
    own = (seed + (number << 40)) % 2**63
    return own % 2**32, 0, own >> 32


def _raw(tokenizer: Tokenizer, ticket: Ticket) -> str:
    """What was said, with its special tokens, which calls of tools may be written with, but for the one that ends it."""
    ids = ticket.ids[:-1] if ticket.ids and ticket.ids[-1] in tokenizer.stop_ids else ticket.ids
    return tokenizer.decode(ids, skip_special_tokens=False)


def _numbered(calls: Sequence[dict]) -> list[dict]:
    return [{"index": place, **call} for place, call in enumerate(calls)]


async def _gone(request: Request) -> None:
    """Waits until the client has left."""
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK_SECONDS)
