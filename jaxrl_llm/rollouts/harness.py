"""Rows of agents that know nothing of training: they ask a server for answers, and it remembers what it sampled for whom."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.environments.base import Transition
from jaxrl_llm.rollouts.collect import Collection
from jaxrl_llm.rollouts.facts import with_facts
from jaxrl_llm.rollouts.records import numbered, rollouts_of_texts
from jaxrl_llm.rollouts.requests import POLICY, Example, Request, make_prefix, prompt_text

# Fields of requests that are for whoever samples: an agent asks as it likes.
_DECIDED = ("beside", "prefix", "learned_prompt", "temperature", "limit", "mask", "episode")
# What rows of agents have in their `extras`.
GIVEN_BY_AGENTS = frozenset(("episode", "rounds_left"))
SLOTS = 64  # most samples that agents have drawn at a time


class Agents(NamedTuple):
    """An agent as strategies see it: asked for many rows at a time, each answered by its reward or why there is none."""

    # `(addresses, examples)`; of the answers, reward and facts
    run: Callable[[list[str], list[Example]], list[Transition | str]]

    def collect(self, io: Any, requests: Sequence[Request]) -> Collection:
        """What answers requests, see `played_by_agents`."""
        return played_by_agents(io, requests, self)


class _Rollout(NamedTuple):
    """One agent's work: whom it answers, what it sampled, and what came of it."""

    request: Request
    rows: list[Any]  # `serving.sessions.Row`
    answer: Transition | str


def played_by_agents(io, requests: Sequence[Request], agents: Agents) -> Collection:
    """Rows of what agents have sampled, in the order of the requests, without rewards.

    For the time of the call a server listens on the loopback interface, whose samples are the policy's. Each agent has an
    address of its own, below which its calls are remembered. A call that goes on from an earlier one continues its row; others,
    as after an agent has rewritten its history, begin another row, in which nothing that was sampled elsewhere is learned:
    `extras["episode"]` [N] numbers the agents, whose rows share their reward, the column "environment_reward", and
    `extras["rounds_left"]` [N] says how many rows of its agent stand behind one. Rows of an agent
    that failed have a missing reward and take no part in the step. Noise depends on seed, step, the number of the sample and of
    its call.

    Args:
      requests: whose examples the agents are given, who decide all else by themselves.

    Raises ValueError: a request that wants what agents decide, or no agent has sampled anything, with the first reason.
    """
    from jaxrl_llm.serving.harnessed import serving_policy  # an extra: most runs serve nobody

    for request in requests:
        wanted = [name for name in _DECIDED if getattr(request, name) is not None]
        wanted += ["by"] * (request.by != POLICY) + ["stop"] * bool(request.stop)
        if wanted:
            raise ValueError(f"Request.{wanted[0]} is {getattr(request, wanted[0])!r}, which agents decide; leave it out")
    asked = [request for request in requests for _ in range(request.samples)]
    run = hashlib.sha256(f"{io.seed} {io.step}".encode()).hexdigest()[:16]
    names = [f"{run}-{uid}" for uid in io.numbers(requests)]
    width, slots = io.max_prompt_tokens + io.sampling["max_new_tokens"], min(len(asked), io.sampling.get("slots") or SLOTS)
    with io.around(), serving_policy(*io.policies[POLICY](), io.tokenizer, io.sampling, slots=slots, context=width) as served:
        address, rows_by_name = served
        answers = agents.run([f"{address}/rollouts/{name}/v1" for name in names], [request.example for request in asked])
        rows = [rows_by_name(name) for name in names]
    found = [_Rollout(*own) for own in zip(asked, rows, answers, strict=True)]
    if not any(rollout.rows for rollout in found):
        reasons = [answer for answer in answers if isinstance(answer, str)]
        raise ValueError(f"no agent has asked for anything; the first reason: {reasons[0] if reasons else 'none'}")
    collection = _collected(found, io.tokenizer, width, io.now)
    io.sampled_tokens += int(collection.rollouts.mask.sum())
    return collection


def _collected(rollouts: Sequence[_Rollout], tokenizer: Tokenizer, width: int, version: int) -> Collection:
    flat = [(number, rollout, row) for number, rollout in enumerate(rollouts) for row in rollout.rows]
    left = [place for rollout in rollouts for place in reversed(range(len(rollout.rows)))]
    prompts, numbers = [row.prompt for _, _, row in flat], [rollout.request.prompt_id for _, rollout, _ in flat]
    texts = [make_prefix(row.tokens, logp=row.logp, mask=row.mask, version=version, turn=row.turn) for _, _, row in flat]
    made = rollouts_of_texts(prompts, texts, numbers, width=width, version=version).replace(
        valid=np.array([not isinstance(rollout.answer, str) for _, rollout, _ in flat], np.float32),
        group=numbered(np.array([rollout.request.group for _, rollout, _ in flat])),
        extras={"episode": np.array([number for number, _, _ in flat], np.int32), "rounds_left": np.array(left, np.int32)},
    )
    records = [_record(tokenizer, rollout, row) for _, rollout, row in flat]
    requests = [_answered(rollout) for _, rollout, _ in flat]
    whole = Collection(made, records, requests, np.array([len(prompt) for prompt in prompts], np.int32))
    facts = [{} if isinstance(rollout.answer, str) else rollout.answer.facts for _, rollout, _ in flat]
    names = sorted({name for own in facts for name in own})
    return with_facts(whole, {name: [own.get(name, float("nan")) for own in facts] for name in names}, tokenizer)


def _answered(rollout: _Rollout) -> Request:
    reward = None if isinstance(rollout.answer, str) else rollout.answer.reward
    return dataclasses.replace(rollout.request, samples=1, example=rollout.request.example | {"environment_reward": reward})


def _record(tokenizer: Tokenizer, rollout: _Rollout, row) -> dict[str, Any]:
    failed = isinstance(rollout.answer, str)
    told = {
        "prompt_id": rollout.request.prompt_id, "prompt": prompt_text(tokenizer, row.prompt), "rewards": None,
        "completion": tokenizer.decode(row.tokens), "answer": rollout.request.example.get("answer"), "length": len(row.tokens),
        "finish_reason": row.reason, "turns": row.turn[-1] + 1, "ended": "failed" if failed else "done",
    }  # fmt: skip
    return told | ({"fault": rollout.answer} if failed else {})
