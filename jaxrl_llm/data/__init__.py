"""Tasks, sources, their order, tokenizers, chat templates and packing."""

from jaxrl_llm.data.arithmetic import ANSWER_MARKER, ARITHMETIC_ALPHABET, arithmetic_source, worked_solution
from jaxrl_llm.data.chat import encode_chat, encode_prompt, render_chat
from jaxrl_llm.data.dialogues import continue_dialogue, encode_dialogue, encode_example
from jaxrl_llm.data.forest import pack_forest
from jaxrl_llm.data.goals import goal_conditioned, revised
from jaxrl_llm.data.jsonl import jsonl_source
from jaxrl_llm.data.order import Cursor, epoch_order, next_indices, weighted_indices
from jaxrl_llm.data.packing import batch_from, first_fit, pack
from jaxrl_llm.data.preference_sources import arithmetic_preferences, preference_source
from jaxrl_llm.data.preferences import PAIR, batch_of_pairs, filter_long_pairs, mismatched_rollouts, preference_rollouts
from jaxrl_llm.data.programs import PROGRAM_ALPHABET, program_source
from jaxrl_llm.data.reasoning_gym import reasoning_gym_source
from jaxrl_llm.data.sources import (
    Example,
    Source,
    as_chat,
    filter_long,
    filter_long_examples,
    map_source,
    numbered_source,
    split_turns,
)
from jaxrl_llm.data.tfds_source import prepare_jsonl, tfds_source
from jaxrl_llm.data.tokenizers import (
    DecoderState, Tokenizer, byte_tokenizer, character_tokenizer, decode_step, load_tokenizer, stop_at_turns,
)  # fmt: skip

__all__ = [
    "ANSWER_MARKER", "ARITHMETIC_ALPHABET", "Cursor", "DecoderState", "Example", "PAIR", "PROGRAM_ALPHABET", "Source",
    "Tokenizer", "arithmetic_preferences", "arithmetic_source", "as_chat", "batch_from", "batch_of_pairs", "byte_tokenizer",
    "character_tokenizer", "continue_dialogue", "decode_step", "encode_chat", "encode_dialogue", "encode_example",
    "encode_prompt", "epoch_order", "filter_long", "filter_long_examples", "filter_long_pairs", "first_fit",
    "goal_conditioned", "jsonl_source", "load_tokenizer", "map_source", "mismatched_rollouts", "next_indices",
    "numbered_source", "pack", "pack_forest", "preference_rollouts", "preference_source", "prepare_jsonl", "program_source",
    "reasoning_gym_source", "render_chat", "revised", "split_turns", "stop_at_turns", "tfds_source", "weighted_indices",
    "worked_solution",
]  # fmt: skip
