"""How the parameters of each family are called in checkpoints, and in what shape they are stored."""

from typing import NamedTuple

from jaxrl_llm.networks.fused import Fused, Sorted

Path = tuple[str, ...]


class Stored(NamedTuple):
    """How one of our parameters is stored in a checkpoint."""

    name: str  # of the tensor, with `{layer}` and `{expert}` for their numbers where each has a tensor of its own
    # None where the tensor has the shape of the parameter; otherwise the tensor is a matrix [outputs, inputs], or a vector of
    # outputs, and the first `inputs` axes of our parameter are those that it contracts
    inputs: int | None = None
    part: int = 0  # where several parameters share a tensor, their order along its first axis


def _linear(ours: str, theirs: str, inputs: int = 1, part: int = 0) -> dict[Path, Stored]:
    path, name = tuple(ours.split(".")), f"model.layers.{{layer}}.{theirs}"
    kernel = {("layers", *path, "kernel"): Stored(f"{name}.weight", inputs, part)}
    return kernel | {("layers", *path, "bias"): Stored(f"{name}.bias", 0, part)}


def _together(theirs: str, *ours: str) -> dict[Path, Stored]:
    """Matrices that share a tensor."""
    each = [_linear(own, theirs, part=part) for part, own in enumerate(ours)]
    return {path: stored for one in each for path, stored in one.items()}


def _norm(ours: str, theirs: str, inputs: int | None = None) -> dict[Path, Stored]:
    return {("layers", *ours.split("."), "scale"): Stored(f"model.layers.{{layer}}.{theirs}.weight", inputs)}


def _mlp(ours: str, theirs: str, names: tuple[str | None, ...] = ("gate_proj", "up_proj", "down_proj")) -> dict[Path, Stored]:
    parts = zip(("gate", "up", "down"), names, strict=True)
    linear = [_linear(f"{ours}.{part}", f"{theirs}.{name}") for part, name in parts if name]
    return {path: stored for one in linear for path, stored in one.items()}


def _router(theirs: str) -> dict[Path, Stored]:
    name = f"model.layers.{{layer}}.{theirs}"
    return {
        ("layers", "experts", "router"): Stored(f"{name}.weight", 1),
        ("layers", "experts", "selection_bias"): Stored(f"{name}.e_score_correction_bias"),
    }


LLAMA = {
    ("embedding",): Stored("model.embed_tokens.weight"),
    ("final_norm", "scale"): Stored("model.norm.weight"),
    ("head",): Stored("lm_head.weight"),
    **_norm("attention_norm", "input_layernorm"),
    **_norm("mlp_norm", "post_attention_layernorm"),
    **_norm("attention.query_norm", "self_attn.q_norm"),
    **_norm("attention.key_norm", "self_attn.k_norm"),
    **_linear("attention.query", "self_attn.q_proj"),
    **_linear("attention.key", "self_attn.k_proj"),
    **_linear("attention.value", "self_attn.v_proj"),
    **_linear("attention.output", "self_attn.o_proj", inputs=2),
    **_mlp("mlp", "mlp"),
}
GEMMA2 = LLAMA | {
    **_norm("attention_post_norm", "post_attention_layernorm"),
    **_norm("mlp_norm", "pre_feedforward_layernorm"),
    **_norm("mlp_post_norm", "post_feedforward_layernorm"),
}
GEMMA4 = GEMMA2 | {
    ("per_layer_embedding",): Stored("model.embed_tokens_per_layer.weight"),
    ("per_layer_projection",): Stored("model.per_layer_model_projection.weight", 1),
    ("per_layer_norm", "scale"): Stored("model.per_layer_projection_norm.weight"),
    ("layers", "layer_scale"): Stored("model.layers.{layer}.layer_scalar"),
    ("layers", "experts", "router"): Stored("model.layers.{layer}.router.proj.weight", 1),
    ("layers", "experts", "router_scale"): Stored("model.layers.{layer}.router.scale"),
    ("layers", "experts", "expert_scale"): Stored("model.layers.{layer}.router.per_expert_scale"),
    **_together("experts.{expert}.gate_up_proj", "experts.gate", "experts.up"),
    **_linear("experts.down", "experts.{expert}.down_proj"),
    **_norm("experts_norm", "pre_feedforward_layernorm_2"),
    **_norm("experts_post_norm", "post_feedforward_layernorm_2"),
    **_norm("mlp_own_post_norm", "post_feedforward_layernorm_1"),
    **_linear("per_layer_gate", "per_layer_input_gate"),
    **_linear("per_layer_output", "per_layer_projection"),
    **_norm("per_layer_post_norm", "post_per_layer_input_norm"),
}
FUSED_GEMMA4 = tuple(
    Fused(f"model.layers.{{layer}}.experts.{name}", (f"model.layers.{{layer}}.experts.{{expert}}.{name}.weight",))
    for name in ("gate_up_proj", "down_proj")
)
PHI3 = LLAMA | {
    **_together("self_attn.qkv_proj", "attention.query", "attention.key", "attention.value"),
    **_together("mlp.gate_up_proj", "mlp.gate", "mlp.up"),
}
# Norms stand behind attention and MLP alone.
OLMO2 = LLAMA | {
    **_norm("attention_post_norm", "post_attention_layernorm"),
    **_norm("mlp_post_norm", "post_feedforward_layernorm"),
    **_norm("attention.query_norm", "self_attn.q_norm", inputs=0),
    **_norm("attention.key_norm", "self_attn.k_norm", inputs=0),
}
GLM4 = LLAMA | {
    **_norm("attention_post_norm", "post_self_attn_layernorm"),
    **_norm("mlp_post_norm", "post_mlp_layernorm"),
    **_together("mlp.gate_up_proj", "mlp.gate", "mlp.up"),
}
HUNYUAN = LLAMA | {
    **_norm("attention.query_norm", "self_attn.query_layernorm"),
    **_norm("attention.key_norm", "self_attn.key_layernorm"),
}
NANOCHAT = LLAMA | _mlp("mlp", "mlp", (None, "fc1", "fc2"))
MIXTRAL = LLAMA | {
    **_router("block_sparse_moe.gate"),
    **_mlp("experts", "block_sparse_moe.experts.{expert}", ("w1", "w3", "w2")),
}
QWEN_EXPERTS = LLAMA | {
    **_router("mlp.gate"),
    **_mlp("experts", "mlp.experts.{expert}"),
    **_mlp("experts.shared", "mlp.shared_experts"),
}
DEEPSEEK = QWEN_EXPERTS | {
    **_linear("attention.query_down", "self_attn.q_a_proj"),
    **_norm("attention.query_down_norm", "self_attn.q_a_layernorm"),
    **_linear("attention.query_up", "self_attn.q_b_proj"),
    **_linear("attention.latent_down", "self_attn.kv_a_proj_with_mqa"),
    **_norm("attention.latent_norm", "self_attn.kv_a_layernorm"),
    **_linear("attention.latent_up", "self_attn.kv_b_proj"),
}
_GPT_OSS = "model.layers.{layer}.mlp.experts."
GPT_OSS = LLAMA | {
    ("layers", "attention", "sinks"): Stored("model.layers.{layer}.self_attn.sinks"),
    ("layers", "experts", "router"): Stored("model.layers.{layer}.mlp.router.weight", 1),
    ("layers", "experts", "router_bias"): Stored("model.layers.{layer}.mlp.router.bias"),
    **_together("mlp.experts.{expert}.gate_up_proj", "experts.gate", "experts.up"),
    **_linear("experts.down", "mlp.experts.{expert}.down_proj"),
    ("layers", "experts", "down_bias"): Stored(f"{_GPT_OSS}down_proj_bias"),
}
FUSED_GPT_OSS = (
    Fused(f"{_GPT_OSS}gate_up_proj", (f"{_GPT_OSS}{{expert}}.gate_up_proj.weight",), turned=True, alternating=True),
    Fused(f"{_GPT_OSS}gate_up_proj_bias", (f"{_GPT_OSS}{{expert}}.gate_up_proj.bias",), alternating=True),
    Fused(f"{_GPT_OSS}down_proj", (f"{_GPT_OSS}{{expert}}.down_proj.weight",), turned=True),
)
_DELTA = "model.layers.{layer}.linear_attn."
_DELTA_QKV = ("delta.query", "delta.key", "delta.value")
QWEN_DELTA = LLAMA | {
    **_router("mlp.gate"),
    **_mlp("experts", "mlp.experts.{expert}"),
    **_mlp("experts.shared", "mlp.shared_expert"),
    ("layers", "experts", "shared_gate"): Stored("model.layers.{layer}.mlp.shared_expert_gate.weight", 1),
    ("layers", "delta", "query_filter"): Stored(f"{_DELTA}conv1d.weight", part=0),
    ("layers", "delta", "key_filter"): Stored(f"{_DELTA}conv1d.weight", part=1),
    ("layers", "delta", "value_filter"): Stored(f"{_DELTA}conv1d.weight", part=2),
    ("layers", "delta", "decay_rate"): Stored(f"{_DELTA}A_log"),
    ("layers", "delta", "decay_bias"): Stored(f"{_DELTA}dt_bias"),
    **_norm("delta.norm", "linear_attn.norm"),
    **_linear("delta.output", "linear_attn.out_proj", inputs=2),
}
QWEN3_5 = QWEN_DELTA | {
    **_together("linear_attn.in_proj_qkv", *_DELTA_QKV),
    **_linear("delta.gate", "linear_attn.in_proj_z"),
    **_linear("delta.strength", "linear_attn.in_proj_b"),
    **_linear("delta.decay", "linear_attn.in_proj_a"),
}
QWEN3_NEXT = QWEN_DELTA | {
    **_together("linear_attn.in_proj_qkvz", *_DELTA_QKV, "delta.gate"),
    **_together("linear_attn.in_proj_ba", "delta.strength", "delta.decay"),
}
SORTED_QWEN3_NEXT = (
    Sorted(f"{_DELTA}in_proj_qkvz.weight", ("key", "key", "value", "value")),
    Sorted(f"{_DELTA}in_proj_ba.weight", ("one", "one")),
)
# Published checkpoints have experts in one tensor, those that `transformers` writes one for each.
_EXPERTS = "model.layers.{layer}.mlp.experts."
FUSED_QWEN3_5 = tuple(
    Fused(f"{_EXPERTS}{name}", tuple(f"{_EXPERTS}{{expert}}.{own}.weight" for own in each), read_only=True)
    for name, each in {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.items()
)
OLMOE = QWEN_EXPERTS | {
    **_norm("attention.query_norm", "self_attn.q_norm", inputs=0),
    **_norm("attention.key_norm", "self_attn.k_norm", inputs=0),
}
