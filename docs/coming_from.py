"""What TRL, verl and Tunix call the options and methods that we have: docs/coming_from.md."""

from jaxrl_llm import methods

HEAD = """# Coming from TRL, verl or Tunix

Names are those of TRL 1.16.0, verl 0.9.1 and Tunix 0.1.7. A reward is a function of lists,
`(prompts, completions, **columns) -> list`, as TRL's are, and a data set of either form, a column `prompt` or chat messages, is
read as it is ([tasks](tasks.md)).

## Options

All keys of ours stand in `jaxrl_llm/training/config.py`, with their defaults. Of verl, `actor`, `rollout` and `model` are short
for `actor_rollout_ref.actor` and so on.

"""
# Ours, then theirs; what is empty has no like.
OPTIONS = (
    ("`network.directory`", "`model`", "`model.path`", "a model of its own for each family"),
    ("`network.adapter.rank`, `alpha`", "`peft_config`", "`model.lora_rank`, `lora_alpha`", "`qwix` rules"),
    ("`rl.prompts`", "`generation_batch_size` / `num_generations`", "`data.train_batch_size`", "prompts of a batch"),
    ("`method.options.samples`", "`num_generations`", "`rollout.n`", "`num_generations`"),
    ("`rl.max_new_tokens`", "`max_completion_length`", "`data.max_response_length`", "`max_tokens_to_generate`"),
    ("`task.max_prompt_tokens`", "", "`data.max_prompt_length`", "`max_prompt_length`"),
    ("`task.drop_long`", "", "`data.filter_overlong_prompts`", ""),
    (
        "`rl.temperature`, `top_p`, `top_k`, `min_p`",
        "`temperature`, `top_p`, `top_k`, `min_p`",
        "`rollout.temperature`, `top_p`, `top_k`",
        "`temperature`, `top_p`, `top_k`",
    ),
    ("`evaluation.temperature`", "", "`rollout.val_kwargs.temperature`", ""),
    ("`rl.epochs`", "`num_iterations`", "`actor.ppo_epochs`", "`num_iterations`"),
    (
        "`rl.minibatches`",
        "`steps_per_generation` / `gradient_accumulation_steps`",
        "`data.train_batch_size` / `actor.ppo_mini_batch_size`",
        "batch / `mini_batch_size`",
    ),
    (
        "`rl.micro_batches`; by default what fits",
        "`gradient_accumulation_steps`",
        "mini-batch / `actor.ppo_micro_batch_size_per_gpu`",
        "`mini_batch_size` / `train_micro_batch_size`",
    ),
    ("`rl.optimizer.learning_rate`", "`learning_rate`", "`actor.optim.lr`", "`actor_optimizer`, of optax"),
    ("`method.options.kl_coefficient`", "`beta`", "`actor.kl_loss_coef` with `use_kl_loss`", "`beta`"),
    (
        "`method.options.clip_low`, `clip_high`",
        "`epsilon`, `epsilon_high`",
        "`actor.clip_ratio_low`, `clip_ratio_high`",
        "`epsilon`, `epsilon_high`",
    ),
    ("`rl.reference.every`, `share`", "`ref_model_sync_steps`, `ref_model_mixup_alpha`", "", ""),
    ("`rewards.names`", "`reward_funcs`", "`reward.custom_reward_function`", "`reward_fns`"),
    ("`rewards.weights`", "`reward_weights`", "", ""),
    ("`environment.name`", "`environment_factory`, `tools`", "`rollout.multi_turn`, `rollout.agent`", "`tunix.rl.agentic`"),
    ("`rl.staleness`", "`max_staleness` of AsyncGRPO", "`max_off_policy_threshold`", "`off_policy_steps`"),
    ("`evaluation.every`", "`eval_steps`", "`trainer.test_freq`", "`eval_every_n_steps`"),
    ("`checkpoint.every`, `keep`", "`save_steps`, `save_total_limit`", "`trainer.save_freq` / `max_actor_ckpt_to_keep`",
     "`checkpointing_options`"),
    ("`log.trackers`", "`report_to`", "`trainer.logger`", "`metrics_logging_options`"),
    ("`mesh.fsdp`, `tensor`, ...", "Accelerate", "`actor.strategy`, `rollout.tensor_model_parallel_size`", "`role_to_mesh`"),
)  # fmt: skip
METHODS = """
## Methods

By one name the field means several formulas, and a library's may be another one than the paper's. `convention` takes that of a
library, with its defaults: `methods.get("grpo", convention="trl-1.16")`, or `config.method.options.convention = "trl-1.16"`.
The tables say what each stands for; [conventions](conventions.md) say what it does to the same answers, in numbers. A method
without a convention of a library is the same in both, or is not in the library.
"""
LIBRARIES = {"trl-1.16": "TRL", "verl-0.10": "verl", "tunix-0.1": "Tunix"}
# How a method is chosen there.
CHOSEN = {
    "trl-1.16": {
        "cispo": '`loss_type="cispo"`', "dapo": '`loss_type="dapo"`', "deepseek_v32": "`off_policy_mask_threshold`",
        "discopop": '`DPOConfig(loss_type="discopop")`', "dpo_norm": '`DPOConfig(loss_type="sigmoid_norm")`',
        "dr_grpo": '`loss_type="dr_grpo"`', "forking_tokens": "`top_entropy_quantile`",
        "gdpo": '`multi_objective_aggregation="normalize_then_sum"`', "gkd": "`GKDTrainer`", "gmpo": "`GMPOTrainer`",
        "grpo": "`GRPOTrainer`", "gspo": '`importance_sampling_level="sequence"`',
        "icepop": '`vllm_importance_sampling_mode="sequence_mask"`', "ipo": '`DPOConfig(loss_type="ipo")`',
        "kto": "`KTOTrainer`", "lite_ppo": '`scale_rewards="batch"`', "luspo": '`loss_type="luspo"`',
        "rdpo": '`DPOConfig(loss_type="robust")`', "rloo": "`RLOOTrainer`", "sapo": '`loss_type="sapo"`',
        "skywork": "`use_adaptive_entropy`", "sppo": '`DPOConfig(loss_type="sppo_hard")`',
        "tis": '`vllm_importance_sampling_mode="token_truncate"`', "vespo": '`loss_type="vespo"`',
    },
    "verl-0.10": {
        "cispo": "`loss_mode: cispo`", "clip_cov": "`loss_mode: clip_cov`", "dapo": "`filter_groups`, `overlong_buffer`",
        "dppo": "`loss_mode: dppo_tv`", "dr_grpo": "`norm_adv_by_std_in_grpo: False`", "dro": "`loss_mode: dro`",
        "gdpo": "`adv_estimator: gdpo`", "gmpo": "`loss_mode: geo_mean`", "gpg": "`adv_estimator: gpg`, `loss_mode: gpg`",
        "grpo": "`adv_estimator: grpo`", "grpo_passk": "`adv_estimator: grpo_passk`", "gspo": "`loss_mode: gspo`",
        "icepop": "`rollout_correction`", "kl_cov": "`loss_mode: kl_cov`", "opo": "`adv_estimator: opo`",
        "otb": "`adv_estimator: optimal_token_baseline`", "ppo": "`adv_estimator: gae`",
        "reinforce_plus_plus": "`adv_estimator: reinforce_plus_plus`",
        "reinforce_plus_plus_baseline": "`adv_estimator: reinforce_plus_plus_baseline`", "remax": "`adv_estimator: remax`",
        "rloo": "`adv_estimator: rloo`", "sapo": "`loss_mode: sapo`", "tis": "`rollout_correction`",
    },
    "tunix-0.1": {
        "dapo": "`DAPOLearner`", "dr_grpo": "`DrGRPOLearner`", "grpo": "`GRPOLearner`",
        "gspo_token": '`loss_algo="gspo-token"`', "ppo": "`PPOLearner`", "rloo": '`advantage_estimator="rloo"`',
    },
}  # fmt: skip


def page() -> str:
    """docs/coming_from.md."""
    rows = ["| here | TRL | verl | Tunix |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in OPTIONS)]
    return HEAD + "\n".join(rows) + "\n" + METHODS + "".join(map(_library, LIBRARIES))


def _library(convention: str) -> str:
    rows = [f"\n### {LIBRARIES[convention]}: `{convention}`\n", "| there | method | stands for |", "|---|---|---|"]
    for name in methods.names():
        options = methods.conventions_of(name).get(convention)
        if options is not None:
            told = ", ".join(f"`{option}={value!r}`" for option, value in options.items()) or "the defaults"
            rows.append(f"| {CHOSEN[convention][name]} | [{name}](methods.md#{name}) | {told} |")
    return "\n".join(rows) + "\n"
