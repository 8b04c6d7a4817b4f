"""TRL's figures on a workload, for `peers.py`: run in an environment that has trl, with the workload as a JSON object.

python benchmarks/peers_trl.py '{"prompts": 4, "samples": 8, "length": 32, "new": 128, "stops": 0, "repeats": 3, ...}'

The network is the one of `workload.py` in the nearest architecture of `transformers`, Qwen3. A random network draws nearly
uniformly over its vocabulary, so that one end of text, with a logit that is raised by log(stops), gives answers of the same
lengths as `stops` ends of text. Sampling is `generate`, updating the trainer's own loss with AdamW, and an iteration a step of
`GRPOTrainer.train`. Gradient checkpointing, its default, is off: it is slower here.
"""

import contextlib
import io
import itertools
import json
import math
import os
import resource
import sys
import tempfile
import time

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
import trl
from datasets import Dataset
from quiet import summary, timed
from tokenizers import Tokenizer, models, pre_tokenizers


def network(size: dict) -> transformers.PreTrainedModel:
    """Qwen3 of the sizes of the workload, with random parameters."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=size["vocabulary"],
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["width"] // 32,
        num_key_value_heads=max(1, size["width"] // 64),
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return transformers.Qwen3ForCausalLM(config).float()


def tokenizer(size: dict) -> transformers.PreTrainedTokenizerFast:
    """Words w0, w1, ..., one for each token."""
    words = {f"w{number}": number for number in range(size["vocabulary"])}
    made = Tokenizer(models.WordLevel(words, unk_token="w2"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="w0", eos_token="w1", unk_token="w2", padding_side="left"
    )


def lengths_of(size: dict) -> dict:
    """Arguments of `generate` that make answers as long as the workload wants them."""
    return {"sequence_bias": [[[1], math.log(size["stops"])]]} if size["stops"] else {"min_new_tokens": size["new"]}


def sampling(size: dict) -> dict:
    """Figures of sampling alone."""
    model = network(size).eval()
    prompts = torch.randint(3, size["vocabulary"], (size["prompts"], size["length"])).repeat_interleave(size["samples"], 0)

    def sample(_):
        with torch.no_grad():
            options = {"do_sample": True, "top_k": 0, "max_new_tokens": size["new"], **lengths_of(size)}
            model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)

    sample(0)
    return summary(*timed(sample, size["repeats"]))


def trainer(size: dict, steps: int, callbacks=()) -> trl.GRPOTrainer:
    """The trainer, with rewards that mean nothing."""
    words = torch.randint(3, size["vocabulary"], (16 * size["prompts"], size["length"]))
    data = Dataset.from_dict({"prompt": [" ".join(f"w{token}" for token in row) for row in words.tolist()]})
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=size["prompts"] * size["samples"],
        num_generations=size["samples"],
        max_completion_length=size["new"],
        generation_kwargs=lengths_of(size),
        report_to="none",
        disable_tqdm=True,
        max_steps=steps,
        save_strategy="no",
        learning_rate=1e-6,
    )

    def reward(completion_ids, **_):
        return torch.randn(len(completion_ids)).tolist()

    return trl.GRPOTrainer(network(size), reward, settings, data, processing_class=tokenizer(size), callbacks=list(callbacks))


def updating(size: dict) -> dict:
    """Figures of an update alone, of answers that all have the full length."""
    owner = trainer(size, 1)
    owner.model.train()
    owner.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW(owner.model.parameters(), lr=1e-6)
    rows, vocabulary = size["prompts"] * size["samples"], size["vocabulary"]
    prompts, answers = (torch.randint(3, vocabulary, (rows, size[width])) for width in ("length", "new"))
    batch = {"prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": answers}
    batch |= {"completion_mask": torch.ones_like(answers), "advantages": torch.randn(rows)}
    batch["num_items_in_batch"] = torch.tensor(answers.numel())

    def update(_):
        optimizer.zero_grad(set_to_none=True)
        owner._compute_loss(owner.model, batch).backward()
        optimizer.step()

    update(0)
    return summary(*timed(update, size["repeats"]))


class Clock(transformers.TrainerCallback):
    """The moments at which steps end."""

    def __init__(self):
        self.moments = []

    def on_step_end(self, *_, **__):
        self.moments.append(time.perf_counter())


def iterations(size: dict) -> dict:
    """Figures of whole steps, but the first two."""
    clock, warm = Clock(), 2

    def train(_):
        with contextlib.redirect_stdout(io.StringIO()):
            trainer(size, warm + size["repeats"], [clock]).train()

    _, others = timed(train, 1)
    return summary([end - start for start, end in itertools.pairwise(clock.moments)][warm - 1 :], others)


def main() -> None:
    """Prints the figures as a JSON object."""
    torch.set_num_threads(os.cpu_count())
    transformers.logging.set_verbosity_error()
    size = json.loads(sys.argv[1])
    parts = {"sample": sampling, "update": updating, "iteration": iterations}
    found = {name: parts[name](size) for name in size["parts"]}
    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps({"library": f"trl {trl.__version__}", **found, "peak_process_gb": memory}))


if __name__ == "__main__":
    main()
