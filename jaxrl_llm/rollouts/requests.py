"""`Request`: the only way to ask for text, whoever asks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.data.chat import encode_prompt
from jaxrl_llm.data.tokenizers import Tokenizer

# Who may be asked beside the networks that a run has: the example itself, for its own completion.
GIVEN = "given"
POLICY = "policy"
Example = dict[str, Any]
# A text, the messages of a chat, or token ids.
Prompt = str | Sequence[dict[str, Any]] | Sequence[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that already stand behind a prompt: a fork, a partial rollout, the turns before."""

    tokens: np.ndarray  # int [n]
    logp: np.ndarray  # float [n], log-probability (nats) of each under the policy that sampled it, tempered; 0 where nobody did
    mask: np.ndarray  # float [n], 1 where the token is an action that the row learns
    version: np.ndarray  # int [n], training step of the parameters that sampled the token
    turn: np.ndarray  # int [n], number of the turn that the token belongs to; what is sampled continues the last one

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            found = np.shape(getattr(self, field.name))
            if found != np.shape(self.tokens) or len(found) != 1:
                raise ValueError(f"Prefix.{field.name} has shape {found}; all five are [n], one number for each token")


class Turn(NamedTuple):
    """A turn of an episode, see `rollouts.episodes`; places are counted in tokens of the completion."""

    begin: int  # where the policy speaks
    state: bytes  # of the environment before it, a pickle
    messages: tuple[Mapping[str, Any], ...]  # of the chat before it; none where the prompt is a text
    seen: str  # what the policy has been told, by which states are told apart
    end: int = 0  # behind what the policy said
    reward: float = 0.0  # what the environment gave for it
    facts: Mapping[str, Any] = {}  # what else it said
    fault: str = ""  # why the environment failed


def make_prefix(tokens: Sequence[int], *, logp: Any = 0.0, mask: Any = 0.0, version: Any = 0, turn: Any = 0) -> Prefix:
    """A prefix of these tokens; what is one number holds for all of them. By default they are read and not learned."""
    shape = (len(tokens),)
    kinds = {"logp": np.float32, "mask": np.float32, "version": np.int32, "turn": np.int32}
    given = {"logp": logp, "mask": mask, "version": version, "turn": turn}
    arrays = {name: np.array(np.broadcast_to(np.asarray(value, kinds[name]), shape)) for name, value in given.items()}
    return Prefix(tokens=np.asarray(tokens, np.int32), **arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A wish for samples behind one prompt."""

    prompt: Prompt  # what the sampler reads: a text, the messages of a chat, or token ids
    example: Example = dataclasses.field(default_factory=dict)  # the example that it comes from; its columns go to the rewards
    prompt_id: int = 0  # number of the example in its source
    group: int = 0  # rows of requests with the same number are compared with each other
    samples: int = 1  # number of completions
    prefix: Prefix | None = None  # tokens that already stand behind the prompt; they count as part of the completion
    # what the learner reads in place of `prompt`, such as the prompt without a hint; None for the same
    learned_prompt: Prompt | None = None
    by: str = POLICY  # who answers: "policy", "reference", "teacher", or "given" for the completion of the example itself
    # a second policy, whose logits are mixed with those of `by`, see `networks.combined`; None for none
    beside: str | None = None
    # how, such as `geometric(share=0.1)`; rows of a mixture have its log-probabilities, and source 1
    mix: Composable | None = None
    temperature: float | None = None  # 0 is greedy; None for that of the run
    limit: int | None = None  # most new tokens; None for as many as the run allows
    stop: tuple[str, ...] = ()  # texts that end a completion beside those of the run
    mask: np.ndarray | None = None  # bool [V], False where a token may not be sampled; None for no mask
    # turns of the episode that the prefix is a part of, the last of which goes on; None for one that begins, or for none
    episode: tuple[Turn, ...] | None = None

    def __post_init__(self) -> None:
        require(self.samples >= 1, "Request.samples", self.samples, "at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"Request.limit is {self.limit}; it must be at least 1, or None for as many as the run allows")
        if isinstance(self.stop, str):
            raise ValueError(f"Request.stop is {self.stop!r}; give a tuple of texts")
        if (self.beside is None) != (self.mix is None):
            raise ValueError(f"Request.beside is {self.beside!r} and Request.mix {self.mix!r}; give both, or neither")
        inert = [name for name in ("prefix", "temperature", "limit", "mask", "beside") if getattr(self, name) is not None]
        inert += ["stop"] if self.stop else []
        if self.by == GIVEN and inert:
            raise ValueError(f"Request.{inert[0]} would change nothing: by={GIVEN!r} samples nothing; leave it out")


def requests_for(examples: Sequence[Example], prompt_ids: Sequence[int], **options: Any) -> list[Request]:
    """One request for each example, each a group of its own; `options` are fields of `Request` that all share.

    An example without a "prompt" has an empty one, which whoever encodes it refuses.
    """
    return [
        Request(example.get("prompt", ""), example, int(number), group, **options)
        for group, (example, number) in enumerate(zip(examples, prompt_ids, strict=True))
    ]


def prompt_ids_of(tokenizer: Tokenizer, prompt: Prompt, tools=None) -> list[int]:
    """Token ids of a prompt, which may be token ids already."""
    if isinstance(prompt, str) or not len(prompt) or isinstance(prompt[0], dict):
        return encode_prompt(tokenizer, prompt, tools=tools)
    return [int(token) for token in prompt]


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as one text: that of its last message where it is a chat."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt[-1], dict):
        return tokenizer.decode([int(token) for token in prompt])
    content = prompt[-1].get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(str(part.get("text", "")) for part in content)
