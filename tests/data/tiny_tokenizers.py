"""Small tokenizers of each kind, written as the files that checkpoints have."""

import io
import json

import sentencepiece
import tokenizers

TEXTS = [
    "the cat sat on the mat",
    "a café, 12 + 30 = 42",
    "naïve 日本語 text",
    "emoji 🙂 and tabs\tand\nlines",
    "<think>so</think> 42",
] * 4
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_huggingface(directory, **config):
    """A byte-level BPE tokenizer in the style of Qwen, trained on `TEXTS`."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    options = {"initial_alphabet": tokenizers.pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, **options)
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_tokens(["<think>", "</think>"])
    inner.enable_truncation(3)
    inner.enable_padding(length=9)
    inner.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def write_fallback(directory):
    """A BPE tokenizer with byte fallback and a beginning token, in the style of Llama 2."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {letter: 259 + i for i, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz")}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    inner.decoder = tokenizers.decoders.Sequence([*steps, tokenizers.decoders.Strip(" ", 1, 0)])
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.save(str(directory / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}
    (directory / "special_tokens_map.json").write_text(json.dumps(config))
    return directory


def write_sentencepiece(directory):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=330, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory
