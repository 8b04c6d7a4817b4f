"""A queue for each data shard: samples are those of one device, and no step of decoding asks what another shard does."""

import jax
import numpy as np
import pytest
from test_sharding import NETWORK, SPARSE

from jaxrl_llm.distributed import for_sampling, make_mesh, sampling_mesh, sharded
from jaxrl_llm.distributed.hlo import Collectives, read_hlo
from jaxrl_llm.sampling import engine, generate, harvest
from jaxrl_llm.sampling.decode import decode
from jaxrl_llm.sampling.records import make_sampling, row_keys

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
RAGGED = {"num_samples": 9, "stop_ids": [3, 4], "seed": 2, "step": 5, "max_new_tokens": 200}
LAYOUTS = [("dense", 1, 1), ("dense", 2, 1), ("experts", 2, 2), ("experts", 1, 4)]


def sampler(name, tensor, expert):
    """A network, its parameters on one device and in the layout of sampling, and the mesh."""
    network = {"dense": NETWORK, "experts": SPARSE}[name]
    params, mesh = network.init(jax.random.key(0)), sampling_mesh(np.array(jax.devices()), tensor, expert)
    return network, params, for_sampling(network, params, mesh), mesh


def assert_equal_samples(found, expected):
    for field in ("tokens", "length", "finish_reason"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=field)
    for field in ("logp", "tempered_logp", "sampling_logp", "entropy"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), atol=1e-5, err_msg=field)


@pytest.mark.parametrize(("name", "tensor", "expert"), LAYOUTS[:3])
@pytest.mark.parametrize("cut", [False, True])
def test_queues_of_shards_give_the_samples_of_one_device(name, tensor, expert, cut, monkeypatch):
    """Of 36 samples 16 at a time; tails are widened, slots leave, and some samples end by their text."""
    network, params, copy, mesh = sampler(name, tensor, expert)
    called = []
    for what in ("widened", "chosen"):
        kept = getattr(engine, what)
        monkeypatch.setattr(engine, what, lambda *a, _=(what, kept), **k: called.append(_[0]) or _[1](*a, **k))
    options = RAGGED | ({"stop_strings": ["7,1", "20,2"], "detokenize": lambda ids: ",".join(map(str, ids))} if cut else {})
    expected = generate(network, params, PROMPTS, **options)
    assert expected.length.max() > harvest.FIRST_WIDTH and expected.length.min() < 10
    called.clear()
    with sharded(mesh):
        assert_equal_samples(generate(network, copy, PROMPTS, slots=16, **options), expected)
    assert cut or set(called) == {"widened", "chosen"}


@pytest.mark.parametrize(("name", "tensor", "expert"), LAYOUTS)
def test_a_step_has_no_collective_over_data(name, tensor, expert, monkeypatch):
    """Counted in the compiled program: what it has more for one turn of the inner loop than for none."""
    network, _, copy, mesh = sampler(name, tensor, expert)
    run, texts = engine.run, []

    def told(*arguments, **options):
        texts.append(run.lower(*arguments, **options).compile().as_text())
        return run(*arguments, **options)

    monkeypatch.setattr(engine, "run", told)
    with sharded(mesh):
        generate(network, copy, PROMPTS, num_samples=6, max_new_tokens=4, slots=8)
    none, once = (read_hlo(texts[0], mesh, (1, turns)).collectives for turns in (0, 1))
    each = {key: found.times - none.get(key, Collectives()).times for key, found in once.items()}
    each = {kind_axes for kind_axes, times in each.items() if times}
    assert not any("data" in axes.split("+") for _, axes in each) and (each or tensor * expert == 1)
    # Devices that share out experts meet in the layers that have them.
    assert {kind for kind, axes in each if axes == "expert"} <= {"all-gather", "reduce-scatter"}
    # Whether there is work for more steps is one boolean for all shards, every few steps.
    (agreed,) = (key for key in once if "data" in key[1].split("+"))
    assert agreed[0] == "all-reduce" and once[agreed].times == 1 and once[agreed].largest == 1


def test_contexts_are_dealt_so_that_no_queue_is_much_longer_than_others():
    with sharded(sampling_mesh(np.array(jax.devices()))):
        for counts in ([24], [3, 3, 3], [40, 1, 1, 1, 1, 1, 1], [16] * 8, [1] * 13):
            contexts = [[number] for number in range(len(counts))]
            of_context = np.repeat(np.arange(len(counts)), counts)
            read, number = harvest.evened(contexts, of_context)
            assert [read[own] for own in number] == [contexts[own] for own in of_context]
            work = harvest.Work(None, None, read, number, None, make_sampling(len(number), 9, max_new_tokens=5))
            row, requests, sizes = harvest._shared_out(work)
            assert len(set(row)) == len(row) and sizes.sum() == len(number)
            assert sorted(np.concatenate([own[:size] for own, size in zip(requests, sizes, strict=True)])) == sorted(
                range(len(number))
            )
            assert sizes.max() <= max(harvest.UNEVEN * len(number) / 8, -(-len(number) // 8))


def test_decode_wants_prompts_that_go_evenly_over_queues():
    network, _, copy, mesh = sampler("dense", 1, 1)
    prompts = np.ones((4, 2), np.int32), np.full(4, 2, np.int32), row_keys(0, 0, np.arange(8))
    with (
        sharded(mesh),
        pytest.raises(ValueError, match="4 prompts do not go evenly over 8 queues; pad them to a multiple of 8"),
    ):
        decode(network, copy, *prompts, make_sampling(8, 48, max_new_tokens=2), max_new_tokens=2)


def test_a_mesh_that_splits_parameters_by_rows_has_one_queue():
    with sharded(make_mesh(2, 2, 2)):
        assert harvest.current_queues() == 1
