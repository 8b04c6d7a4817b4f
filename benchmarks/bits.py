"""How far the sampler's log-probabilities are from the learner's in float32 on this machine, and by which operations.

python benchmarks/bits.py [--rows=32 --tokens=96]

Every operation gets the same inputs in both shapes: those of a step of decoding, a token a row, and those of the learner, all
tokens at once.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.networks import DecoderConfig, decoder
from jaxrl_llm.networks.past import Cells, LayerPast, Sight, past_attention
from jaxrl_llm.sampling import generate
from jaxrl_llm.sampling.decode import decode
from jaxrl_llm.sampling.draw import draw
from jaxrl_llm.sampling.records import make_sampling, row_keys
from jaxrl_llm.scoring import make_scorer
from jaxrl_llm.types import Batch

VOCABULARY, WIDTH, PROMPT = 4096, 256, 32
NETWORK = decoder(
    DecoderConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=704, num_layers=4, num_heads=8, num_kv_heads=2)
)


def told(name: str, one, other) -> None:
    """Prints how many numbers of two arrays of one shape are equal, and how far apart the others are."""
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    gap = np.abs(one - other)
    half, most = np.quantile(gap, [0.5, 0.99])
    print(f"{name:64} equal {100 * (one == other).mean():6.2f}%  median {half:.1e}  99% {most:.1e}  largest {gap.max():.1e}")


def samples_and_scores(rows: int, tokens: int) -> None:
    """Log-probabilities of the same tokens: sampled, scored, and sampled again in other ways."""
    params = NETWORK.init(jax.random.key(0))
    params = {**params, "head": 8 * params["head"]}
    random = np.random.default_rng(0)
    prompts = random.integers(0, VOCABULARY, (rows, PROMPT)).astype(np.int32)
    options = {"max_new_tokens": tokens, "seed": 1}
    sampled = generate(NETWORK, params, prompts.tolist(), **options)
    text = np.concatenate([prompts, sampled.tokens], axis=1)
    places = np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape)
    mask = (places >= PROMPT).astype(np.float32)

    def batch_of(rows: int) -> Batch:
        return Batch(tokens=text[:rows], positions=places[:rows], segment=np.ones_like(text[:rows]), mask=mask[:rows])

    batch = batch_of(rows)
    scorer = jax.jit(make_scorer(NETWORK))
    scored = jax.block_until_ready(scorer(params, batch).logp)
    began = time.perf_counter()
    jax.block_until_ready(scorer(params, batch).logp)
    took = time.perf_counter() - began
    told("sampler and learner", sampled.logp, scored[:, PROMPT:])
    told("learner, and the learner of one row", scored[:1, PROMPT:], scorer(params, batch_of(1)).logp[:, PROMPT:])
    for slots in (1, rows // 4):
        other = generate(NETWORK, params, prompts.tolist(), slots=slots, **options)
        alike = other.tokens == sampled.tokens
        told(f"sampler, {slots} slots in place of {rows}", sampled.logp[alike], other.logp[alike])
    forced = make_sampling(rows, VOCABULARY, max_new_tokens=tokens, forced=sampled.tokens)
    arguments = NETWORK, params, prompts, np.full(rows, PROMPT, np.int32), row_keys(5, 0, np.arange(rows)), forced
    again = jax.block_until_ready(decode(*arguments, max_new_tokens=tokens))
    began = time.perf_counter()
    jax.block_until_ready(decode(*arguments, max_new_tokens=tokens))
    told("sampler, and the sampler made to take its tokens", sampled.logp, again.logp)
    print(f"  that takes {time.perf_counter() - began:.2f} s, the learner's forward pass {took:.2f} s")


def operations(rows: int, tokens: int) -> None:
    """One operation at a time: the last token of each row alone, and all tokens of all rows."""
    key, count = jax.random.split(jax.random.key(2), 8), rows * tokens
    x = jax.random.normal(key[0], (count, WIDTH))
    alone = x.reshape(rows, tokens, WIDTH)[:, -1]

    def compared(name: str, function) -> None:
        run = jax.jit(function)
        told(name, run(alone), run(x).reshape(rows, tokens, -1)[:, -1])

    compared("root mean square norm", lambda x: x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6))
    for outputs in (64, 256, 704):
        matrix = jax.random.normal(key[1], (WIDTH, outputs)) / 16
        compared(f"product, {WIDTH} inputs and {outputs} outputs", lambda x, w=matrix: x @ w)
    in_blocks(x, alone, jax.random.normal(key[1], (WIDTH, 704)) / 16)
    table = jax.random.normal(key[2], (VOCABULARY, WIDTH)) / 8
    compared("product with the head", lambda x: x @ table.T)
    sampling = make_sampling(rows, VOCABULARY, max_new_tokens=1)
    logits, uniforms = alone @ table.T, np.full((rows, 2), 0.5, np.float32)
    token, logps = jax.jit(draw)(logits, uniforms, sampling)
    told("log-probability from the same logits", logps[0], jax.nn.log_softmax(logits)[jnp.arange(rows), token])
    attention(rows, tokens, key[3:])


def in_blocks(x, alone, matrix) -> None:
    """The learner's product in blocks of as many rows as a step of decoding has, and what that costs."""

    def blocks(x):
        return jax.lax.map(lambda block: block @ matrix, x.reshape(-1, *alone.shape)).reshape(len(x), -1)

    found, times = jax.jit(blocks)(x), []
    told("the product of 704 outputs in blocks of a step's rows", alone @ matrix, found.reshape(len(alone), -1, 704)[:, -1])
    for function in (jax.jit(blocks), jax.jit(lambda x: x @ matrix)):
        function(x).block_until_ready()
        began = time.perf_counter()
        for _ in range(20):
            function(x).block_until_ready()
        times.append(time.perf_counter() - began)
    print(f"  which takes {times[0] / times[1]:.1f} times as long")


def attention(rows: int, tokens: int, key) -> None:
    """The same queries, keys and values: over context and tail apart, and over all keys at once."""
    heads, width = 2, 32
    query = jax.random.normal(key[0], (rows, 8, width))
    keys, values = (jax.random.normal(one, (rows, heads, tokens, width)) for one in key[1:3])
    split = tokens // 2

    def cells(part):
        return Cells(keys[:, :, part].swapaxes(2, 3), values[:, :, part])

    def apart(query, first):
        sight = Sight(
            position=jnp.full(rows, tokens - 1), cell=jnp.arange(rows), lengths=jnp.full(rows, first), places=1,
            start=jnp.zeros(rows, jnp.int32), column=jnp.int32(tokens - first - 1), origin=jnp.full(rows, first),
        )  # fmt: skip
        return past_attention(query, LayerPast(cells(slice(0, first)), cells(slice(first, None))), sight)

    def whole(query):
        logits = jnp.einsum("bkgh,bkth->bkgt", query.reshape(rows, heads, -1, width), keys) * width**-0.5
        return jnp.einsum("bkgt,bkth->bkgh", jax.nn.softmax(logits), values).reshape(query.shape)

    one, other = (jax.jit(apart, static_argnums=1)(query, first) for first in (split, split + 1))
    told("attention, context and tail apart, and all at once", one, jax.jit(whole)(query))
    told("attention, a token of the tail in the context", one, other)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    chosen = parser.parse_args()
    samples_and_scores(chosen.rows, chosen.tokens)
    operations(chosen.rows, chosen.tokens)
