"""Strategies: which prompts are sampled, how often, and what of it is kept."""

import numpy as np

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.networks.combined import geometric
from jaxrl_llm.rollouts.collect import Collection, joined
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.records import informative_groups
from jaxrl_llm.rollouts.requests import requests_for
from jaxrl_llm.rollouts.strategy import Metrics, stateless_strategy

GEOMETRIC = geometric()


@stateless_strategy
def grouped(io: Io, prompts: int, *, samples: int = 8) -> tuple[Collection, Metrics]:
    """`samples` completions of each of `prompts` prompts."""
    return io.sample(requests_for(*io.draw(prompts), samples=samples)), {}


@stateless_strategy
def dynamic_sampling(io: Io, prompts: int, *, samples: int = 16, max_rounds: int = 8) -> tuple[Collection, Metrics]:
    """Draws further prompts until `prompts` groups have rewards that differ, or `max_rounds` rounds are over.

    Groups without signal are left out, and so are informative ones beyond `prompts`. Where the rounds end too early,
    the groups found stand alone; where there is none, the last round stands, and the step changes nothing.

    Returns: With the metrics "dynamic_sampling/rounds" and "dynamic_sampling/kept" (share of sampled groups that are kept).
    Raises ValueError: `max_rounds` is below 1.
    Source: DAPO, section 3.2, https://arxiv.org/abs/2503.14476
    """
    require(max_rounds >= 1, "max_rounds", max_rounds, "at least 1")
    kept, found, rounds = [], 0, 0
    while found < prompts and rounds < max_rounds:
        collection = io.sample(requests_for(*io.draw(prompts), samples=samples))
        rounds += 1
        groups = informative_groups(collection.rollouts)[: prompts - found]
        found += len(groups)
        if len(groups):
            kept.append(collection.take(np.flatnonzero(np.isin(collection.rollouts.group, groups))))
    metrics = {"dynamic_sampling/rounds": float(rounds), "dynamic_sampling/kept": found / (rounds * prompts)}
    return joined(kept) if kept else collection, metrics


@stateless_strategy(provides=("greedy_reward",))
def grouped_with_greedy(io: Io, prompts: int, *, samples: int = 1) -> tuple[Collection, Metrics]:
    """`samples` completions of each prompt, and the total reward of a greedy one in `extras["greedy_reward"]` [N].

    The greedy completions are a baseline and no part of the rollouts. A reward that is missing counts as 0.

    Source: ReMax, https://arxiv.org/abs/2310.10505
    """
    drawn = io.draw(prompts)
    collection = io.sample(requests_for(*drawn, samples=samples))
    greedy = io.sample(requests_for(*drawn, temperature=0.0)).rollouts
    rewards = np.nansum(np.asarray(greedy.rewards, np.float32), axis=1)
    added = {"greedy_reward": np.repeat(rewards, samples)}
    return collection.changed(extras=added), {"greedy_reward": float(rewards.mean())}


@stateless_strategy(annotations=("reference_samples",), provides=("anchor_reward", "anchor_rewards"))
def grouped_with_anchors(io: Io, prompts: int, *, samples: int = 8, anchors: int = 8) -> tuple[Collection, Metrics]:
    """`samples` completions of each prompt, and the total rewards of `anchors` completions of the reference policy.

    Those stand in `extras["anchor_rewards"]` [N, anchors], their mean in `extras["anchor_reward"]` [N]; the reference's
    completions themselves are no part of the rollouts. A reward that is missing counts as 0.

    Source: PVPO, https://arxiv.org/abs/2508.21104; A*-PO, https://arxiv.org/abs/2505.20686, which sample them beforehand,
      once for each prompt of the data; here they are drawn when the prompt is
    """
    drawn = io.draw(prompts)
    collection = io.sample(requests_for(*drawn, samples=samples))
    of_reference = io.sample(requests_for(*drawn, samples=anchors, by="reference")).rollouts
    rewards = np.nansum(np.asarray(of_reference.rewards, np.float32), axis=1).reshape(prompts, anchors)
    repeated = np.repeat(rewards, samples, axis=0)
    added = {"anchor_rewards": repeated, "anchor_reward": repeated.mean(axis=1)}
    return collection.changed(extras=added), {"anchor_reward": float(rewards.mean())}


@stateless_strategy(provides=("rows_of_demonstrations",))
def guided(io: Io, prompts: int, *, samples: int = 7, demonstrations: int = 1) -> tuple[Collection, Metrics]:
    """`samples` completions of each prompt and `demonstrations` copies of the example's own completion, in one group.

    The copies have source 1 and a `behavior_logp` of 0.

    Source: LUFFY, https://arxiv.org/abs/2504.14945, with one demonstration for seven samples
    """
    drawn = io.draw(prompts)
    given = requests_for(*drawn, samples=demonstrations, by="given")
    return io.sample([*requests_for(*drawn, samples=samples), *given]), {}


@stateless_strategy(annotations=("reference_samples",), provides=("rows_of_mixture",))
def mixed(io: Io, prompts: int, *, samples: int = 2, plain: int = 0, mix: Composable = GEOMETRIC) -> tuple[Collection, Metrics]:
    """`samples` completions of each prompt by a mixture of the policy and the reference, beside `plain` ones of the policy.

    All of a prompt are one group. The rows of the mixture have source 1 and its log-probabilities.

    Source: IPO-MD, https://arxiv.org/abs/2403.08635; Nash-MD, https://arxiv.org/abs/2312.00886
    """
    drawn = io.draw(prompts)
    own = requests_for(*drawn, samples=plain) if plain else []
    return io.sample([*own, *requests_for(*drawn, samples=samples, beside="reference", mix=mix)]), {}
