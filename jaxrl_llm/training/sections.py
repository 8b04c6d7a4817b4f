"""The keys of the larger sections of a configuration, with their defaults; lengths are in tokens."""

from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, config_dict

if TYPE_CHECKING:

    class Config(ConfigDict):
        """Keys are attributes; of themselves pyright would take each for any of the types that there are."""

        def __getattr__(self, attribute: str) -> Any: ...

else:
    Config = ConfigDict


def network() -> dict:
    """The policy's network and what of it trains."""
    return {
        # A Hugging Face checkpoint directory, or a name of `networks.names()`, whose shapes are made from scratch; without
        # both, a network of the sizes below is.
        "directory": "",
        "name": "",
        # As the key `tokenizer`, for a network without a directory; a checkpoint has its own, before which this one gives way.
        "tokenizer": "",
        # Of the computation, and of the parameters that are trained.
        "dtype": "float32",
        "param_dtype": "float32",
        # Of the keys and values that sampling keeps: "bfloat16" or "int8" make room for more slots, and a gap between sampler
        # and learner, `logp_gap`; "" for the dtype of the computation.
        "cache_dtype": "",
        "remat": "dots",
        "family": "qwen3",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        # Low-rank changes over a frozen network, see `networks.AdapterConfig`: which matrices, "" for none.
        "adapter": {"pattern": "", "rank": 16, "alpha": 32.0, "kind": "lora"},
        # A second network beside the policy's, in sampling and scoring alike, see `networks.combined`: how their logits are
        # mixed, "geometric", "guided_by", "residual" or "within_top", "" for none; "reference" for the policy of the beginning,
        # or the folder of a policy; and the one number of the mixture (share, weight, scale or mass), None for its default.
        "combined": {"mode": "", "beside": "reference", "weight": config_dict.placeholder(float)},
        # What completions may be: a regular expression or, as a JSON text, a JSON schema (extra `grammar`), and the text that
        # all prompts end with, behind which it begins.
        "grammar": {"pattern": "", "schema": "", "behind": ""},
        # Temperatures by the entropy H of each token's distribution, in sampling and scoring alike, on top of that of sampling:
        # 1 + strength * clip((log H - centre) / width, -1, 1).
        "entropy_temperature": {"strength": 0.0, "centre": 0.0, "width": 1.0},
        # "int8", "int4" or "nf4" for the frozen matrices of layers; "" for none.
        "quantization": "",
        # Regular expression, searched in the paths of the parameters: those that train. "" stands for the adapter and the
        # value head where there is an adapter, and for all parameters otherwise.
        "trains": "",
        # For mixtures of experts, in the supervised and the RL phase: factors of the losses on the routers, and whether the
        # learner sends tokens to the experts that the sampler sent them to.
        # Load balancing is that of all layers taken together, as in `transformers`, or of each by itself.
        "router": {"load_balancing": 0.0, "pooled": True, "z": 0.0, "replay": False},
    }


def task() -> dict:
    """Where examples come from."""
    return {
        # "arithmetic", "programs", "jsonl", "tfds", "reasoning_gym" or "preferences".
        "source": "arithmetic",
        "options": {},
        # Where the held-out examples come from: options that replace those above.
        "test_options": {},
        # A text here turns prompts into chat messages, with the suffix behind the question.
        "chat": False,
        "system": "",
        "suffix": "",
        # Variables of the chat template, such as {"enable_thinking": False}, or {"reasoning_effort": "low"} of gpt-oss.
        "template_options": {},
        # Tools whose schemas the chat template shows: "calculator", "python" or "package.module:function".
        "tools": (),
        # For pairs with scores: a text such as "overall score: {}", by which prompts name the score that is wanted.
        "goal": "",
        # For pairs whose answers are to be improved, `srpo`: the prompt that shows one, of "{prompt}" and "{answer}".
        "revision": "",
        "max_prompt_tokens": 512,
        "drop_long": False,
    }


def optimizer(learning_rate: float) -> dict:
    """The optimizer of a phase."""
    return {
        "learning_rate": learning_rate,
        "warmup_steps": 0,
        # One of DECAYS, down to 0 at the last step.
        "decay": "constant",
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.95,
        "clip_norm": 1.0,
        # What is laid over it, by name: {"slow_fast": {"fast_steps": 3}}, see `training.wrapping`.
        "wrap": {},
    }


def sft() -> dict:
    """The supervised phase."""
    return {
        "steps": 0,
        # One that learns from completions: "sft", "dft"...
        "method": "sft",
        "options": {},
        "batch": 64,
        # Distinct examples that are shown; 0 for all of the source.
        "examples": 0,
        # Tokens of a packed row, and parts that an update takes the rows in; 0 for as many as suit the device.
        "row_tokens": 1024,
        "micro_batches": 0,
        "optimizer": optimizer(1e-3),
    }


def preference() -> dict:
    """The preference phase."""
    return {
        "steps": 0,
        # A method that learns from pairs, and its options.
        "method": "reward_model",
        "options": {},
        # Pairs of a step.
        "batch": 64,
        "row_tokens": 1024,
        "micro_batches": 0,
        # As in `rl`; held-out pairs are measured against the reference of the beginning.
        "reference": {"every": 0, "share": 1.0},
        "optimizer": optimizer(1e-5),
    }


def rl() -> dict:
    """The RL phase."""
    return {
        "steps": 100,
        "prompts": 16,
        # Passes over the rollouts of a step, and parts of each pass, one update each.
        "epochs": 1,
        "minibatches": 1,
        "micro_batches": 0,
        # 0 for rows that waste little.
        "row_tokens": 0,
        "max_new_tokens": 256,
        # Steps by which the parameters that sample are older than those that learn from it: the samples of the coming steps are
        # made meanwhile. Without `overlap` one thing happens after the other, and the numbers are the same.
        "staleness": 0,
        "overlap": True,
        # With `staleness`: columns of the sampler after which the samples of a step go on with the parameters of one step more,
        # and with the keys and values that there are, https://arxiv.org/abs/2509.19128; 0 for parameters that stay.
        "in_flight": 0,
        # Rows that are sampled at a time; 0 for as many as a quarter of a device's memory has room for.
        "slots": 0,
        "temperature": 1.0,
        "top_k": config_dict.placeholder(int),
        "top_p": config_dict.placeholder(float),
        "min_p": config_dict.placeholder(float),
        "stop_strings": (),
        # Largest difference in nats between the sampler's and the learner's log-probabilities before it is reported; by
        # default that of the dtype: 1e-4 for float32, 0.5 for bfloat16, 0.05 for float16.
        "max_logp_gap": config_dict.placeholder(float),
        # Whether perplexities, chi-squared divergences and the effective sample size between learner and sampler are measured.
        "measure_gap": False,
        # Every so many steps the reference policy moves by a share of the way to the policy; 0 for never.
        "reference": {"every": 0, "share": 1.0},
        "optimizer": optimizer(1e-6),
    }


def critic() -> dict:
    """The critic of methods that have one."""
    return {
        "learning_rate_factor": 1.0,
        "shared": False,
        # First steps of the phase in which the critic alone learns; by default those of the method.
        "warmup_steps": config_dict.placeholder(int),
        # "bins", "quantiles", "gaussian" or "ensemble" in place of a plain head, "" for the method's own, and options of it,
        # see `objectives.heads`.
        "head": "",
        "head_options": {},
        # Of the loss that belongs to the head, on top of the method's, see `training.critics.LOSSES`.
        "options": {},
    }


def rewards() -> dict:
    """What completions are scored by."""
    return {
        # Names of `jaxrl_llm.rewards`, "package.module:function", or "reward_model". A run that only imitates may have none.
        "names": ("exact_match",),
        # Options of rewards that are made out of some, by their name, without the module: {"format_reward": {"pattern": ...}};
        # see `rewards.FACTORIES`.
        "options": {},
        # What else methods and strategies are told of each row, "module:function" by name, asked and given options as rewards
        # are: {"format": "my_facts:format_of"}, or a name with options such as "hidden_states"; see docs/tasks.md.
        "facts": {},
        # The folder of "reward_model": a run that trained one, or a checkpoint with a head of one output.
        "model": "",
        # One factor each; empty for 1.
        "weights": (),
        "workers": 1,
        "deadline_seconds": 30.0,
        # Of a row that took too long alone: answers that hang a verifier are wrong. None for missing.
        "timeout_value": 0.0,
        # Address space of a worker, in 1e9 bytes; 0 for no limit.
        "memory_gb": 0.0,
    }


def module() -> dict:
    """A network that a run trains beside its policy, `config.modules.NAME`; see docs/modules.md."""
    return {
        # What it begins with: the folder of a policy or a reward model, "" for a copy of the policy.
        "directory": "",
        # One that learns from samples: what the module says, where it is asked; or from pairs of the policy's answers.
        "method": "dr_grpo",
        "options": {},
        # Keys of an optimizer that differ from the defaults; the learning rate is that of `rl.optimizer` by default.
        "optimizer": {},
        # It learns in every so-many-th step, from step `first` of the phase on.
        "every": 1,
        "first": 0,
        # Of pairs: the one of `rewards.names` that says which answer is right, from `evaluation.success` on.
        "reward": "",
    }


def environment() -> dict:
    """Whom the policy talks with in the RL phase and in evaluations; its reward has the name "environment"."""
    return {
        # A name of `jaxrl_llm.environments`, or "package.module:function", which gives an `Environment`; "" for none.
        "name": "",
        "options": {},
        # Most turns of an episode, and most tokens of a turn; 0 for as many as `rl.max_new_tokens` leaves, which bounds an
        # episode with all replies.
        "turns": 8,
        "turn_tokens": 0,
        # Tokens that other rows draw before answers to those that have spoken are waited for: many where answers take long.
        "overlap": 8,
        # Who plays each role of a game, such as ("policy", "reference"); the policy plays all where this is empty.
        "by": (),
    }


def evaluation() -> dict:
    """What is measured on held-out examples."""
    return {
        # Steps of the preference or RL phase between evaluations; 0 for only before and after.
        "every": 0,
        "prompts": 256,
        "batch": 256,
        "samples": 1,
        "temperature": 0.0,
        # The reward that decides what is correct, "" for the first of `rewards.names`, and from what value on it does. The
        # value is the reward's own, without the weights of training, be it a verifier's 0 or 1 or what a reward model says.
        "reward": "",
        "success": 1.0,
    }


def short_name(reward: str) -> str:
    """What `rewards.options` calls a reward: its name without the module, as keys of a configuration cannot have dots."""
    return reward.rpartition(":")[2]
