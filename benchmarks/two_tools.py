"""An agent with two tools, written against OpenAI's client, and a policy from nothing that learns to be its model.

python benchmarks/two_tools.py --workdir=FOLDER [--sft_steps=600 --rl_steps=60]

The task is "a * b + c", for which the agent offers the tools `multiply` and `add`. Demonstrations are chats in which six of ten
leave out the second call. What is learned from is what a server has sampled for the agent: GRPO sees nothing but the reward.
Prints the held-out accuracy before and after, with 95% intervals; the curve stands in FOLDER/metrics.jsonl.
"""

import json
import pathlib

import numpy as np
import tokenizers
from absl import app, flags
from tool_agent import SCHEMAS

from jaxrl_llm.training import default_config, loop

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "folder of the run", required=True)
flags.DEFINE_integer("sft_steps", 600, "steps of imitation", lower_bound=1)
flags.DEFINE_integer("rl_steps", 60, "steps of GRPO", lower_bound=1)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
TEMPLATE = """{%- if tools %}<|im_start|>tools{% for t in tools %} {{ t.function.name }}{% endfor %}<|im_end|>{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }} {{ m.content or '' }}
{%- for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}
{{- '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant {% endif %}"""  # noqa: E501


def examples(count: int, seed: int, careless: float) -> list[dict]:
    """Tasks with demonstrations."""
    random = np.random.default_rng(seed)
    return [_example(*map(int, random.integers(2, 100, 3)), random.random() < careless) for _ in range(count)]


def _example(a: int, b: int, c: int, careless: bool) -> dict:
    question, messages, result = f"{a}*{b}+{c}", [], a * b
    messages.append({"role": "user", "content": question})
    for name, arguments, value in (("multiply", {"a": a, "b": b}, a * b), ("add", {"a": a * b, "b": c}, a * b + c)):
        if name == "add" and careless:
            break
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "content": str(value)})
        result = value
    messages.append({"role": "assistant", "content": str(result)})
    return {"messages": messages, "tools": SCHEMAS, "question": question, "answer": str(a * b + c), "prompt": messages[:1]}


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """A byte-level BPE of the demonstrations, whose digits stay apart, with the template."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    splits = [
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splits)
    inner.decoder = tokenizers.decoders.ByteLevel()
    options = {"initial_alphabet": tokenizers.pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=list(SPECIALS), **options)
    texts = [
        '{"name": "multiply", "arguments": {"a": 1, "b": 2}}',
        '{"name": "add", "arguments": {"a": 1, "b": 2}}',
        "assistant ",
        "user ",
        "tool ",
    ]
    inner.train_from_iterator(texts * 50, trainer)
    inner.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def configuration(folder: pathlib.Path):
    """The run."""
    config = default_config()
    config.network.tokenizer = str(write_tokenizer(folder / "tokenizer"))
    config.network.update(hidden_size=128, intermediate_size=384, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32)
    config.task.max_prompt_tokens = 160
    config.sft.update(steps=FLAGS.sft_steps, batch=32, row_tokens=512)
    config.sft.optimizer.update(learning_rate=2e-3, warmup_steps=20, decay="cosine")
    config.rl.update(steps=FLAGS.rl_steps, prompts=16, max_new_tokens=160)
    config.rl.optimizer.update(learning_rate=2e-4, warmup_steps=5)
    config.method.name = "grpo"
    config.method.options.update(samples=8, kl_coefficient=0.0)
    config.environment.name = "tool_agent:agent"
    config.rewards.update(names=("environment",), workers=2, deadline_seconds=300.0)
    config.evaluation.update(prompts=128, batch=64, every=20, temperature=1.0)
    return config


def main(_):
    """Trains the policy, or goes on with it."""
    folder = pathlib.Path(FLAGS.workdir)
    summary = loop.train(configuration(folder), folder, data=examples(4000, 0, 0.6), held_out=examples(256, 1, 0.0))
    print(json.dumps(summary))


if __name__ == "__main__":
    app.run(main)
