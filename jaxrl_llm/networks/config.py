"""What defines a decoder: sizes, the traits of its family, and how it is computed."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.networks import config_checks

ATTENTION = ("auto", "reference", "xla", "pallas")
ACTIVATIONS = ("silu", "gelu_tanh", "relu2", "clipped_swiglu")
QK_NORMS = ("none", "head", "width")
ROPE_PAIRS = ("halves", "interleaved", "reversed")
ROUTER_SCORES = ("softmax", "sigmoid")
DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = ("", *DTYPES, "int8")
ADAPTERS = ("lora", "rslora", "dora")
QUANTIZATIONS = ("int8", "int4", "nf4")
# Which intermediate values a layer keeps for the backward pass: name -> policy of `jax.checkpoint`.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Mixture of experts in place of the MLP; each token is sent to a few of them and none is dropped."""

    count: int  # E, experts of a layer
    per_token: int  # k, experts that each token is sent to
    width: int  # inner width of each expert
    shared_width: int = 0  # inner width of an MLP that every token goes through beside its experts; 0 for none
    shared_gate: bool = False  # whether that is multiplied by the sigmoid of a projection to one number
    # whether they stand beside the MLP, with norms of their own around them, and not in its place
    beside_mlp: bool = False
    # whether the router reads the residual stream with a norm and a scale of its own, and weights have one for each expert
    scaled_router: bool = False
    dense_layers: int = 0  # number of layers at the bottom that have an MLP of `intermediate_size` instead
    score: str = "softmax"  # of an expert, from the router's logits: "softmax" over all experts, or "sigmoid" of each
    # whether a vector is added to the scores where experts are chosen, but not where they are weighted (balancing without a
    # loss, https://arxiv.org/abs/2408.15664)
    selection_bias: bool = False
    # parts that the experts are divided into; a token chooses from the `top_groups` parts whose two best scores have the
    # largest sum (DeepSeek-V3, https://arxiv.org/abs/2412.19437)
    groups: int = 1
    top_groups: int = 1  # see `groups`
    bias: bool = False  # whether their matrices and the router have one
    normalize: bool = False  # whether the weights of a token's experts are divided by their sum
    scale: float = 1.0  # the weights are multiplied by it at last

    def __post_init__(self) -> None:
        config_checks.check_choice("experts.score", self.score, ROUTER_SCORES)
        for name in ("count", "per_token", "width", "groups", "top_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"experts.{name}={getattr(self, name)} must be at least 1")
        for name, most in (
            ("count", config_checks.MOST_EXPERTS),
            ("width", config_checks.LIMITS["hidden_size"]),
            ("shared_width", config_checks.LIMITS["hidden_size"]),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"experts.{name}={getattr(self, name)} must be from 0 to {most}")
        config_checks.POSITIVE(self.scale, "experts.scale")
        if self.count % self.groups or self.top_groups > self.groups:
            raise ValueError(
                f"experts.groups={self.groups} must divide experts.count={self.count} and be at least "
                f"experts.top_groups={self.top_groups}"
            )
        if self.per_token > self.top_groups * self.count // self.groups:
            raise ValueError(f"experts.per_token={self.per_token} are more experts than a token can choose from")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Low-rank changes of matrices: y = x W becomes y = x W + scale (x A) B, where A has `rank` columns."""

    # regular expression, searched in the names of the matrices (`matrices.matrices` lists them), such as
    # `r"attention\\.(query|value)"`, `r"mlp\\."`, `r"experts\\.(gate|up|down)"` or `"embedding|head"`
    pattern: str
    rank: int  # of the change
    alpha: float  # the scale is alpha / rank, or alpha / sqrt(rank) for "rslora"
    # "lora" (https://arxiv.org/abs/2106.09685), "rslora" (https://arxiv.org/abs/2312.03732), or "dora", where each column of
    # the changed matrix has a length that is trained by itself (https://arxiv.org/abs/2402.09353)
    kind: str = "lora"

    def __post_init__(self) -> None:
        config_checks.check_choice("adapter.kind", self.kind, ADAPTERS)
        config_checks.check_pattern("adapter.pattern", self.pattern)
        if self.rank < 1:
            raise ValueError(f"adapter.rank={self.rank} must be at least 1")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"adapter.alpha={self.alpha} must be a positive number")

    @property
    def scale(self) -> float:
        """What the product with A and B is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.kind == "rslora" else self.rank)


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Matrices of layers that are kept as codes of a few bits with scales, and decoded where they are used."""

    kind: str  # "int8", one scale for each output; "int4" or "nf4", one for every 64 inputs of an output. See `codes`
    pattern: str = ""  # regular expression, searched in the names of the matrices of layers; the empty one is found in all

    def __post_init__(self) -> None:
        config_checks.check_choice("quantization.kind", self.kind, QUANTIZATIONS)
        config_checks.check_pattern("quantization.pattern", self.pattern)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Attention whose keys and values are made of a latent of each token, see `mixers.LatentAttention`."""

    rank: int  # numbers of the latent
    query_rank: int | None = None  # of what queries are made of; None where they are made of the residual stream at once
    plain_dim: int  # coordinates of each head's query and key that are not turned
    rotary_dim: int  # those that are; their key is one for all heads
    value_dim: int  # of each head's value

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not 1 <= value <= config_checks.LIMITS["head_dim"]:
                raise ValueError(f"latent.{field.name}={value} must be from 1 to {config_checks.LIMITS['head_dim']}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """Layers of the gated delta rule, see `delta.DeltaRule`."""

    key_heads: int  # heads of queries and keys
    value_heads: int  # heads of values, a multiple of them
    key_dim: int  # of each head's query and key
    value_dim: int  # of each head's value
    kernel: int = 4  # tokens that the convolution of queries, keys and values reads

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 1 <= value <= config_checks.LIMITS["num_heads"]:
                raise ValueError(f"delta.{field.name}={value} must be from 1 to {config_checks.LIMITS['num_heads']}")
        if self.value_heads % self.key_heads:
            raise ValueError(f"delta.value_heads={self.value_heads} must be a multiple of key_heads={self.key_heads}")


class LayerShape(NamedTuple):
    """What the parameters of a layer are; layers of one shape are stacked."""

    stack: str  # name of the stack
    mixer: str  # "attention", "latent" or "delta"
    head_dim: int
    kv_heads: int
    width: int | None  # inner width of the MLP; None where there is none
    sparse: bool = False  # whether it has experts
    # where values come from: "own", a projection; "keys", that to keys; or "lent", keys and values of the last layer that has
    # own ones and is otherwise alike
    values: str = "own"

    @property
    def lender(self) -> str:
        """Stack whose last layer lends keys and values."""
        return self.stack.replace("reusing_", "")


class LayerKind(NamedTuple):
    """What layers are alike in: the shape of their parameters, and what else they compute with them."""

    shape: LayerShape
    window: int | None  # tokens that a query sees, itself included; None for all before it
    rope_theta: float | None  # base of the rotary frequencies; None without rotary embedding
    rope_scaling: tuple[tuple[str, Any], ...] | None  # rule that changes them, or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Architecture of a decoder; hashable, so that it may be a static argument of `jax.jit`."""

    vocab_size: int  # V, rows of the embedding table
    hidden_size: int  # D, width of the residual stream
    intermediate_size: int  # width of the gated MLP
    num_layers: int  # L
    num_heads: int  # N, query heads
    num_kv_heads: int | None = None  # K, key and value heads; N by default
    head_dim: int | None = None  # H; `hidden_size // num_heads` by default
    family: str | None = None  # name in `families.FAMILIES`; None for a network that is never exported
    # of the MLP: "silu", "gelu_tanh" (the approximation by tanh), "relu2" (the square of relu), or "clipped_swiglu" (of
    # gpt-oss, see `modules.gated`)
    activation: str = "silu"
    swiglu_limit: float | None = None  # at which "clipped_swiglu" clips
    gated_mlp: bool = True  # whether what is activated multiplies another projection; otherwise the MLP has two matrices
    mlp_bias: bool = False  # whether the projections of MLPs have a bias
    attention_bias: bool = False  # whether the projections to queries, keys and values have a bias
    output_bias: bool = False  # whether the projection from the heads to the residual stream has one
    # of queries and keys: "none", "head" (each head by itself) or "width" (all heads of a token together)
    qk_norm: str = "none"
    qk_norm_after_rope: bool = False  # whether it comes behind the rotary embedding, not before it
    query_scale: float | None = None  # attention logits are multiplied by it; `head_dim ** -0.5` by default
    sinks: bool = False  # whether a logit of each head takes part in the softmax of attention and gives no value
    attention_softcap: float | None = None  # c, attention logits x become c tanh(x / c); None for no cap
    logit_softcap: float | None = None  # the same for the logits of the output head
    tie_embeddings: bool = False  # whether the embedding table is the output head too
    scale_embeddings: bool = False  # whether embeddings are multiplied by the square root of D
    embedding_scale: float = 1.0  # what they are multiplied by beside it
    embedding_norm: bool = False  # whether they are normalised
    residual_scale: float = 1.0  # what attention and MLP add to the residual stream is multiplied by it
    logit_divisor: float = 1.0  # what the logits of the output head are divided by
    norm_epsilon: float = 1e-6  # added to the mean square in every norm
    norm_offset: float = 0.0  # added to the scale of every norm; with 1, scales begin at 0
    norm_scales: bool = True  # whether norms have a scale
    pre_norms: bool = True  # whether attention and MLP read a normalised residual stream
    post_norms: bool = False  # whether what they add to it is normalised first
    rope_theta: float = 10000.0  # base of the rotary frequencies
    # None, or the rule that changes them, such as `{"rope_type": "linear", "factor": 2.0}`; kept as a sorted tuple of pairs
    rope_scaling: tuple[tuple[str, Any], ...] | None = None
    rope_fraction: float = 1.0  # part of each head, from its first coordinate on, that is turned
    # which coordinates are a pair: "halves" (each of the first half with its place in the second), "interleaved" (each even
    # one with the next), or "reversed" (halves, turned backwards)
    rope_pairs: str = "halves"
    unrotated_layers: tuple[int, ...] = ()  # layers without rotary embedding (NoPE, https://arxiv.org/abs/2501.18795)
    sliding_window: int | None = None  # tokens that a query of a sliding layer sees, itself included
    # "full", "sliding" or "delta" for each layer; by default all layers are sliding where there is a window
    layer_types: tuple[str, ...] = ()
    # base of the rotary frequencies of sliding layers, which then know no `rope_scaling`; that of all layers by default
    sliding_rope_theta: float | None = None
    full_head_dim: int | None = None  # `head_dim` of layers without a window, where it is another
    full_kv_heads: int | None = None  # their `num_kv_heads`, likewise
    keys_as_values: bool = False  # whether values of layers without a window come of the projection to keys
    value_norm: bool = False  # whether the values of each head are normalised, without a scale
    # layers at the top that have the keys and values of the last layer below them that is of their type
    reusing_layers: int = 0
    reusing_width: int | None = None  # their `intermediate_size`, where it is another
    per_layer_width: int = 0  # P, of a second embedding of tokens, each layer its own, that it adds at its end; 0 for none
    per_layer_vocab: int = 0  # rows of its table
    layer_scales: bool = False  # whether the residual stream is multiplied by a stored number, never trained, behind each layer
    latent: LatentConfig | None = None  # of attention, whose `head_dim` and `num_kv_heads` follow from it; or None
    delta: DeltaConfig | None = None  # of layers of type "delta", or None
    attention_gate: bool = False  # whether what attention gives is multiplied by the sigmoid of a projection like the query's
    experts: ExpertsConfig | None = None  # mixture of experts, or None
    adapter: AdapterConfig | None = None  # low-rank changes of some matrices, or None
    quantization: QuantizationConfig | None = None  # of the matrices of layers, or None
    max_length: int = 4096  # positions, in tokens, that the family was made for; only exports use it
    bos_id: int | None = None  # token that begins a text; only exports use it, as the two below
    eos_ids: tuple[int, ...] = ()  # tokens that end a text
    pad_id: int | None = None  # token that fills rows
    # directory of the checkpoint that this is the text part of; exports write its other parts too
    other_parts: str | None = None
    # whether the network gives logits; False for reward models and critics that have a value head alone
    language_head: bool = True
    value_head: int = 0  # outputs of the value head, see `objectives.heads` for what they may mean; 0 for none
    # of the computation: float32, bfloat16 or float16. Attention weights, norms, rotary embeddings and logits are computed in
    # float32 whatever it is
    dtype: str = "float32"
    param_dtype: str = "float32"  # of the parameters
    # of the keys and values that decoding keeps, which no other pass sees: one of these, or int8, with a scale for each token
    # and head; "" for that of the computation
    cache_dtype: str = ""
    remat: str = "dots"  # what the backward pass recomputes: "none", "dots" (all but matrix products), or "full" (whole layers)
    # "auto" ("pallas", a kernel, on TPU, otherwise "xla"), "reference", "xla" or "pallas"; what the kernel does not compute,
    # attention with latents, is "xla" in its place
    attention: str = "auto"

    def __post_init__(self) -> None:
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.latent is not None:
            object.__setattr__(self, "head_dim", self.latent.plain_dim + self.latent.rotary_dim)
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", config_checks.derived_head_dim(self))
        if self.rope_scaling is not None:
            present = {name: value for name, value in dict(self.rope_scaling).items() if value is not None}
            object.__setattr__(self, "rope_scaling", tuple(sorted(present.items())))
        for name in ("layer_types", "unrotated_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "value_head", int(self.value_head))
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, _dtype_name(name, getattr(self, name)))
        for name, choices in _CHOICES.items():
            config_checks.check_choice(name, getattr(self, name), choices)
        config_checks.check_sizes(self)
        config_checks.check_numbers(self)
        config_checks.check_layers(self)
        config_checks.check_rope_scaling(self.rope_scaling)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds that layers are of, each once, in the order in which they appear."""
        return tuple(dict.fromkeys(self._kinds()))

    @property
    def kind_of_layer(self) -> tuple[int, ...]:
        """For each layer the number of its kind in `kinds`."""
        return tuple(self.kinds.index(kind) for kind in self._kinds())

    def _kinds(self) -> list[LayerKind]:
        types = self.layer_types or ("full" if self.sliding_window is None else "sliding",) * self.num_layers
        return [self._kind(layer, name) for layer, name in enumerate(types)]

    def _kind(self, layer: int, name: str) -> LayerKind:
        kind = LayerKind(self._shape(layer, name), None, self.rope_theta, self.rope_scaling)
        if name == "sliding":
            kind = kind._replace(window=self.sliding_window)
            if self.sliding_rope_theta is not None:
                kind = kind._replace(rope_theta=self.sliding_rope_theta, rope_scaling=None)
        unrotated = layer in self.unrotated_layers or name == "delta"
        return kind._replace(rope_theta=None, rope_scaling=None) if unrotated else kind

    def _shape(self, layer: int, name: str) -> LayerShape:
        full = name == "full"
        sparse = self.experts is not None and layer >= self.experts.dense_layers
        reusing = layer >= self.num_layers - self.reusing_layers
        unlike = self.full_head_dim or self.full_kv_heads or self.keys_as_values or self.reusing_layers
        traits = {"sparse": sparse, "reusing": reusing, name: name == "delta" or (unlike and not full), "layers": True}
        return LayerShape(
            stack="_".join(name for name, has in traits.items() if has),
            mixer="delta" if name == "delta" else "attention" if self.latent is None else "latent",
            head_dim=full and self.full_head_dim or self.head_dim,
            kv_heads=full and self.full_kv_heads or self.num_kv_heads,
            width=None if sparse and not self.experts.beside_mlp else reusing and self.reusing_width or self.intermediate_size,
            sparse=sparse,
            values="lent" if reusing else "keys" if full and self.keys_as_values else "own",
        )

    @property
    def stacks(self) -> dict[LayerShape, tuple[int, ...]]:
        """The shapes that layers have, in the order in which they appear, and the numbers of the layers of each."""
        found: dict[LayerShape, tuple[int, ...]] = {}
        for layer, kind in enumerate(self._kinds()):
            found[kind.shape] = (*found.get(kind.shape, ()), layer)
        return found

    @property
    def scales_queries(self) -> bool:
        """Whether queries are multiplied by something that grows with their positions."""
        return "llama_4_scaling_beta" in dict(self.rope_scaling or ())

    def rotary_width(self, kind: LayerKind) -> int:
        """Coordinates of each head of a layer of this kind that the rotary embedding turns."""
        return self.latent.rotary_dim if self.latent else int(kind.shape.head_dim * self.rope_fraction)

    @property
    def rotary_dim(self) -> int:
        """Coordinates of each head that the rotary embedding turns."""
        return self.latent.rotary_dim if self.latent else int(self.head_dim * self.rope_fraction)


_CHOICES = {
    "activation": ACTIVATIONS, "qk_norm": QK_NORMS, "remat": tuple(REMAT), "attention": ATTENTION, "cache_dtype": CACHE_DTYPES,
    "rope_pairs": ROPE_PAIRS,
}  # fmt: skip


def _dtype_name(field: str, dtype) -> str:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    config_checks.check_choice(field, name, DTYPES)
    return name
