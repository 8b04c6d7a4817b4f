"""Text from a policy as it is sampled: one completion, or a conversation."""

import sys
from typing import Any

from rich.console import Console

from jaxrl_llm.data import DecoderState, Tokenizer, continue_dialogue, decode_step, encode_prompt
from jaxrl_llm.networks import Network
from jaxrl_llm.sampling import stream
from jaxrl_llm.training import build
from jaxrl_llm.training.combining import check_prompts
from jaxrl_llm.training.compiling import use_compilation_cache
from jaxrl_llm.training.policies import folder_kind, generation_settings, load_policy, run_config


def converse(
    directory: str, prompt: str | None, *, chat: bool | None = None, system: str | None = None, sampling: dict[str, Any]
) -> None:
    """Streams completions to the console: of `prompt`, or of what is typed until the end of input.

    What is None is as in the run that trained the policy, where the folder is one: its chat, system message, longest
    completion and stop strings.

    Args:
      directory: of the policy.
      prompt: text; None for an interactive session.
      chat: whether texts are messages of a conversation that goes on, from the ids that were sampled.
      system: first message of a conversation; "" for none.
      sampling: keyword arguments of `sampling.stream`; the seed rises by one with each answer. What is None is that of
        generation_config.json, or the usual one; "max_new_tokens" is 256 where no run says. What is used is told on stderr.

    Raises ValueError: a system message without a chat, or a folder without a policy.
    """
    use_compilation_cache()
    run = run_config(directory) if folder_kind(directory) == "run" else None
    chat = (run is not None and run.task.chat) if chat is None else chat
    if system and not chat:
        raise ValueError(f"--system={system!r} would change nothing without --chat; add it")
    if system is None:
        system = run.task.system if run is not None and chat else ""
    usual = {"temperature": 1.0, "max_new_tokens": 256 if run is None else run.rl.max_new_tokens}
    given = {name: value for name, value in sampling.items() if value is not None}
    sampling = usual | generation_settings(directory) | given
    settings = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sampling.items())]
    network, tokenizer = load_policy(directory)
    sampling = sampling | build.stopping(tokenizer, () if run is None else run.rl.stop_strings)
    console = Console(highlight=False, markup=False)

    def answer(prompt_ids: list[int], sampling: dict[str, Any]) -> tuple[str, list[int]]:
        if run is not None:
            check_prompts(run, tokenizer, network, [prompt_ids])
        return _answer(console, network, tokenizer, prompt_ids, sampling, settings)

    messages = [{"role": "system", "content": system}] if system else []
    if prompt is not None:
        answer(encode_prompt(tokenizer, [*messages, _user(prompt)] if chat else prompt), sampling)
        return
    ids, seed = [], sampling["seed"]
    while (text := _ask(console)) is not None:
        asked = [*messages, _user(text)]
        try:
            if ids:
                prompt_ids = continue_dialogue(tokenizer, ids, asked)
            else:
                prompt_ids = encode_prompt(tokenizer, asked if chat else text)
            said, said_ids = answer(prompt_ids, sampling | {"seed": seed})
        except ValueError as error:  # such as an empty line: the conversation goes on
            console.print(str(error))
            continue
        seed += 1
        if chat:
            messages, ids = [*asked, {"role": "assistant", "content": said}], [*prompt_ids, *said_ids]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _ask(console: Console) -> str | None:
    try:
        return console.input("> ")
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(
    console: Console, network: Network, tokenizer: Tokenizer, prompt_ids: list[int], sampling: dict[str, Any],
    settings: list[str],
) -> tuple[str, list[int]]:  # fmt: skip
    """Text and ids of what is sampled after `prompt_ids`, the text written to the console piece by piece."""
    pieces, state, ids = [], DecoderState(), []
    for new_ids in stream(network.without_params(), network.params, prompt_ids, **sampling):
        while settings:  # once, and behind what may be refused
            print(f"sampling with {settings.pop()}", file=sys.stderr)
        piece, state = decode_step(tokenizer, new_ids, state)
        console.print(piece, end="", soft_wrap=True)
        pieces.append(piece)
        ids += new_ids
    piece, _ = decode_step(tokenizer, [], state, last=True)
    console.print(piece, soft_wrap=True)
    return "".join([*pieces, piece]), ids
