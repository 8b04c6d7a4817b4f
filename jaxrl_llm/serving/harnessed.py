"""A policy that is served for the time of a block, to agents of this machine."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jaxrl_llm.data.tokenizers import Tokenizer
from jaxrl_llm.sampling.standing import standing
from jaxrl_llm.serving.app import Served, listening
from jaxrl_llm.serving.scheduler import Scheduler
from jaxrl_llm.serving.sessions import Row, rows_of
from jaxrl_llm.serving.tool_calls import parser_of

MODEL = "policy"  # the name that agents ask for


@contextlib.contextmanager
def serving_policy(
    network: Any, params: Any, tokenizer: Tokenizer, sampling: dict[str, Any], *, slots: int, context: int
) -> Iterator[tuple[str, Callable[[str], list[Row]]]]:
    """The address of a server, and a function that gives the rows of a rollout by its name.

    Args:
      network: without parameters.
      params: its parameters.
      tokenizer: with the chat template.
      sampling: "stop_ids", and what requests leave open: "temperature", "top_k", "top_p", "min_p", "max_new_tokens".
      slots: samples that are drawn at a time.
      context: most tokens of a prompt with its answer.
    """
    chosen = {"slots": slots, "context": context, "stop_ids": sampling.get("stop_ids", ())}
    engine = standing(network, params, vocab_size=network.config.vocab_size, **chosen)
    usual = {name: sampling[name] for name in ("temperature", "top_k", "top_p", "min_p") if sampling.get(name) is not None}
    served = Served(
        Scheduler(engine, tokenizer), tokenizer, MODEL, context, sampling["max_new_tokens"], usual, parse=parser_of(tokenizer)
    )
    with listening(served) as address:
        yield address, lambda name: rows_of(served.sessions.calls(name))
