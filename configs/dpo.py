"""DPO on preferences: by default on worked sums of which one has a slip, in a few minutes on two CPU cores.

First the network imitates the preferred texts, then it learns from the pairs. On pairs of a JSONL file ("prompt", "chosen",
"rejected"), of which a tenth of the prompts is held out, from a checkpoint that can answer already:

jaxrl-llm train --config=configs/dpo.py --config.network.directory=DIR --config.task.options.path=pairs.jsonl \
    --config.sft.steps=0 --config.preference.row_tokens=2048 --config.preference.optimizer.learning_rate=5e-7
"""

from jaxrl_llm.data import ARITHMETIC_ALPHABET
from jaxrl_llm.training import default_config


def get_config():
    """The configuration, locked: only keys that exist can be set."""
    config = default_config()
    # Of the network of these sizes; with --config.network.directory=DIR both give way to those of the checkpoint.
    config.network.tokenizer = f"characters:{ARITHMETIC_ALPHABET}"
    config.network.update(hidden_size=96, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24)
    config.task.source = "preferences"
    config.task.options.update(path="", split="train")
    config.task.test_options.update(split="test")
    config.sft.update(steps=300, batch=64, row_tokens=256)
    config.sft.optimizer.update(learning_rate=3e-3, warmup_steps=20, decay="cosine")
    config.preference.update(steps=200, method="dpo", batch=64, row_tokens=256)
    config.preference.optimizer.update(learning_rate=3e-4, warmup_steps=20, decay="cosine")
    config.rl.steps = 0
    config.evaluation.update(every=50, prompts=512)
    return config
