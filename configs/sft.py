"""Supervised fine-tuning of a Hugging Face checkpoint on a JSONL file of prompts and completions, or of dialogues.

jaxrl-llm train --config=configs/sft.py --config.network.directory=DIR --config.task.options.path=train.jsonl \
    --config.task.test_options.path=test.jsonl

Measured is the loss on the held-out completions, nats a token. Where the rows have an "answer" beside, what the model
answers is measured too: --config.rewards.names="('exact_match',)".
"""

from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    config.network.remat = "full"
    config.task.source = "jsonl"
    config.task.options.update(path="")
    config.task.chat = True
    config.sft.update(steps=1000, batch=64, row_tokens=2048)
    config.sft.optimizer.update(learning_rate=1e-5, warmup_steps=50, decay="cosine")
    config.rl.steps = 0
    config.rewards.names = ()
    return config
