"""Samples that are made ahead: what a step learns from is fixed beforehand, whoever is faster."""

import gc
import json
import threading
import time
import weakref
from concurrent import futures
from contextlib import nullcontext

import jax
import numpy as np
import pytest
from training.test_resume import assert_same_run, final_arrays
from training.tiny_runs import finish, finished, quick_compilation, tiny_config  # noqa: F401

from jaxrl_llm.rollouts import Io
from jaxrl_llm.training import loop, reinforcement
from jaxrl_llm.training.ahead import Ahead, Sampled, from_saved, looking_ahead, to_saved
from jaxrl_llm.training.metrics import read_jsonl


def made(number):
    return lambda before, newer: Sampled(before(), {"newer": newer()}, number, None, [])


def test_samples_are_taken_in_order_and_begun_until_the_end():
    ahead = Ahead(end=5)
    assert list(ahead.missing(3, 0)) == [3] and list(ahead.missing(3, 4)) == [3, 4]
    for number in (3, 4):
        ahead.begin(made(number))
    assert not ahead.missing(3, 4)
    assert [one.cursor for one in ahead.finished()] == [3, 4]
    first, second = ahead.take(), ahead.take()
    assert (first.cursor, second.cursor) == (3, 4) and second.collection is first and first.collection is None
    assert not ahead.missing(5, 4)


def test_a_thread_makes_them_one_after_the_other_while_others_work():
    order, go = [], threading.Event()

    def slow(*waits):
        go.wait(10)
        order.append("slow")
        return made(0)(*waits)

    def quick(*waits):
        order.append("quick")
        return made(1)(*waits)

    with looking_ahead((), 2, overlap=True) as ahead:
        ahead.begin(slow)
        ahead.begin(quick)
        assert order == []
        go.set()
        assert [one.cursor for one in ahead.finished()] == [0, 1] and order == ["slow", "quick"]


def test_an_error_of_the_thread_reaches_the_step_that_waits_for_it():
    def broken(before, newer):
        raise ValueError("no such prompt")

    with looking_ahead((), 2, overlap=True) as ahead:
        ahead.begin(broken)
        with pytest.raises(ValueError, match="no such prompt"):
            ahead.take()


@pytest.mark.parametrize("thread", [None, futures.ThreadPoolExecutor(1)])
@pytest.mark.parametrize("at_once", [False, True])
def test_samples_wait_for_newer_parameters_wherever_they_are_made(thread, at_once):
    ahead = Ahead(end=9, thread=thread, at_once=at_once)
    for number in (0, 1, 2):
        ahead.begin(made(number), number == 2)
    assert ahead.take().metrics == {"newer": None} and ahead.waits
    ahead.go_on()
    if thread is None:
        assert [one.done() for one in ahead._waiting] == [True, False]
    ahead.renew("newer")
    if thread is None:
        assert [one.done() for one in ahead._waiting] == [True, at_once]
    ahead.begin(made(3), True)
    assert ahead.waits and [ahead.take().metrics["newer"] for _ in range(2)] == [None, "newer"]
    ahead.renew("newest")
    assert [(one.cursor, one.metrics["newer"]) for one in ahead.finished()] == [(3, "newest")] and not ahead.waits


def test_nobody_waits_for_parameters_of_a_step_that_failed():
    with pytest.raises(KeyError), looking_ahead((), 9, overlap=True) as ahead:
        ahead.begin(made(0), True)
        raise KeyError("the step")


def late(config, **changes):
    config.rl.update(steps=4, staleness=2, **changes)
    return config


def test_without_overlap_the_numbers_are_the_same_and_versions_are_told(tmp_path):
    at_once = finish(late(tiny_config("grpo", kl_coefficient=0.1)), tmp_path / "at_once")
    in_turn = finish(late(tiny_config("grpo", kl_coefficient=0.1), overlap=False), tmp_path / "in_turn")
    assert_same_run(at_once.workdir, in_turn.workdir)
    assert [record["staleness"] for record in at_once.metrics] == [0, 1, 2, 2]
    assert not (at_once.workdir / "warnings.jsonl").exists()
    # The first step learns as if nothing were late; the second one from samples of other parameters.
    on_time = finished("grpo").metrics
    tables = [read_jsonl(run.workdir / "completions" / "step_000002.jsonl") for run in (at_once, finished("grpo"))]
    assert at_once.metrics[0]["loss"] == on_time[0]["loss"] and tables[0] != tables[1]
    assert at_once.metrics[1]["behavior_kl"] > on_time[1]["behavior_kl"]


def test_parameters_change_within_a_sample(tmp_path):
    """Every token is drawn by the parameters that its version says; the rest is as it is without."""
    seen, take = [], Ahead.take
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ahead, "take", lambda self: seen.append(take(self)) or seen[-1])
        at_once = finish(late(tiny_config("grpo", kl_coefficient=0.1), in_flight=3), tmp_path / "at_once")
    in_turn = finish(late(tiny_config("grpo", kl_coefficient=0.1), in_flight=3, overlap=False), tmp_path / "in_turn")
    assert_same_run(at_once.workdir, in_turn.workdir)
    assert not (at_once.workdir / "warnings.jsonl").exists()
    for number, (sampled, record) in enumerate(zip(seen, at_once.metrics, strict=True)):
        rollouts = sampled.collection.rollouts
        drawn = np.cumsum(rollouts.mask, axis=1) * rollouts.mask
        versions = np.where(drawn > 3, max(number - 1, 0), max(number - 2, 0))[drawn > 0]
        np.testing.assert_array_equal(rollouts.version[drawn > 0], versions)
        assert record["staleness"] == (number - versions).mean()
    assert 1 < at_once.metrics[3]["staleness"] < 2
    plain = finish(late(tiny_config("grpo", kl_coefficient=0.1)), tmp_path / "plain")
    assert [record["loss"] for record in plain.metrics[:2]] == [record["loss"] for record in at_once.metrics[:2]]
    assert plain.metrics[2]["behavior_kl"] > at_once.metrics[2]["behavior_kl"]


@pytest.mark.parametrize("overlap", [False, True])
def test_parameters_of_before_are_let_go_where_newer_ones_go_on(tmp_path, monkeypatch, overlap):
    made, alive, snapshot, renew = [], [], reinforcement.snapshot, Io.renew

    def noted(*args, **options):
        seen = snapshot(*args, **options)
        made.append(weakref.ref(jax.tree.leaves(seen.params)[0]))
        return seen

    def renewed(io):
        renew(io)
        gc.collect()
        alive.append([one() is not None for one in made])

    monkeypatch.setattr(reinforcement, "snapshot", noted)
    monkeypatch.setattr(Io, "renew", renewed)
    config = tiny_config("dr_grpo")
    config.rl.update(steps=3, staleness=1, in_flight=3, overlap=overlap)
    finish(config, tmp_path)
    assert alive == [[False, True], [False, False, True]]


@pytest.mark.parametrize("in_flight", [0, 3])
def test_a_stopped_run_goes_on_with_the_samples_that_it_had(tmp_path, monkeypatch, in_flight):
    def config(**changes):
        return late(tiny_config("dapo", max_rounds=2), in_flight=in_flight, **changes)

    whole = finish(config(), tmp_path / "whole")
    for stop in (1, 3):
        advance = loop._log

        def log(run, files, progress, *rest, stop=stop, advance=advance):
            advance(run, files, progress, *rest)
            files.stop.extend(["SIGTERM"] if progress.step == stop else [])

        monkeypatch.setattr(loop, "_log", log)
        with pytest.raises(loop.Stopped, match=f"after step {stop}"):
            loop.train(config(), tmp_path / "stopped")
        monkeypatch.undo()
    stopped = finish(config(overlap=False), tmp_path / "stopped")
    assert_same_run(whole.workdir, stopped.workdir)


def test_failures_of_rewards_of_samples_ahead_are_still_listed_after_a_stop(tmp_path, monkeypatch):
    config = late(tiny_config("dr_grpo"))
    config.rewards.names = ("training.tiny_rewards:shortness", "training.tiny_rewards:moody")
    finish(config, tmp_path / "whole")
    advance = loop._log

    def log(run, files, progress, *rest):
        advance(run, files, progress, *rest)
        files.stop.extend(["SIGTERM"] if progress.step == 2 else [])

    monkeypatch.setattr(loop, "_log", log)
    with pytest.raises(loop.Stopped):
        loop.train(config, tmp_path / "stopped")
    monkeypatch.undo()
    finish(config, tmp_path / "stopped")
    whole, stopped = (read_jsonl(tmp_path / name / "reward_failures.jsonl") for name in ("whole", "stopped"))
    assert whole and {record["step"] for record in whole} == {1, 2, 3, 4}
    assert stopped == whole


def test_what_is_saved_is_what_was_sampled(tmp_path):
    """Through JSON, as in a checkpoint; but for the requests, which nobody reads any more."""
    seen = []
    config = late(tiny_config("grpo", kl_coefficient=0.1))
    config.rl.steps = 1
    take = Ahead.take
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ahead, "take", lambda self: seen.append(take(self)) or seen[-1])
        finish(config, tmp_path)
    arrays, plain = to_saved(seen)
    (found,) = from_saved(arrays, json.loads(json.dumps(plain)), seen[0].remembered)
    jax.tree.map(np.testing.assert_array_equal, found.collection.rollouts, seen[0].collection.rollouts)
    assert jax.tree.structure(found.collection.rollouts) == jax.tree.structure(seen[0].collection.rollouts)
    assert found.collection.records == seen[0].collection.records
    assert found.cursor == seen[0].cursor


@pytest.mark.slow
def test_sampling_overlaps_with_learning(tmp_path, monkeypatch):
    """While a step waits, the samples of the next one are made."""
    began = []

    updates = reinforcement._updates

    def slow_updates(*args):
        began.append(("update", time.monotonic()))
        time.sleep(1.0)
        return updates(*args)

    sampling_io = reinforcement.sampling_io

    def io(*args, **options):
        began.append(("sample", time.monotonic()))
        return sampling_io(*args, **options)

    monkeypatch.setattr(reinforcement, "_updates", slow_updates)
    monkeypatch.setattr(reinforcement, "sampling_io", io)
    config = tiny_config("dr_grpo")
    config.rl.update(steps=3, staleness=1)
    finish(config, tmp_path)
    names = [name for name, _ in sorted(began, key=lambda one: one[1])]
    assert names.index("update") > 1 and names[:2] == ["sample", "sample"], names
    assert final_arrays(tmp_path)[0] == 3


@pytest.mark.parametrize("in_flight", [0, 3])
def test_without_a_thread_samples_are_made_while_the_updates_of_a_step_are_at_work(tmp_path, monkeypatch, in_flight):
    """As several hosts do; what changes parameters waits for them until the step that learns from it."""
    order, updates, sampling_io = [], reinforcement._updates, reinforcement.sampling_io

    def noted(*args):
        order.append("dispatched")
        found = updates(*args)
        order.append("known")
        return found

    def io(run, number, *args, **options):
        order.append(number)
        return sampling_io(run, number, *args, **options)

    config = tiny_config("dr_grpo")
    config.rl.update(steps=3, staleness=1, in_flight=in_flight)
    whole = finish(config, tmp_path / "whole")
    monkeypatch.setattr(loop, "looking_ahead", lambda kept, end, overlap: nullcontext(Ahead(kept, end, at_once=False)))
    monkeypatch.setattr(reinforcement, "_updates", noted)
    monkeypatch.setattr(reinforcement, "sampling_io", io)
    assert_same_run(whole.workdir, finish(config, tmp_path / "without").workdir)
    at_work = [0, "dispatched", 1, "known", "dispatched", 2, "known", "dispatched", "known"]
    waiting = [0, "dispatched", "known", 1, "dispatched", "known", 2, "dispatched", "known"]
    assert order == (waiting if in_flight else at_work)


def test_actors_and_learners_on_devices_of_their_own(tmp_path):
    """Five devices that learn are too many for these rows; four and four share the work, and change nothing but rounding."""
    alone = finish(late(tiny_config("grpo", kl_coefficient=0.1)), tmp_path / "alone")
    config = late(tiny_config("grpo", kl_coefficient=0.1))
    config.mesh.update(data=2, fsdp=-1, actors=4, sampling_tensor=2)
    apart = finish(config, tmp_path / "apart")
    for mine, theirs in zip(apart.metrics, alone.metrics, strict=True):
        for name in mine.keys() - {"phase"}:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-4, atol=2e-6, err_msg=name)
    config.rl.overlap = False
    assert_same_run(apart.workdir, finish(config, tmp_path / "in_turn").workdir)


@pytest.mark.parametrize(
    ("name", "value"), [("rl.staleness", -1), ("rl.in_flight", -1), ("mesh.actors", -1), ("mesh.actors", 8)]
)
def test_impossible_numbers_are_refused(tmp_path, name, value):
    config = tiny_config("dr_grpo")
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=rf"config\.{name} is {value}"):
        loop.train(config, tmp_path)


def test_parameters_change_in_samples_that_are_made_ahead_alone(tmp_path):
    config = tiny_config("dr_grpo")
    config.rl.in_flight = 4
    with pytest.raises(ValueError, match=r"config\.rl\.in_flight would change nothing: config\.rl\.staleness is 0"):
        loop.train(config, tmp_path)
