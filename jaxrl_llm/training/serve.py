"""A policy as a server, until somebody ends it."""

import os
import pathlib
import signal
import threading

from rich.console import Console

from jaxrl_llm.compose import require
from jaxrl_llm.sampling.standing import standing
from jaxrl_llm.training.compiling import use_compilation_cache
from jaxrl_llm.training.policies import load_policy


def serve(
    directory: str, *, host: str, port: int, name: str | None, token: str, slots: int, context: int, max_new_tokens: int
) -> None:
    """Listens until SIGINT or SIGTERM.

    Args:
      directory: of the policy.
      host: address; another than the loopback's lets others in, who should need a token.
      port: 0 for any.
      name: of the model; None for that of the folder.
      token: that clients must send; "" for that in JAXRL_LLM_TOKEN, or none.
      slots: samples that are drawn at a time.
      context: most tokens of a prompt with its answer.
      max_new_tokens: of an answer, where a request does not say.

    Raises ValueError: a folder without a policy, a number below 1, a port that is taken, or a package that is missing.
    """
    for what, number in (("--slots", slots), ("--context", context), ("--max-new-tokens", max_new_tokens)):
        require(number >= 1, what, number, "at least 1")
    try:
        from jaxrl_llm.serving import Scheduler, Served, listening, parser_of
    except ImportError as error:
        raise ValueError(f"serving needs a package that is not installed: {error}; pip install 'jaxrl_llm[serve]'") from error
    use_compilation_cache()
    network, tokenizer = load_policy(directory)
    engine = standing(
        network.without_params(), network.params, slots=slots, vocab_size=network.config.vocab_size, context=context,
        stop_ids=tokenizer.stop_ids,
    )  # fmt: skip
    served = Served(
        Scheduler(engine, tokenizer), tokenizer, name or pathlib.Path(directory).resolve().name, context, max_new_tokens,
        token=token or os.environ.get("JAXRL_LLM_TOKEN", ""), parse=parser_of(tokenizer),
    )  # fmt: skip
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with listening(served, host, port) as address:
        needed = ", with the token" if served.token else ""
        Console(highlight=False).print(f"{served.name}: {address}/v1{needed}; Ctrl-C ends it")
        ended.wait()
