"""Text from a policy as it is sampled: one completion, or a conversation."""

from __future__ import annotations

import functools
from typing import Any

from rich.console import Console

from jaxrl_llm.data import DecoderState, Tokenizer, decode_step, encode_prompt
from jaxrl_llm.networks import Network
from jaxrl_llm.sampling import stream
from jaxrl_llm.training.policies import load_policy


def converse(directory: str, prompt: str | None, *, chat: bool, system: str, sampling: dict[str, Any]) -> None:
    """Streams completions to the console: of `prompt`, or of what is typed until the end of input.

    Args:
      directory: of the policy.
      prompt: text; None for an interactive session.
      chat: whether texts are messages of a conversation that goes on.
      system: first message of a conversation; "" for none.
      sampling: keyword arguments of `sampling.stream`; the seed rises by one with each answer.
    """
    network, tokenizer = load_policy(directory)
    console = Console(highlight=False, markup=False)
    answer = functools.partial(_answer, console, network, tokenizer)
    messages = [{"role": "system", "content": system}] if system else []
    if prompt is not None:
        answer([*messages, {"role": "user", "content": prompt}] if chat else prompt, sampling)
        return
    seed = sampling["seed"]
    while (text := _ask(console)) is not None:
        asked = [*messages, {"role": "user", "content": text}]
        try:
            said = answer(asked if chat else text, sampling | {"seed": seed})
        except ValueError as error:  # such as an empty line: the conversation goes on
            console.print(str(error))
            continue
        messages, seed = [*asked, {"role": "assistant", "content": said}], seed + 1


def _ask(console: Console) -> str | None:
    try:
        return console.input("> ")
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(console: Console, network: Network, tokenizer: Tokenizer, prompt, sampling: dict[str, Any]) -> str:
    ids = encode_prompt(tokenizer, prompt)
    pieces, state = [], DecoderState()
    for new_ids in stream(network.without_params(), network.params, ids, stop_ids=tokenizer.stop_ids, **sampling):
        piece, state = decode_step(tokenizer, new_ids, state)
        console.print(piece, end="", soft_wrap=True)
        pieces.append(piece)
    piece, _ = decode_step(tokenizer, [], state, last=True)
    console.print(piece, soft_wrap=True)
    return "".join([*pieces, piece])
