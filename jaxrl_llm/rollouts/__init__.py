"""Strategies that turn prompts into scored rollouts.

Everywhere `io` is the world of the step, see `Io`, `prompts` the number of its prompts, `samples` that of the completions of
each, and `threshold` the total reward above which a row is right.
"""

from jaxrl_llm.rollouts.choosing import best_and_worst_of, chosen
from jaxrl_llm.rollouts.collect import Collection, arranged, fork, joined
from jaxrl_llm.rollouts.facts import with_facts
from jaxrl_llm.rollouts.forks import begun, branching, budgeted, exits, uncertain_tree, valued
from jaxrl_llm.rollouts.hints import contrasted, doubled, escalated, relabelled, self_taught, staged, steered
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.records import concatenate, informative_groups, make_rollouts, select_rows
from jaxrl_llm.rollouts.recycled import in_modes, recycled
from jaxrl_llm.rollouts.replay import replayed, resumed, speculative
from jaxrl_llm.rollouts.requests import Prefix, Request, make_prefix, prompt_text, requests_for
from jaxrl_llm.rollouts.store import empty_store, put, stored
from jaxrl_llm.rollouts.strategies import dynamic_sampling, grouped, grouped_with_anchors, grouped_with_greedy, guided, mixed
from jaxrl_llm.rollouts.strategy import Strategy, stateful_strategy, stateless_strategy
from jaxrl_llm.rollouts.verifying import spoiled, verified

__all__ = [
    "Collection", "Io", "Prefix", "Request", "Strategy", "arranged", "begun", "best_and_worst_of", "branching", "budgeted",
    "chosen", "concatenate", "contrasted", "doubled", "dynamic_sampling", "empty_store", "escalated", "exits", "fork",
    "grouped", "grouped_with_anchors", "grouped_with_greedy", "guided", "in_modes", "informative_groups", "joined",
    "make_prefix", "make_rollouts", "mixed", "prompt_text", "put", "recycled", "relabelled", "replayed", "requests_for",
    "resumed", "select_rows", "self_taught", "speculative", "spoiled", "staged", "stateful_strategy", "stateless_strategy",
    "steered", "stored", "uncertain_tree", "valued", "verified", "with_facts",
]  # fmt: skip
