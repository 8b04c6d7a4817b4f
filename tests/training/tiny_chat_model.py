"""A tiny random chat model as a Hugging Face directory, with a real tokenizer: `python tiny_chat_model.py DIRECTORY`.

It knows nothing, but everything around it is real: a Qwen3 checkpoint in safetensors, a byte-level BPE vocabulary with
the special tokens of a chat, a chat template, and the files of a tokenizer and of generation.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax

from jaxrl_llm.networks import DecoderConfig, decoder, save_huggingface

END_OF_TEXT, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 400
SENTENCES = (
    "A baker fills 12 trays with 8 rolls each and sells 70 rolls before noon. How many rolls are left?",
    "He bakes 12 * 8 = 96 rolls. After noon 96 - 70 = 26 rolls are left.\n#### 26",
    "Mira saves $15 a week. After how many weeks can she buy a bicycle for $180?",
    "She needs 180 / 15 = 12 weeks, so the final answer is 12.\n#### 12",
    "Three friends share 2.5 litres of juice and 4 oranges; each of them gets the same.",
    "Think step by step, then give the final answer after '####'.",
    "The train leaves at 7:40 and arrives 95 minutes later. When does it arrive?",
    "Question: what is the sum of the first ten numbers? Answer: 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 = 55.",
    "If each box holds twice as many pencils as the one before, the fourth box holds 8 times as many as the first.",
    "You are a helpful assistant. Give only the final answer.",
)
# The conversation format of Qwen, without tools and thoughts.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def write_tiny_chat_model(directory: str | pathlib.Path, *, seed: int = 0, hidden_size: int = 16, num_layers: int = 1) -> None:
    """Writes the checkpoint and its tokenizer into `directory`, which is made if need be.

    Args:
      directory: target.
      seed: of the parameters.
      hidden_size: width of the network; its MLP is twice as wide.
      num_layers: layers of the network.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(directory)
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=hidden_size // 2,
        family="qwen3",
        qk_norm="head",
        tie_embeddings=True,
        rope_theta=1e6,
        max_length=1024,
        eos_ids=(ids[END],),
        pad_id=ids[END_OF_TEXT],
    )
    network = decoder(config)
    save_huggingface(network, network.init(jax.random.key(seed)), directory)
    # As in the checkpoints of Qwen, a text ends at either token.
    generation = {"eos_token_id": [ids[END], ids[END_OF_TEXT]], "pad_token_id": ids[END_OF_TEXT], "do_sample": True}
    _write_json(directory / "generation_config.json", generation)


def _write_tokenizer(directory: pathlib.Path) -> dict[str, int]:
    """Trains a byte-level BPE and writes it with its configuration; returns the ids of the special tokens."""
    import tokenizers

    specials = [END_OF_TEXT, BEGIN, END]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(specials),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    inner.add_special_tokens(specials)
    inner.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "bos_token": None,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", config)
    return {token: inner.token_to_id(token) for token in specials}


def _write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    write_tiny_chat_model(sys.argv[1])
    print(f"wrote {sys.argv[1]}")
