"""`draw` against the definitions in NumPy float64, one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.sampling import draw, inverse_cdf, make_sampling
from jaxrl_llm.sampling.draw import tempered_entropy

DRAW = jax.jit(draw)
# XLA computes a product anew for each use: in one rounded together with the sum after it, in another apart.
COMPILERS = [{}, {"xla_backend_optimization_level": 0}, {"xla_disable_hlo_passes": "optimization-barrier-expander"}]


def log_softmax(x):
    finite = x - x.max()
    return finite - np.log(np.exp(finite).sum())


def oracle(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, mask=None):
    """Probabilities of one row, by the definitions: mask, temperature, top-k, top-p, min-p; ties go to the lower id."""
    logits = np.asarray(logits, np.float64)
    if mask is not None:
        logits = np.where(mask, logits, -np.inf)
    if temperature == 0:
        return np.eye(logits.size)[np.argmax(logits)]
    p = np.exp(log_softmax(logits / temperature))
    order = np.argsort(-p, kind="stable")
    for rank, token in enumerate(order):
        if top_k is not None and rank >= top_k:
            p[token] = 0.0
    p /= p.sum()
    mass = 0.0
    for token in order:
        if top_p is not None and mass >= top_p:
            p[token] = 0.0
        mass += p[token]
    if min_p is not None:
        p[p < min_p * p.max()] = 0.0
    return p / p.sum()


def uniforms(rows, seed=0):
    return jax.random.uniform(jax.random.key(seed), (rows, 2))


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 1.0},
    {"top_p": 1e-6},
    {"top_p": 0.61},
    {"min_p": 0.13},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.83, "min_p": 0.05},
    {"temperature": 1.8, "top_k": 9, "top_p": 0.9},
    {"temperature": 0},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_draws_only_what_the_definition_allows_and_tells_its_probability(setting, masked):
    rng = np.random.default_rng(3)
    rows, size = 400, 150
    mask = rng.random(size) < 0.3 if masked else None
    for scale in (0.5, 3.0):
        logits = (scale * rng.normal(size=size)).astype(np.float32)
        expected = oracle(logits, **setting, mask=mask)
        sampling = make_sampling(rows, size, max_new_tokens=1, logit_mask=mask, **setting)
        token, logps = DRAW(jnp.broadcast_to(logits, (rows, size)), uniforms(rows), sampling)
        token, (logp, tempered_logp, sampling_logp) = np.asarray(token), np.asarray(logps)
        assert (expected[token] > 0).all()
        np.testing.assert_allclose(sampling_logp, np.log(expected[token]), atol=2e-5)
        np.testing.assert_allclose(logp, log_softmax(logits.astype(np.float64))[token], atol=2e-5)
        temperature = setting.get("temperature", 1.0) or 1.0
        np.testing.assert_allclose(tempered_logp, log_softmax(logits.astype(np.float64) / temperature)[token], atol=2e-5)


@pytest.mark.parametrize("setting", [{}, {"temperature": 0.6, "top_k": 40, "top_p": 0.95, "min_p": 0.01}], ids=str)
def test_frequencies_follow_the_distribution(setting):
    rows, size = 100_000, 300
    logits = 1.5 * np.random.default_rng(0).normal(size=size).astype(np.float32)
    expected = rows * oracle(logits, **setting)
    sampling = make_sampling(rows, size, max_new_tokens=1, **setting)
    blocks = [
        DRAW(jnp.broadcast_to(logits, (5000, size)), uniforms(5000, seed), jax.tree.map(lambda x: x[:5000], sampling))[0]
        for seed in range(rows // 5000)
    ]
    counts = np.bincount(np.concatenate(blocks), minlength=size)
    assert counts[expected == 0].sum() == 0
    likely = expected > 5
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = likely.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_the_entropy_is_that_of_the_tempered_policy():
    logits = np.random.default_rng(3).normal(size=(4, 7)).astype(np.float32) * 3
    logits[1, 2:5], logits[2, 1:] = -np.inf, -np.inf
    temperature = np.array([1.0, 0.5, 1.0, 0.0], np.float32)
    expected = []
    for row, heat in zip(logits.astype(np.float64), [1.0, 0.5, 1.0, 1.0], strict=True):
        weights = np.exp(row / heat)
        shares = [weight / weights.sum() for weight in weights if weight > 0]
        expected.append(-sum(share * np.log(share) for share in shares))
    found = jax.jit(tempered_entropy)(logits, temperature)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found[2] == 0


def test_of_equal_logits_the_lower_ids_stay():
    logits = jnp.broadcast_to(jnp.asarray([1.0, 2.0, 2.0, 2.0, 0.0, 2.0]), (500, 6))
    for setting in ({"top_k": 3}, {"top_p": 0.55}):
        token, _ = DRAW(logits, uniforms(500), make_sampling(500, 6, max_new_tokens=1, **setting))
        assert set(np.asarray(token).tolist()) == {1, 2, 3}
    greedy, _ = DRAW(logits, uniforms(500), make_sampling(500, 6, max_new_tokens=1, temperature=0))
    assert set(np.asarray(greedy).tolist()) == {1}


def test_impossible_tokens_are_never_drawn_even_at_the_ends_of_the_uniforms():
    rng = np.random.default_rng(1)
    weights = np.where(rng.random((600, 333)) < 0.02, rng.random((600, 333)) * 10.0 ** rng.integers(-20, 1, (600, 333)), 0)
    weights[np.arange(600), rng.integers(0, 333, 600)] = 1.0
    largest = float(np.nextafter(np.float32(1), np.float32(0)))
    for first in (0.0, 0.5, largest):
        for second in (0.0, largest):
            token = inverse_cdf(jnp.asarray(weights, jnp.float32), jnp.broadcast_to(jnp.asarray([first, second]), (600, 2)))
            assert (weights[np.arange(600), np.asarray(token)] > 0).all()


def test_minus_infinity_is_no_trouble():
    logits = np.full((64, 40), -np.inf, np.float32)
    logits[:, [3, 30]] = [100.0, 101.0]
    sampling = make_sampling(64, 40, max_new_tokens=1, temperature=0.5, top_p=0.99)
    token, logps = DRAW(logits, uniforms(64), sampling)
    assert set(np.asarray(token).tolist()) == {3, 30}
    assert np.isfinite(logps).all()


def test_a_row_draws_the_same_whether_or_not_another_row_is_truncated():
    logits = np.random.default_rng(0).normal(size=(256, 200)).astype(np.float32)
    alone = make_sampling(256, 200, max_new_tokens=1)
    mixed = make_sampling(256, 200, max_new_tokens=1, top_k=np.where(np.arange(256) < 128, 200, 4))
    one, one_logps = DRAW(logits, uniforms(256), alone)
    two, two_logps = DRAW(logits, uniforms(256), mixed)
    np.testing.assert_array_equal(one[:128], two[:128])
    np.testing.assert_array_equal(one_logps[:, :128], two_logps[:, :128])
    assert (one[128:] != two[128:]).any()


def test_nothing_is_sorted_and_nothing_searched_unless_asked_for():
    sampling = make_sampling(4, 50, max_new_tokens=1)
    jaxpr = jax.make_jaxpr(draw)(jnp.zeros((4, 50)), jnp.zeros((4, 2)), sampling)
    assert " sort[" not in str(jaxpr)
    top = [equation.primitive.name for equation in jaxpr.eqns]
    # What narrows the choice, the best token and the policy without its temperature stand behind conditions; so does the
    # platform that `materialised` asks for, twice.
    assert top.count("cond") == 5
    assert not {"while", "scan"} & set(top)


def test_the_mask_may_leave_only_unlikely_tokens():
    logits = np.zeros((32, 20), np.float32)
    logits[:, 7] = 500.0
    token, (logp, _, sampling_logp) = DRAW(
        logits, uniforms(32), make_sampling(32, 20, max_new_tokens=1, logit_mask=np.arange(20) < 2)
    )
    assert set(np.asarray(token).tolist()) == {0, 1}
    np.testing.assert_allclose(sampling_logp, np.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(logp, -500.0, rtol=1e-6)


def compiled(function, compiler, *arguments):
    """The program of a function, made as the options of a compiler say."""
    return jax.jit(function).lower(*arguments).compile(compiler_options=compiler)


def scaled_draw(values, uniforms, sampling):
    return draw(3.3 * values, uniforms, sampling)


@pytest.mark.parametrize(("compiler", "masked"), [*((compiler, False) for compiler in COMPILERS), ({}, True)], ids=str)
def test_the_best_token_is_drawn_however_the_program_is_compiled(compiler, masked):
    rng, rows, size = np.random.default_rng(0), 8, 300
    values = rng.normal(size=(rows, size)).astype(np.float32)
    mask = rng.random((rows, size)) < 0.2 if masked else None
    exact = np.float32(3.3) * values
    best = np.where(mask if masked else True, exact, -np.inf).argmax(-1)
    run = None
    for setting in ({"temperature": 0}, {"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"top_p": 1e-45}, {"temperature": 1e-6}):
        sampling = make_sampling(rows, size, max_new_tokens=1, logit_mask=mask, **setting)
        run = run or compiled(scaled_draw, compiler, values, uniforms(rows), sampling)
        token, (logp, _, sampling_logp) = run(values, uniforms(rows), sampling)
        np.testing.assert_array_equal(token, best, err_msg=str(setting))
        expected = [log_softmax(row.astype(np.float64))[place] for row, place in zip(exact, best, strict=True)]
        np.testing.assert_allclose(logp, expected, atol=2e-5)
        np.testing.assert_allclose(sampling_logp, 0.0, atol=1e-6)


@pytest.mark.parametrize("compiler", COMPILERS[:2], ids=str)
def test_ends_take_the_very_tokens_however_the_program_is_compiled(compiler):
    rng, rows, size = np.random.default_rng(1), 8, 300
    values = np.tile(rng.normal(size=size).astype(np.float32), (rows, 1))
    values[:, 100:200] = values[:, :100]  # ties
    run, exact = None, np.float32(3.3) * values[0]
    for setting in ({"top_k": 4}, {"top_k": 3, "temperature": 0.7}, {"top_p": 0.3}, {"top_p": 0.3, "top_k": 9, "min_p": 0.2}):
        sampling = make_sampling(rows, size, max_new_tokens=1, **setting)
        run = run or compiled(scaled_draw, compiler, values, uniforms(rows), sampling)
        drawn = np.concatenate([run(values, uniforms(rows, seed), sampling)[0] for seed in range(40)])
        assert set(drawn.tolist()) == set(np.flatnonzero(oracle(exact, **setting)).tolist()), setting


def test_the_best_token_is_drawn_inside_other_transformations():
    rows, size = 8, 61
    values = np.random.default_rng(2).normal(size=(3, rows, size)).astype(np.float32)
    sampling = make_sampling(rows, size, max_new_tokens=1, temperature=0)

    def token(values):
        return scaled_draw(values, jnp.zeros((rows, 2)), sampling)[0]

    mapped = jax.jit(jax.vmap(token))(values)
    scanned = jax.jit(lambda values: jax.lax.scan(lambda _, x: (None, token(x)), None, values)[1])(values)
    np.testing.assert_array_equal(mapped, (np.float32(3.3) * values).argmax(-1))
    np.testing.assert_array_equal(scanned, mapped)


def test_the_best_token_is_drawn_on_a_mesh():
    values = np.random.default_rng(3).normal(size=(16, 64)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placed = jax.device_put(values, jax.NamedSharding(mesh, jax.P("data", "tensor")))
    for setting in ({"temperature": 0}, {"min_p": 1.0}, {"top_k": 1}):
        token, _ = jax.jit(scaled_draw)(placed, uniforms(16), make_sampling(16, 64, max_new_tokens=1, **setting))
        np.testing.assert_array_equal(token, (np.float32(3.3) * values).argmax(-1))


EXTREMES = {
    "huge": [1e30, 3e38, -3e38, 2e38, 3e38],
    "far below": [-1e30, -2e30, -1.5e30, -3e38, -1e30],
    "tiny": [1e-30, 2e-30, 0.0, -1e-30, 2e-30],
    "close": [1.0, 1.0 + 2**-22, 1.0 + 2**-23, 1.0, 1.0 + 2**-22],
    "one finite": [-np.inf, -np.inf, -np.inf, -5.0, -np.inf],
    "equal": [7.0] * 5,
}


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", EXTREMES)
def test_logits_of_any_size(name, temperature):
    logits = np.tile(np.array(EXTREMES[name], np.float32), (64, 1))
    token, logps = DRAW(logits, uniforms(64), make_sampling(64, 5, max_new_tokens=1, temperature=temperature))
    p = oracle(logits[0], temperature=temperature)
    assert (p[token] > 0).all()
    np.testing.assert_allclose(logps[2], np.log(p[token]), atol=1e-5)
    np.testing.assert_allclose(logps[0], log_softmax(logits[0].astype(np.float64))[token], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_ties_of_narrow_logits_go_to_the_lower_id(dtype):
    logits = np.random.default_rng(4).normal(size=(32, 5000)).astype(np.float32) / 50 + 3
    logits = jnp.asarray(logits).astype(dtype)
    token, _ = DRAW(logits, uniforms(32), make_sampling(32, 5000, max_new_tokens=1, temperature=0))
    np.testing.assert_array_equal(token, np.asarray(logits, np.float64).argmax(-1))


@pytest.mark.parametrize("setting", [{"temperature": 0}, {}, {"top_p": 0.5, "min_p": 0.1}], ids=str)
def test_a_row_without_candidates_takes_the_best_token_that_is_allowed(setting):
    size = 300
    logits = np.where(np.arange(size) < 250, np.linspace(-1, 1, size), -np.inf).astype(np.float32)
    one, impossible, far = (np.zeros(size, bool) for _ in range(3))
    one[[17]] = impossible[[260, 270]] = far[[3, 8]] = True
    logits[200] = 1e30  # next to it, the logits of the mask `far` would be equal
    masks = np.stack([one, impossible, far])
    sampling = make_sampling(3, size, max_new_tokens=1, logit_mask=masks, **{"top_k": 1, **setting})
    token, (logp, _, sampling_logp) = DRAW(np.tile(logits, (3, 1)), uniforms(3), sampling)
    np.testing.assert_array_equal(token, [17, 260, 8])
    np.testing.assert_array_equal(sampling_logp, 0.0)
    assert logp[1] == -np.inf and not np.isnan(logp).any()


def test_a_row_of_impossible_tokens_is_seen():
    token, logps = DRAW(np.full((2, 9), -np.inf, np.float32), uniforms(2), make_sampling(2, 9, max_new_tokens=1))
    np.testing.assert_array_equal(token, 0)
    assert np.isnan(logps[:2]).all()
