"""Judges, asked by HTTP: a server of the test answers by rules, fails, and counts."""

import http.server
import json
import threading

import numpy as np
import pytest

from jaxrl_llm.rewards import RewardPool, judge


class Rules(http.server.BaseHTTPRequestHandler):
    asked, failures = [], []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][0]["content"]
        self.asked.append((question, self.headers.get("authorization")))
        status = self.failures.pop() if self.failures else 200
        self.send_response(status)
        self.end_headers()
        if status == 200:
            said = {"role": "assistant", "content": answered(question)}
            self.wfile.write(json.dumps({"choices": [{"message": said}]}).encode())

    def log_message(self, *_):
        pass


def answered(question):
    """Longer answers are better; what has a "?" is left open."""
    if "Answer A:" in question:
        first, second = (len(part.split("\n")[1]) for part in question.split("Answer ")[1:3])
        return "Hm. Better: " + ("A" if first > second else "B" if first < second else "C")
    if "Answer 1:" in question:
        return "Scores: " + ", ".join(str(len(part.split("\n")[1]) / 10) for part in question.split("Answer ")[1:])
    said = question.split("Answer:\n")[1].split("\n")[0]
    return "I cannot tell." if "?" in said else f"Score: 0.1 at first, no: Score: {len(said) / 10}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("jaxrl_llm.rewards.judges._WAIT_SECONDS", 0.01)
    Rules.asked.clear(), Rules.failures.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rules) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/v1"
        found.shutdown()


def test_rows_are_scored_by_the_last_word(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    reward = judge(server, "m", folder=str(tmp_path))
    call = {"prompts": ["q"] * 3, "completions": ["abc", "?", "abcde"], "answer": ["x"] * 3}
    assert reward(**call) == [0.3, None, 0.5]
    assert len(Rules.asked) == 3 and Rules.asked[0][1] == "Bearer secret" and "Reference answer:\nx" in Rules.asked[0][0]
    # What was said is kept, with the question.
    assert reward(**call) == [0.3, None, 0.5] and len(Rules.asked) == 3
    lines = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [line["said"][-3:] for line in lines] == ["0.3", "ll.", "0.5"]
    spent = judge(server, "m", folder=str(tmp_path), budget=3)
    assert spent(prompts=["q"], completions=["abcd"], answer=["x"]) == [None] and len(Rules.asked) == 3


def test_pairs_and_groups(server):
    texts = ["a", "abc", "ab", "abc"]
    pairs = judge(server, "m", scope="pair")
    assert pairs(prompts=["q"] * 4, completions=texts) == [0.0, 2.5 / 3, 1 / 3, 2.5 / 3]
    assert len(Rules.asked) == 12
    assert judge(server, "m", scope="group")(prompts=["q"] * 4, completions=texts) == [0.1, 0.3, 0.2, 0.3]


def test_a_judge_that_does_not_answer_is_a_missing_reward(server):
    Rules.failures[:] = [503, 429]
    reward = judge(server, "m")
    assert reward(prompts=["q"], completions=["ab"], answer=["x"]) == [0.2] and len(Rules.asked) == 3
    Rules.failures[:] = [400]
    with RewardPool(1) as pool:
        values, failures = pool.score({"judge": reward}, ["q"] * 2, ["ab", "abc"], {"answer": ["x"] * 2})
    assert np.isnan(values[0, 0]) and values[1, 0] == 0.3
    assert "400" in failures[0].reason and len(failures) == 1
    gone = judge("http://127.0.0.1:1/v1", "m", attempts=1)
    with pytest.raises(OSError, match="does not answer"):
        gone(prompts=["q"], completions=["a"], answer=["x"])


def test_what_cannot_be_asked_is_refused():
    for options, words in (({"scope": "all"}, "scope"), ({"pattern": "x"}, "group"), ({"attempts": 0}, "attempts")):
        with pytest.raises(ValueError, match=words):
            judge("http://x/v1", "m", **options)
    with pytest.raises(ValueError, match="'colour'"):
        judge("http://x/v1", "m", template="{colour}")(prompts=["q"], completions=["a"])
