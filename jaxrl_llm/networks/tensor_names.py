"""How parameters are called in Hugging Face checkpoints, family by family."""

from typing import NamedTuple

Path = tuple[str, ...]


class Stored(NamedTuple):
    """How one of our parameters is stored in a checkpoint.

    Attributes:
      name: of the tensor, with `{layer}` and `{expert}` for their numbers where each has a tensor of its own.
      inputs: None where the tensor has the shape of the parameter; otherwise the tensor is a matrix [outputs, inputs],
        or a vector of outputs, and the first `inputs` axes of our parameter are those that it contracts.
      part: where several parameters share a tensor, their order along its first axis.
    """

    name: str
    inputs: int | None = None
    part: int = 0


def _linear(ours: str, theirs: str, inputs: int = 1, part: int = 0) -> dict[Path, Stored]:
    path, name = tuple(ours.split(".")), f"model.layers.{{layer}}.{theirs}"
    kernel = {("layers", *path, "kernel"): Stored(f"{name}.weight", inputs, part)}
    return kernel | {("layers", *path, "bias"): Stored(f"{name}.bias", 0, part)}


def _norm(ours: str, theirs: str, inputs: int | None = None) -> dict[Path, Stored]:
    return {("layers", *ours.split("."), "scale"): Stored(f"model.layers.{{layer}}.{theirs}.weight", inputs)}


def _mlp(ours: str, theirs: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> dict[Path, Stored]:
    parts = zip(("gate", "up", "down"), names, strict=True)
    return {path: stored for part, name in parts for path, stored in _linear(f"{ours}.{part}", f"{theirs}.{name}").items()}


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
PHI3 = LLAMA | {
    **_linear("attention.query", "self_attn.qkv_proj", part=0),
    **_linear("attention.key", "self_attn.qkv_proj", part=1),
    **_linear("attention.value", "self_attn.qkv_proj", part=2),
    **_linear("mlp.gate", "mlp.gate_up_proj", part=0),
    **_linear("mlp.up", "mlp.gate_up_proj", part=1),
}
MIXTRAL = LLAMA | {
    **_router("block_sparse_moe.gate"),
    **_mlp("experts", "block_sparse_moe.experts.{expert}", ("w1", "w3", "w2")),
}
QWEN_EXPERTS = LLAMA | {
    **_router("mlp.gate"),
    **_mlp("experts", "mlp.experts.{expert}"),
    **_mlp("experts.shared", "mlp.shared_experts"),
}
OLMOE = QWEN_EXPERTS | {
    **_norm("attention.query_norm", "self_attn.q_norm", inputs=0),
    **_norm("attention.key_norm", "self_attn.k_norm", inputs=0),
}
