"""An agent with two tools, written against OpenAI's client: the task is "a * b + c"."""

import json

from jaxrl_llm.environments import Agent, tool

MOST_CALLS = 4


def multiply(a: int, b: int) -> int:
    """Multiplies.

    Args:
      a: One number.
      b: The other.
    """
    return a * b


def add(a: int, b: int) -> int:
    """Adds.

    Args:
      a: One number.
      b: The other.
    """
    return a + b


FUNCTIONS = {"multiply": multiply, "add": add}
SCHEMAS = [tool(function).schema for function in FUNCTIONS.values()]


def work(address: str, example: dict) -> tuple[float, dict]:
    """One task, as any program with a client would do it; 1 for the right answer."""
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    messages, calls = [{"role": "user", "content": example["question"]}], 0
    for _ in range(MOST_CALLS):
        said = (
            client.chat.completions.create(model="policy", messages=messages, tools=SCHEMAS, max_tokens=60).choices[0].message
        )
        messages.append(said.model_dump(exclude_none=True))
        if not said.tool_calls:
            return float((said.content or "").strip() == example["answer"]), {"calls": calls}
        for call in said.tool_calls:
            calls += 1
            messages.append({"role": "tool", "tool_call_id": call.id, "content": _result(call.function)})
    return 0.0, {"calls": calls}


def _result(function) -> str:
    try:
        return str(FUNCTIONS[function.name](**json.loads(function.arguments)))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {error!r}"


def agent() -> Agent:
    """For `config.environment.name`."""
    return Agent(work)
