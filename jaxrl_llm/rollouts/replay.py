"""Strategies that remember rows: replay beside fresh samples, drafts of the last visit, rows that go on in the next step.

The `samples` of a prompt are fresh ones where others are replayed. The `store` has `capacity` rows of `row_width` tokens, the
columns of the rollouts, and `components` rewards; in a run of the program these two are what it has.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxrl_llm.compose import require
from jaxrl_llm.rollouts.collect import Collection, arranged, fork, joined
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.requests import Prefix, requests_for
from jaxrl_llm.rollouts.store import REPLAYED, Store, empty_store, of_prompt, put, stored
from jaxrl_llm.rollouts.strategy import Metrics, stateful_strategy
from jaxrl_llm.sampling import STOP, finish_name

Rule = Literal["recent", "best", "variance", "random"]


@stateful_strategy(empty_store, provides=("rows_of_replay",))
def replayed(
    io: Io, store: Store, prompts: int, *, samples: int = 8, capacity: int = 1024, row_width: int = 768, components: int = 1,
    taken: int = 8, rule: Rule = "best", least: int = 1, of: Literal["prompt", "any"] = "prompt", apart: bool = False,
) -> tuple[Collection, Store, Metrics]:  # fmt: skip
    """`samples` fresh completions of each prompt, and up to `taken` of earlier steps, with source 2, from a store.

    Args:
      taken: most replayed rows of a prompt.
      rule: which rows of a prompt: the newest, those of the highest reward, the subset whose rewards vary most, or any.
      least: rows of a prompt that must be stored before some are taken.
      of: rows of the "prompt" itself, or of "any" prompt: as many rows as `taken` times the prompts, by the rule.
      apart: whether the replayed rows of a prompt are a group of their own, rather than of that of the fresh ones.

    Source: RePO, https://arxiv.org/abs/2506.09340; ReMix, https://arxiv.org/abs/2507.06892, takes the newest ones
    """
    fresh = io.sample(requests_for(*io.draw(prompts), samples=samples))
    unknown = sorted(fresh.rollouts.extras) + ["token_rewards"] * (fresh.rollouts.token_rewards is not None)
    if unknown:
        raise ValueError(f"rows of a store have no {unknown[0]!r}, which the rollouts of this run have; leave it out")
    drawn = fresh.rollouts.prompt_id[::samples]
    pools = [of_prompt(store, number) for number in drawn] if of == "prompt" else [np.flatnonzero(store["number"] > 0)]
    most = taken if of == "prompt" else taken * prompts
    chosen = [_chosen(store, pool, min(most, len(pool)), rule, io) if len(pool) >= least else pool[:0] for pool in pools]
    metrics = {"replay/rows": float(sum(map(len, chosen)))}
    after = put(store, fresh)
    places = np.concatenate(chosen).astype(np.int32)
    if not len(places):
        return fresh, after, metrics
    again = stored(store, places, io)
    metrics["replay/age"] = float(io.step - again.rollouts.version[again.rollouts.mask > 0].mean())
    both = joined([fresh, again])
    if of == "prompt" and not apart:
        group = np.concatenate([fresh.rollouts.group, np.repeat(np.arange(prompts), [len(own) for own in chosen])])
        both = both.changed(group=group.astype(np.int32))
    return both, after, metrics


def _chosen(store: Store, pool: np.ndarray, count: int, rule: Rule, io: Io) -> np.ndarray:
    """`count` of the places of a pool, by a rule; of equals the newest."""
    newest = pool[np.argsort(-store["number"][pool], kind="stable")]
    reward = np.nansum(store["rewards"][newest], axis=1)
    if rule == "recent":
        return newest[:count]
    if rule == "random":
        return newest[np.argsort(io.uniform(len(newest), salt=1), kind="stable")[:count]]
    best = np.argsort(-reward, kind="stable")
    if rule == "best":
        return newest[best[:count]]
    # The subset of a size with the largest variance has the highest and the lowest, some of each.
    splits = [np.concatenate([best[:high], best[len(best) - (count - high) :]]) for high in range(count, -1, -1)]
    return newest[max(splits, key=lambda rows: reward[rows].var()) if count else []]


@stateful_strategy(empty_store)
def speculative(
    io: Io, store: Store, prompts: int, *, samples: int = 8, capacity: int = 1024, row_width: int = 768, components: int = 1,
    lenience: float = 0.5,
) -> tuple[Collection, Store, Metrics]:  # fmt: skip
    """Completions that go on from as much of the last visit's as the policy would write again with some luck.

    A token stays while log u <= log pi_new - log pi_old + `lenience`, u uniform on [0, 1); sampling goes on at the first that
    does not. What stays is learned like the rest, and has the log-probability of the policy that reads it now. Exact
    speculative sampling would have a lenience of 0 and a correction of the distribution at the first token that falls.

    Args:
      capacity: rows of the store, `samples` for each prompt of the data to find all again.
      lenience: nats by which a token may have become less likely.

    Returns: With the metric "speculative/kept", the share of the stored tokens that stay.
    Source: SPEC-RL, https://arxiv.org/abs/2509.23232
    """
    examples, numbers = io.draw(prompts)
    plain = requests_for(examples, numbers)
    found = [of_prompt(store, number)[:samples] for number in numbers]
    places = np.concatenate(found).astype(np.int32)
    kept = _kept(io, stored(store, places, io), lenience) if len(places) else iter(())
    requests, total, stay = [], 0, 0
    for request, own in zip(plain, found, strict=True):
        for place in own:
            prefix = next(kept)
            total, stay = total + int(store["length"][place] - store["start"][place]), stay + len(prefix.tokens)
            requests.append(dataclasses.replace(request, prefix=prefix if len(prefix.tokens) else None))
        if len(own) < samples:
            requests.append(dataclasses.replace(request, samples=samples - len(own)))
    collection = io.sample(requests)
    return collection, put(store, collection), {"speculative/kept": stay / total if total else 0.0}


def _kept(io: Io, drafts: Collection, lenience: float):
    """Of each row the beginning of its completion that is accepted, as a prefix with the log-probabilities of now."""
    rollouts, now = drafts.rollouts, io.score(drafts, "policy")["logp"]
    noise = io.uniform(rollouts.tokens.size, salt=2).reshape(rollouts.tokens.shape)
    accepted = np.log(np.maximum(noise, 1e-300)) <= now - rollouts.behavior_logp + lenience
    for row, start in enumerate(drafts.prompt_length):
        own = slice(int(start), int(rollouts.length[row]))
        count = int(np.argmin(np.append(accepted[row, own], False)))
        # The last token of a row that stays as a whole is drawn again: an end is no prefix, nor is there a request for nothing.
        count = min(count, own.stop - own.start - 1)
        place = slice(own.start, own.start + max(count, 0))
        columns = (now[row, place].astype(np.float32), rollouts.mask[row, place])
        version = np.full(place.stop - place.start, io.now, np.int32)
        yield Prefix(rollouts.tokens[row, place], *columns, version, rollouts.turn[row, place])


@stateful_strategy(empty_store)
def resumed(
    io: Io, store: Store, prompts: int, *, samples: int = 8, capacity: int = 256, row_width: int = 768, window: int = 128
) -> tuple[Collection, Store, Metrics]:
    """Completions of up to `window` new tokens a step: a group with a row that is not over goes on in the next one.

    The rows of a group are learned together, when all are over; tokens keep the log-probabilities and versions that they were
    sampled with, and rows with tokens of earlier steps have source 2. New prompts fill the step up, so that about `prompts`
    groups are under way. If none is over, the step goes on with another window.

    Args:
      store: rows that are under way; those that are over wait in it for the others of their group.
      prompts: groups under way.
      capacity: rows of the store, at least `prompts` * `samples`.
      window: most new tokens of a row in a step.

    Source: partial rollouts of Kimi k1.5, https://arxiv.org/abs/2501.12599; successive batching of T-PPO,
    https://arxiv.org/abs/2506.15050
    """
    require(capacity >= prompts * samples, "capacity", capacity, f"at least {prompts * samples}, the rows of a step")
    over, first = np.zeros(0, bool), io.now
    while not over.any():
        collection = _windowed(io, store, prompts, samples, window)
        ended = np.array([_is_over(record, io.sampling["max_new_tokens"]) for record in collection.records])
        over = ended.reshape(-1, samples).all(axis=1)
        waiting = np.flatnonzero(~np.repeat(over, samples))
        store = put(empty_store(capacity=capacity, row_width=row_width), collection, waiting)
    done = io.reward(collection.take(np.flatnonzero(np.repeat(over, samples))))
    older = ((done.rollouts.version < first) & (done.rollouts.mask > 0)).any(axis=1)
    done = done.changed(source=np.where(older, REPLAYED, 0).astype(np.int32))
    return done, store, {"resumed/waiting": float((~over).sum())}


def _is_over(record: dict, limit: int) -> bool:
    return record["finish_reason"] == finish_name(STOP) or record["length"] >= limit


def _windowed(io: Io, store: Store, prompts: int, samples: int, window: int) -> Collection:
    """All rows under way, the groups one behind the other, after another window for those that are not over."""
    count, limit = int(store["count"]), io.sampling["max_new_tokens"]
    groups = np.arange(count) // samples
    parts = [stored(store, np.arange(count), io, groups)] if count else []
    rows, requests = [(0, place) for place in range(count)], []
    for place in range(count):
        if not _is_over(parts[0].records[place], limit):
            rows[place] = (1, len(requests))
            requests.append(fork(parts[0], place, int(parts[0].rollouts.length[place]), limit=window))
    fresh = prompts - count // samples
    drawn = requests_for(*io.draw(fresh), limit=window) if fresh > 0 else []
    for request in drawn:
        rows += [(len(parts), len(requests) + sample) for sample in range(samples)]
        requests += [request] * samples
    if requests:
        parts.append(io.sample(requests, rewarded=False))
    found = arranged(parts, rows, np.arange(len(rows)) // samples)
    return found.changed(source=np.zeros(len(rows), np.int32))
