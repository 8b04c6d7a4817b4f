"""The network that the benchmarks run: Qwen3-like, with random parameters, sized by flags."""

from absl import flags

from jaxrl_llm.networks import DecoderConfig, Network, decoder

FLAGS = flags.FLAGS
flags.DEFINE_integer("rows", 32, "rows at once", lower_bound=1)
flags.DEFINE_integer("prompt", 32, "tokens of each prompt", lower_bound=1)
flags.DEFINE_integer("new", 128, "new tokens of each row", lower_bound=1)
flags.DEFINE_integer("layers", 4, "layers", lower_bound=1)
flags.DEFINE_integer("width", 256, "width of the residual stream; heads of 32", lower_bound=32)
flags.DEFINE_integer("vocabulary", 4096, "tokens of the vocabulary", lower_bound=2)
flags.DEFINE_string("dtype", "float32", "of parameters and computation")
flags.DEFINE_integer("repeats", 7, "timed calls", lower_bound=1)
SETTINGS = ("rows", "prompt", "new", "layers", "width", "vocabulary", "dtype", "repeats")


def network(**options) -> Network:
    """The network of the flags; `options` go to `DecoderConfig`."""
    config = DecoderConfig(
        vocab_size=FLAGS.vocabulary,
        hidden_size=FLAGS.width,
        intermediate_size=4 * FLAGS.width,
        num_layers=FLAGS.layers,
        num_heads=FLAGS.width // 32,
        num_kv_heads=max(1, FLAGS.width // 64),
        head_dim=32,
        qk_norm="head",
        tie_embeddings=True,
        rope_theta=1e6,
        dtype=FLAGS.dtype,
        param_dtype=FLAGS.dtype,
        **options,
    )
    return decoder(config)


def settings(*others: str) -> dict:
    """Values of the flags above and of `others`."""
    return {name: FLAGS[name].value for name in (*SETTINGS, *others)}
