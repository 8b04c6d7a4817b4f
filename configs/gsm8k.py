"""GRPO on grade-school maths from any Hugging Face checkpoint with a chat template.

The data are `train.jsonl` and `test.jsonl` of https://github.com/openai/grade-school-math (MIT licence).

jaxrl-llm train --config=configs/gsm8k.py --config.network.directory=DIR \
    --config.task.options.path=train.jsonl --config.task.test_options.path=test.jsonl
"""

from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    config.network.update(directory="", dtype="bfloat16", remat="full")
    config.task.source = "jsonl"
    config.task.options.update(path="train.jsonl", columns={"prompt": "question", "answer": "answer"})
    config.task.test_options.update(path="test.jsonl")
    config.task.update(chat=True, max_prompt_tokens=320, drop_long=True)
    config.task.suffix = "\nThink step by step, then give the final answer after '####'."
    config.method.name = "grpo"
    config.method.options.update(samples=8, kl_coefficient=0.0)
    config.rl.update(steps=500, prompts=32, max_new_tokens=512)
    config.rl.optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.rewards.names = ("gsm8k",)
    config.evaluation.update(every=50, prompts=1319, batch=128)
    config.checkpoint.update(every=25, best_metric="")
    return config
