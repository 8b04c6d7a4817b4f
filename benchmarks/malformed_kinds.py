"""Kinds of foreign input: functions of a folder that give `make(random, folder)` and `read(folder)`, as in fuzz.py."""

import json
import random

import numpy as np
import safetensors.numpy
import tokenizers
from malformed import all_of, change, dumped, is_flag, is_number, is_object, is_text, is_whole, one_or_all, written
from malformed_rows import rows_kind

from jaxrl_llm import data, reading
from jaxrl_llm.data import templates
from jaxrl_llm.networks import families, named, peft, tensor_files

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NETWORK = dict.fromkeys(SIZES, lambda value: is_whole(value, 1)) | {
    "num_key_value_heads": lambda value: is_whole(value, 1, 10**5),
    "head_dim": lambda value: is_whole(value, 1, 10**6),
    "num_hidden_layers": lambda value: is_whole(value, 1, 10**4),
    "model_type": lambda value: value in list(families.FAMILIES),
    "rope_theta": lambda value: is_number(value, 1.0) and value != 1,
    "rms_norm_eps": lambda value: is_number(value) and value <= 1,
    "eos_token_id": one_or_all(is_whole),
    "bos_token_id": is_whole,
    "pad_token_id": is_whole,
    "tie_word_embeddings": is_flag,
    "max_position_embeddings": lambda value: is_whole(value, 1, 10**12),
    "sliding_window": lambda value: is_whole(value, 1, 10**12),
    "layer_types": all_of(is_text),
    "architectures": all_of(is_text),
    "rope_scaling": is_object,
    "rope_parameters": is_object,
    "num_experts_per_tok": lambda value: is_whole(value, 1),
    "norm_topk_prob": is_flag,
    "attention_bias": is_flag,
    "hidden_act": is_text,
    "mlp_only_layers": all_of(is_whole),
    "quantization_config": is_object,
}


def network_kind(folder):
    """`config.json` of a network of Hugging Face."""
    path = folder / "config.json"
    models = [
        model.series | dict(zip(named._SIZES, model.sizes, strict=True)) | dict(model.own) for model in named.MODELS.values()
    ]

    def make(rng, folder):
        return written(rng, path, rng.choice(models), NETWORK, ("model_type", *SIZES))

    def read(folder):
        config = families.from_huggingface(reading.read_object(path), str(path))
        assert config.num_heads % config.num_kv_heads == 0 and config.num_layers <= 10**4 and config.rotary_dim % 2 == 0
        assert all(0 <= token < config.vocab_size for token in config.eos_ids) and hash(config) is not None

    return make, read


def converted_kind(folder):
    """`network.json` of a converted policy."""
    import dataclasses

    from jaxrl_llm.training import policies

    path = folder / "network.json"
    content = [json.loads(json.dumps(dataclasses.asdict(named.config(name)))) for name in ("llama-3.2-1b", "qwen3-30b-a3b")]
    ours = {
        "vocab_size": SIZES[0],
        "hidden_size": SIZES[1],
        "intermediate_size": SIZES[2],
        "num_layers": SIZES[3],
        "num_heads": SIZES[4],
    }
    ours |= {
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "rope_theta": "rope_theta",
        "norm_epsilon": "rms_norm_eps",
    }
    ours |= {"bos_id": "bos_token_id", "pad_id": "pad_token_id", "tie_embeddings": "tie_word_embeddings"}
    right = {name: NETWORK[theirs] for name, theirs in ours.items()} | {"eos_ids": all_of(is_whole), "experts": is_object}
    right |= {"rope_scaling": all_of(lambda pair: type(pair) is list and len(pair) == 2), "layer_types": all_of(is_text)}

    def make(rng, folder):
        return written(rng, path, rng.choice(content), right, ("vocab_size", "hidden_size", "intermediate_size", "num_layers"))

    return make, lambda folder: policies.read_network(path)


def run_kind(folder):
    """`config.json` of a run."""
    from jaxrl_llm.training import config as run_config

    path, content = folder / "config.json", json.loads(run_config.default_config().to_json())
    right = {"seed": lambda value: type(value) is int and abs(value) < 2**53, "tokenizer": is_text, "network": is_object}
    right |= {
        "task": is_object,
        "rl": is_object,
        "sft": is_object,
        "teacher": is_object,
        "mesh": is_object,
        "nosuch": lambda _: False,
    }

    def make(rng, folder):
        return written(rng, path, content, right)

    return make, lambda folder: run_config.read_config(path)


def adapter_kind(folder):
    """`adapter_config.json` of PEFT."""
    path = folder / "adapter_config.json"
    content = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "use_rslora": False, "use_dora": False}
    content |= {"target_modules": ["q_proj"], "bias": "none", "lora_dropout": 0.0, "base_model_name_or_path": None}
    right = {"peft_type": lambda value: value == "LORA", "r": lambda value: is_whole(value, 1), "use_rslora": is_flag}
    right |= {"lora_alpha": lambda value: is_number(value) and value > 0, "use_dora": is_flag, "alpha_pattern": is_object}
    right |= {
        "lora_dropout": lambda value: is_number(value) and value <= 1,
        "rank_pattern": is_object,
        "bias": lambda value: value == "none",
    }
    right |= {"target_modules": one_or_all(is_text), "init_lora_weights": lambda value: is_flag(value) or is_text(value)}
    right |= {"modules_to_save": lambda value: value == []}

    def make(rng, folder):
        return written(rng, path, content, right, ("peft_type",))

    return make, peft.read_settings


def index_kind(folder):
    """Index of safetensors files."""
    files = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    for number, file in enumerate(files):
        safetensors.numpy.save_file({f"t{number}": np.zeros((2, 2), np.float32)}, folder / file)
    path = folder / tensor_files.INDEX

    def make(rng, folder):
        content = {"metadata": {}, "weight_map": {"t0": files[0], "t1": files[1]}}
        if rng.random() < 0.5:
            return written(rng, path, content, {"weight_map": lambda value: False}, ("weight_map",))
        right = {name: lambda value, file=file: value == file for name, file in content["weight_map"].items()}
        wrong = change(rng, content["weight_map"], right)
        path.write_text(dumped(content))
        return wrong

    return make, tensor_files.find_tensors


def tokenizer_kind(folder):
    """The files of a tokenizer of Hugging Face, one of them changed at a time."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3, "<s>": 4}, [("a", "b")]))
    inner.decoder, inner.pre_tokenizer = tokenizers.decoders.ByteLevel(), tokenizers.pre_tokenizers.ByteLevel(trim_offsets=True)
    inner.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    inner.add_special_tokens(["</s>", "<s>"])
    is_token = lambda value: value in ("a", "b", "ab", "</s>", "<s>")  # noqa: E731
    is_stop = one_or_all(lambda value: is_whole(value, 0, 9))
    stops = {"eos_token_id": is_stop}
    main = json.loads(inner.to_str())
    right = {
        "tokenizer.json": dict.fromkeys(("model", "post_processor", "pre_tokenizer", "decoder", "normalizer"), is_object)
        | {"added_tokens": all_of(is_object)},
        "tokenizer_config.json": {"eos_token": is_token, "bos_token": is_token, "pad_token": is_text}
        | {
            "chat_template": lambda value: is_text(value) or value == [],
            "extra_special_tokens": lambda value: type(value) in (list, dict),
        },
        "special_tokens_map.json": {"eos_token": is_text, "bos_token": is_token},  # tokenizer_config.json has the former, too.
        "generation_config.json": stops,
        "config.json": {"eos_token_id": one_or_all(is_whole)} | {"vocab_size": lambda value: is_whole(value, 1)},
    }
    usual = {"tokenizer.json": main, "tokenizer_config.json": {"eos_token": "</s>", "chat_template": "{{ messages }}"}}
    usual |= {"special_tokens_map.json": {"bos_token": "<s>"}, "generation_config.json": {"eos_token_id": [3]}}
    usual |= {"config.json": {"eos_token_id": 3, "vocab_size": 10}}
    template = folder / "chat_template.jinja"
    touched = []

    def restore(name):
        (folder / name).write_text(json.dumps(usual[name]))

    for name in usual:
        restore(name)

    def inside(rng, path):  # Where a token stands in the vocabulary, its library passes over another id.
        content = json.loads(json.dumps(main))
        merges = {"merges": lambda value: True, "type": is_text, "unk_token": is_text, "byte_fallback": is_flag}
        parts = [
            (content["model"]["vocab"], {"b": lambda value: is_whole(value, 0, 10**6)}, ("b",)),
            (content["model"], merges, ()),
        ]
        parts += [
            (
                content["added_tokens"][0],
                {"id": lambda value: is_whole(value, 0, 2**32), "content": is_text, "special": is_flag},
                ("id", "content", "special"),
            )
        ]
        wrong = change(rng, *rng.choice(parts))
        path.write_text(dumped(content))
        return wrong

    def make(rng, folder):
        for name in touched:
            restore(name)
        template.unlink(missing_ok=True)
        touched[:] = [rng.choice(list(usual))]
        if rng.random() < 0.05:
            content = rng.choice([b"\xff\xfe", b"\xef\xbb\xbf{{ x }}", b"{% if", b""])
            template.write_bytes(content)
            return content.startswith(b"\xff")
        (name,) = touched
        if name == "tokenizer.json" and rng.random() < 0.3:
            return inside(rng, folder / name)
        return written(rng, folder / name, usual[name], right[name], ("model",) if name == "tokenizer.json" else ())

    return make, lambda folder: data.load_tokenizer(folder).encode("ab</s>")


def tensors_kind(folder):
    """Headers of safetensors files."""
    path = folder / tensor_files.SINGLE
    safetensors.numpy.save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)}, path)
    whole = path.read_bytes()

    def make(rng, folder):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 3)):
            changed[rng.randrange(len(whole) - 32)] = rng.randrange(256)
        cut = rng.random() < 0.3
        path.write_bytes(whole[: rng.randrange(len(whole))] if cut else bytes(changed))
        return cut

    return make, tensor_files.find_tensors


def sentencepiece_kind(folder):
    """Models of SentencePiece, cut, lengthened or something else."""
    import io

    import sentencepiece

    model, texts = io.BytesIO(), ["the cat sat on the mat", "a cat", "the mat is a hat"] * 9
    options = {"vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **options)
    path, whole = folder / "tokenizer.model", model.getvalue()

    def make(rng, folder):
        if rng.random() < 0.3:
            path.write_bytes(
                rng.choice([b"", b"\0" * 40, b"{}", rng.randbytes(200), b"version https://git-lfs.github.com/spec/v1\n"])
            )
            return True
        cut = whole[: rng.randrange(1, len(whole))] if rng.random() < 0.5 else whole + rng.randbytes(9)
        path.write_bytes(cut)
        return False

    return make, lambda folder: data.load_tokenizer(path)


WORDS = [
    "messages",
    "messages[0].content",
    "'a'",
    "'ab' * 99999",
    "range(99999)",
    "10**9",
    "0",
    "-1",
    "2.5",
    "[1, [2]]",
    "{'a': 1}",
    "ns.x",
    "none",
]
FILTERS = [
    "list",
    "join('x')",
    "upper",
    "center(10**9)",
    "indent(9999)",
    "map('string')",
    "sort",
    "sum",
    "tojson(indent=9)",
    "length",
    "first",
]
FILTERS += [
    "replace('a', 'b' * 9999)",
    "batch(10**9)",
    "round(99)",
    "int",
    "string",
    "unique",
    "reverse",
    "groupby('role')",
    "format(1)",
    "nosuch",
]
OPERATORS = ["+", "*", "**", "%", "//", "-", "~", "==", "<", "in", "and", "is"]


METHODS = ["split()", "x", "items()", "zfill(10**9)", "format(9)", "join([1])", "__class__", "ljust(999999)"]


def expression(rng: random.Random, depth: int) -> str:
    """A random expression of Jinja."""
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(WORDS)
    inner = expression(rng, depth - 1)
    kind = rng.randrange(6)
    if kind == 0:
        return f"({inner} | {rng.choice(FILTERS)})"
    if kind == 1:
        return f"[{inner}, {expression(rng, depth - 1)}]"
    if kind == 2:
        return f"({inner}).{rng.choice(METHODS)}"
    if kind == 3:
        return f"({inner})[{rng.choice(['0', '1:', '::-1', chr(39) + 'a' + chr(39)])}]"
    return f"({inner} {rng.choice(OPERATORS)} {expression(rng, depth - 1)})"


def statements(rng: random.Random, depth: int) -> str:
    """Random statements of Jinja, one within another."""
    if depth == 0:
        return f"{{{{ {expression(rng, 3)} }}}}"
    body = "".join(statements(rng, depth - 1) for _ in range(rng.randrange(1, 3)))
    forms = [
        f"{{% for a in {expression(rng, 2)} %}}{body}{{% endfor %}}",
        f"{{% for a in range(99999) %}}{body}{{% endfor %}}",
        f"{{% if {expression(rng, 2)} %}}{body}{{% endif %}}",
        f"{{% set ns.x = {expression(rng, 2)} %}}{body}",
        f"{{% set x %}}{body}{{% endset %}}{{{{ x }}}}",
        f"{{% macro m(x) %}}{body}{{{{ m(x) }}}}{{% endmacro %}}{{{{ m(1) }}}}",
        f"{body}x",
    ]
    return rng.choice(forms)


def template_kind(folder):
    """Chat templates."""
    tokenizer, source = data.load_tokenizer("bytes"), [""]
    limits = templates.template_limits
    limits.STEPS, limits.BYTES = 50_000, 10**7  # That of each template, so that a thousand of them take a minute.

    def make(rng, folder):
        source[0] = "{% set ns = namespace(x='a') %}" + statements(rng, 4)
        if rng.random() < 0.1:
            source[0] = source[0][: rng.randrange(len(source[0]))]
        return False

    def read(folder):
        import dataclasses

        data.render_chat(dataclasses.replace(tokenizer, chat_template=source[0]), [{"role": "user", "content": "hi"}])

    return make, read


KINDS = {
    "config": network_kind,
    "converted": converted_kind,
    "run": run_kind,
    "adapter": adapter_kind,
    "index": index_kind,
    "tensors": tensors_kind,
    "tokenizer": tokenizer_kind,
    "sentencepiece": sentencepiece_kind,
    "template": template_kind,
    "rows": rows_kind,
}
