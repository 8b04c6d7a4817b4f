"""The server, asked by OpenAI's own client, by many at once, and by those that do it wrong."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent import futures

import jax
import openai
import pytest
from training.tiny_chat_model import write_tiny_chat_model

from jaxrl_llm.data import encode_prompt
from jaxrl_llm.sampling import generate
from jaxrl_llm.sampling.standing import standing
from jaxrl_llm.serving import Scheduler, Served, listening
from jaxrl_llm.serving.app import LARGEST_BODY
from jaxrl_llm.training.policies import load_policy

CONTEXT = 160
HELLO = [{"role": "user", "content": "How many rolls are left?"}]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat")
    write_tiny_chat_model(directory)
    return load_policy(directory)


@pytest.fixture(scope="module")
def served(policy):
    network, tokenizer = policy
    sizes = {"slots": 8, "vocab_size": network.config.vocab_size, "context": CONTEXT}
    engine = standing(network.without_params(), network.params, stop_ids=tokenizer.stop_ids, **sizes)
    return Served(Scheduler(engine, tokenizer), tokenizer, "tiny", CONTEXT, usual_limit=24, token="secret")


@pytest.fixture(scope="module")
def address(served):
    with listening(served) as found:
        yield found


@pytest.fixture
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)


def expected(policy, seed, limit, messages=HELLO):
    network, tokenizer = policy
    ids = encode_prompt(tokenizer, messages)
    found = generate(network, network.params, [ids], max_new_tokens=limit, stop_ids=tokenizer.stop_ids, seed=seed, uids=[0])
    return ids, found.tokens[0, : found.length[0]].tolist()


def ask(address, body, path="/v1/chat/completions", token="secret", method="POST"):
    """Status and JSON of a request as it stands."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"authorization": f"Bearer {token}"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_answers_are_samples_of_the_policy(client, policy):
    _, tokenizer = policy
    ids, sampled = expected(policy, 7, 12)
    found = client.chat.completions.create(model="tiny", messages=HELLO, seed=7, max_tokens=12, logprobs=True)
    assert found.choices[0].message.content == tokenizer.decode(sampled)
    told = found.choices[0].logprobs.content
    assert [piece.token for piece in told] == [tokenizer.decode([token], skip_special_tokens=False) for token in sampled]
    assert all(piece.logprob < 0 for piece in told)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), len(sampled))
    text = client.completions.create(model="tiny", prompt=ids, seed=7, max_tokens=12)
    assert text.choices[0].text == tokenizer.decode(sampled)
    assert [model.id for model in client.models.list()] == ["tiny"]
    several = client.chat.completions.create(model="tiny", messages=HELLO, seed=7, max_tokens=12, n=3)
    contents = [choice.message.content for choice in several.choices]
    assert contents[0] == tokenizer.decode(sampled) and len(set(contents)) == 3


def test_streams_say_the_same(client, policy):
    _, sampled = expected(policy, 9, 20)
    options = {"model": "tiny", "messages": HELLO, "seed": 9, "max_tokens": 20, "stream_options": {"include_usage": True}}
    pieces = list(client.chat.completions.create(stream=True, **options))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == policy[1].decode(sampled)
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] in ("stop", "length")
    assert pieces[-1].usage.completion_tokens == len(sampled)


def test_stop_texts_end_an_answer_and_are_no_part_of_it(client, policy):
    text = policy[1].decode(expected(policy, 9, 20)[1])
    stop = text[4:6]
    options = {"model": "tiny", "messages": HELLO, "seed": 9, "max_tokens": 20, "stop": [stop]}
    found = client.chat.completions.create(**options)
    assert found.choices[0].message.content == text[: text.index(stop)] and found.choices[0].finish_reason == "stop"
    pieces = list(client.chat.completions.create(stream=True, **options))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text[: text.index(stop)]


def test_calls_of_a_rollout_are_remembered_and_go_on_from_their_ids(address, policy):
    client = openai.OpenAI(base_url=f"{address}/rollouts/one/v1", api_key="secret", max_retries=0)
    messages = list(HELLO)
    for _ in range(2):
        found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6)
        messages = [*messages, found.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "more"}]
    status, told = ask(address, None, "/rollouts/one/calls", method="GET")
    first, second = told["calls"]
    assert (
        status == 200
        and second["prompt"][: len(first["prompt"] + first["completion"])] == first["prompt"] + first["completion"]
    )
    assert len(first["logp"]) == len(first["completion"])
    assert ask(address, None, "/rollouts/one/calls", method="DELETE")[0] == 200
    assert ask(address, None, "/rollouts/one/calls", method="GET")[1]["calls"] == []


def test_what_is_wrong_is_named(address, client):
    good = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
    cases = [
        (b"{", 400, "no JSON"), (b"[1]", 400, "JSON object"), (b"[" * 100_000, 400, "no JSON"), (b"\xff\xfe", 400, "no JSON"),
        (good | {"colour": 1}, 400, "colour"), (good | {"model": "big"}, 404, "big"),
        (good | {"messages": [{"role": "user", "content": "x" * 4000}]}, 400, "160"), (good | {"max_tokens": 150}, 400, "160"),
        (b" " * (LARGEST_BODY + 1), 413, "bytes"),
    ]  # fmt: skip
    for body, status, words in cases:
        found, told = ask(address, body)
        assert found == status and words in told["error"]["message"], (body[:40], told)
    assert ask(address, good, token="wrong")[0] == 401
    assert ask(address, good, "/v1/nothing")[0] == 404
    assert ask(address, None, method="GET")[0] == 405
    with pytest.raises(openai.BadRequestError, match="top_p"):
        client.chat.completions.create(**good, top_p=3)
    assert client.chat.completions.create(**good).choices


def idle(served, seconds=20.0):
    ends = time.monotonic() + seconds
    while served.scheduler.at_work and time.monotonic() < ends:
        time.sleep(0.05)
    return not served.scheduler.at_work


def test_many_at_once_and_those_that_leave(address, served, policy):
    tokenizer = policy[1]

    def one(number):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        found = client.chat.completions.create(model="tiny", messages=HELLO, seed=number % 4, max_tokens=16)
        return number % 4, found.choices[0].message.content

    def leaving(number):
        """Asks for much and is gone."""
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps({"model": "tiny", "messages": HELLO, "max_tokens": 120, "n": 4, "stream": bool(number % 2)}).encode()
        with socket.create_connection((host, int(port))) as line:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: {len(body)}"
            )
            line.sendall(head.encode() + b"\r\n\r\n" + body[: len(body) - number % 3])
            time.sleep(0.05)

    texts = {seed: tokenizer.decode(expected(policy, seed, 16)[1]) for seed in range(4)}
    killed = [threading.Thread(target=leaving, args=(number,)) for number in range(12)]
    for thread in killed:
        thread.start()
    with futures.ThreadPoolExecutor(64) as clients:
        found = list(clients.map(one, range(64)))
    for thread in killed:
        thread.join()
    assert all(text == texts[seed] for seed, text in found)
    assert idle(served)
    assert jax.device_count() and len(threading.enumerate()) < 80


def test_an_engine_that_fails_is_told_of_and_goes_on(address, served, monkeypatch):
    good = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
    monkeypatch.setattr("jaxrl_llm.serving.scheduler.admit", lambda *_: 1 / 0)
    status, told = ask(address, good)
    assert status == 503 and "ZeroDivisionError" in told["error"]["message"]
    monkeypatch.undo()
    assert ask(address, good)[0] == 200 and idle(served)


def test_a_server_that_ends_tells_who_waits(policy):
    network, tokenizer = policy
    sizes = {"slots": 8, "vocab_size": network.config.vocab_size, "context": CONTEXT}
    engine = standing(network.without_params(), network.params, stop_ids=tokenizer.stop_ids, **sizes)
    served = Served(Scheduler(engine, tokenizer, most_waiting=2), tokenizer, "tiny", CONTEXT)
    with listening(served) as address:
        status, told = ask(address, {"messages": HELLO, "n": 3, "max_tokens": 2})
        assert status == 429 and "waiting" in told["error"]["message"]
        assert ask(address, {"messages": HELLO, "max_tokens": 2})[0] == 200
        with pytest.raises(ValueError, match="nobody can listen"), listening(served, port=int(address.rpartition(":")[2])):
            pass
