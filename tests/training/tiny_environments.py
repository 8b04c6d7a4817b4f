"""Environments and agents of the tests, where workers find them."""

import time

from jaxrl_llm.environments import Agent, Environment, Transition


def _begin(example, seed):
    return {"turns": 0, "seed": seed % 7}, None


def _step(state, text):
    state = state | {"turns": state["turns"] + 1}
    done = state["turns"] == 2
    return Transition(state, f"+{state['seed']}=", reward=-0.1 * len(text), done=done, facts={"calls": 1, "first_call": 0})


def _faulty(state, text):
    if text.startswith("1"):
        raise RuntimeError("the world broke")
    if text.startswith("2"):
        time.sleep(600)
    return _step(state, text)


def twice():
    return Environment(_begin, _step)


def faulty():
    return Environment(_begin, _faulty)


def _ask(address, example):
    import openai  # workers of other environments need none

    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    messages, said = [{"role": "user", "content": example["question"]}], ""
    for _ in range(2):
        reply = client.chat.completions.create(model="policy", messages=messages, max_tokens=5).choices[0].message
        messages = [*messages, reply.model_dump(exclude_none=True), {"role": "user", "content": "go on"}]
        said += reply.content
    return -0.1 * len(said), {"calls": 2}


def asker():
    return Agent(_ask)
