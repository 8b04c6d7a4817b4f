"""The gated delta rule over rows of tokens that may hold trees, a chunk of columns at a time.

A head has a state S, a matrix from keys to values. Token t, with key k, value v, log of its decay g and strength b, makes
S' = exp(g) S + b k (v - exp(g) S^T k)^T of the state S of the token that it goes on from, and gives S'^T q (Gated DeltaNet,
https://arxiv.org/abs/2412.06464). Within a chunk the states of all tokens follow from one triangular system (the UT transform,
https://arxiv.org/abs/2406.06484); which tokens go on from which others is a mask of it. Between chunks go the states of those
columns alone that later ones go on from: one in a row of sequences, one more for each fork that is open.
"""

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
CHUNK = 64  # columns
# States that go from chunk to chunk, in programs of which the smallest that is enough is run.
SLOTS = (2, 16)


@flax.struct.dataclass
class Chunks:
    """How the tokens of rows [B, T], filled up to n chunks of C columns, go on from one another."""

    ancestors: Array  # bool [B, n, C, C], whether a token, the third axis, is or goes on from one of its chunk, the last
    origins: Array  # int [B, n, C], the last column before its chunk that each goes on from; -1 where there is none
    parents: Array  # int [B, T], the column that each goes on from at once; -1 where there is none
    # int [B, n + 1, K], columns before the beginning of each chunk that later ones go on from, the last first; -1 for none
    points: Array
    most: Array  # int [], the largest number of them


def chunks_of(reach: Array) -> Chunks:
    """The chunks of rows of which `reach` [B, T] says who sees whom, see `attention`."""
    rows, length = reach.shape
    reach = jnp.pad(reach, ((0, 0), (0, _missing(length))))
    columns, starts = jnp.arange(reach.shape[1]), jnp.arange(0, reach.shape[1] + 1, CHUNK)
    before = columns < starts[:, None]

    def next_point(beyond, _):
        """The last column before each start that is seen from `beyond` on."""
        found = jnp.where(before & (reach[:, None] > beyond[..., None]), columns, -1).max(-1)
        ends = jnp.take_along_axis(reach, jnp.maximum(found, 0), axis=1)
        return jnp.where(found >= 0, ends, jnp.iinfo(reach.dtype).max), found

    begin = jnp.broadcast_to(starts.astype(reach.dtype), (rows, len(starts)))
    _, points = jax.lax.scan(next_point, begin, length=SLOTS[-1] + 1)
    points = jnp.moveaxis(points, 0, -1)
    in_chunks, inside = reach.reshape(rows, -1, CHUNK), columns.reshape(-1, CHUNK)
    ancestors = (inside[:, :, None] >= inside[:, None, :]) & (inside[:, :, None] < in_chunks[:, :, None, :])
    ends = jnp.where(points >= 0, jnp.take_along_axis(reach[:, None], jnp.maximum(points, 0), axis=2), 0)
    seen = ends[:, :-1, None] > inside[..., None]
    origins = jnp.where(seen, points[:, :-1, None], -1).max(-1)
    own = jnp.where(ancestors & ~jnp.eye(CHUNK, dtype=bool), inside[:, None, :], -1).max(-1)
    parents = jnp.maximum(origins, own).reshape(rows, -1)[:, :length]
    return Chunks(ancestors, origins, parents, points, (points >= 0).sum(-1).max())


def convolved(x: Array, weights: Array, chunks: Chunks) -> Array:
    """Causal depthwise convolution of x [B, T, ...] with weights [..., W] along the path to each token, then silu."""
    total, at = x * weights[..., -1], jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    for place in range(2, weights.shape[-1] + 1):
        at = jnp.where(at >= 0, jnp.take_along_axis(chunks.parents, jnp.maximum(at, 0), axis=1), -1)
        there = at.reshape(*at.shape, *(1,) * (x.ndim - 2))
        total = total + jnp.where(there >= 0, jnp.take_along_axis(x, jnp.maximum(there, 0), axis=1), 0) * weights[..., -place]
    return jax.nn.silu(total)


def normalised(x: Array) -> Array:
    """Keys or queries of length 1, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def delta_rule(query, key, value, decay, strength, chunks: Chunks) -> tuple[Array, Array]:
    """What each token gives [B, T, H, V], and the state of the first point behind the last chunk [B, H, K, V], float32.

    Args:
      query, key: float32 [B, T, H, K], of length 1.
      value: float32 [B, T, H, V].
      decay: logs, float32 [B, T, H], at most 0.
      strength: float32 [B, T, H].
      chunks: of the rows. Where more forks are open than `SLOTS` can hold, the result is NaN.
    """
    length, query = query.shape[1], query * query.shape[-1] ** -0.5
    tokens = [_in_chunks(x) for x in (query, key, value, decay, strength)]
    if tokens[0].shape[0] == 1:
        found = _scan(1, tokens, chunks)
    else:
        runs = [lambda tokens, chunks, slots=slots: _scan(slots, tokens, chunks) for slots in SLOTS]
        shapes = jax.eval_shape(runs[0], tokens, chunks)
        runs.append(lambda tokens, chunks: jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes))
        which = sum((chunks.most > slots).astype(jnp.int32) for slots in SLOTS)
        found = jax.lax.switch(which, runs, tokens, chunks)
    given, state = found
    return jnp.moveaxis(given, 0, 1).swapaxes(2, 3).reshape(value.shape[0], -1, *value.shape[2:])[:, :length], state


def _missing(length: int) -> int:
    return -length % CHUNK if length else CHUNK


def _in_chunks(x: Array) -> Array:
    """[B, T, H, ...] -> [n, B, H, C, ...]."""
    x = jnp.pad(x, [(0, 0), (0, _missing(x.shape[1]))] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]), 1, 0).swapaxes(2, 3)


def _scan(slots: int, tokens: list[Array], chunks: Chunks):
    """As `delta_rule`, [n, B, H, C, V], with that many states from chunk to chunk."""
    query, value = tokens[0], tokens[2]
    points = jnp.moveaxis(chunks.points[..., :slots], 1, 0)
    begins = jnp.arange(len(points) - 1) * CHUNK
    xs = (tokens, jnp.moveaxis(chunks.ancestors, 1, 0), jnp.moveaxis(chunks.origins, 1, 0), points[:-1], points[1:], begins)
    start = jnp.zeros((*query.shape[1:3], slots, query.shape[-1], value.shape[-1]), jnp.float32)
    states, given = jax.lax.scan(jax.checkpoint(_chunk), start, xs)
    return given, states[:, :, 0]


def _chunk(states: Array, xs):
    """One chunk: states [B, H, K, ...] of the points behind it, and what its tokens give."""
    (query, key, value, decay, strength), ancestors, origins, points, following, begin = xs
    seen, itself = ancestors[:, None], jnp.eye(CHUNK, dtype=bool)
    # Of each token, the sum of the logs along its path within the chunk.
    total = jnp.einsum("bij,bhj->bhi", ancestors.astype(jnp.float32), decay)
    between = jnp.exp(jnp.where(seen, total[..., :, None] - total[..., None, :], -jnp.inf))
    system = jnp.where(itself, 1.0, strength[..., None] * jnp.einsum("bhid,bhjd->bhij", key, key) * between)
    wanted = jnp.concatenate([value, key * jnp.exp(total)[..., None]], axis=-1) * strength[..., None]
    solved = jax.lax.linalg.triangular_solve(system, wanted, left_side=True, lower=True, unit_diagonal=True)
    width = value.shape[-1]
    chosen = ((origins[..., None] == points[:, None, :]) & (origins >= 0)[..., None]).astype(jnp.float32)  # [B, C, K]
    earlier = jnp.einsum("bhid,bik,bhkdv->bhiv", solved[..., width:], chosen, states)
    written = solved[..., :width] - earlier
    read = jnp.einsum("bhid,bik,bhkdv->bhiv", query * jnp.exp(total)[..., None], chosen, states)
    given = read + jnp.einsum("bhij,bhjv->bhiv", jnp.einsum("bhid,bhjd->bhij", query, key) * between, written)
    # The points behind the chunk: of those within it, the state that they leave; the others were points before.
    inside = ((following[..., None] - begin) == jnp.arange(CHUNK)).astype(jnp.float32)  # [B, K, C]
    kept = ((following[..., None] == points[:, None, :]) & (following >= 0)[..., None]).astype(jnp.float32)
    shares = jnp.einsum("bpi,bhi,bik->bhpk", inside, jnp.exp(total), chosen) + kept[:, None]
    states = jnp.einsum("bhpk,bhkdv->bhpdv", shares, states)
    return states + jnp.einsum("bpi,bhij,bhjd,bhjv->bhpdv", inside, between, key, written), given


@flax.struct.dataclass
class State:
    """What decoding keeps of one layer for N sequences."""

    matrix: Array  # float32 [N, H, K, V]
    inputs: tuple[Array, ...]  # the last inputs [N, W - 1, heads, size] of the convolutions of queries, keys and values


def of_slots(contexts: State, tails: State, sight) -> State:
    """The states of slots: those of their contexts where this step's token is the first behind them."""
    fresh = sight.start == sight.column
    context = jnp.minimum(sight.cell // sight.places, contexts.matrix.shape[0] - 1)

    def taken():
        def chosen(own, shared):
            return jnp.where(fresh.reshape(-1, *(1,) * (own.ndim - 1)), shared[context], own)

        return jax.tree.map(chosen, tails, contexts)

    return jax.lax.cond(fresh.any(), taken, lambda: tails)


def step(state: Array, query, key, value, decay, strength) -> tuple[Array, Array]:
    """One token a slot: what it gives [S, H, V] and the states behind it [S, H, K, V], from those before it, all float32."""
    state = state * jnp.exp(decay)[..., None, None]
    change = strength[..., None] * (value - jnp.einsum("shd,shdv->shv", key, state))
    state = state + key[..., None] * change[..., None, :]
    return jnp.einsum("shd,shdv->shv", query * query.shape[-1] ** -0.5, state), state
