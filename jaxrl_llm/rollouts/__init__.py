"""Strategies that turn prompts into scored rollouts."""

from jaxrl_llm.rollouts.collect import Collection, arranged, joined
from jaxrl_llm.rollouts.facts import with_facts
from jaxrl_llm.rollouts.hints import contrasted, doubled, escalated, relabelled, self_taught, staged, steered
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.records import concatenate, informative_groups, make_rollouts, select_rows
from jaxrl_llm.rollouts.requests import Prefix, Request, make_prefix, prompt_text, requests_for
from jaxrl_llm.rollouts.strategies import dynamic_sampling, grouped, grouped_with_anchors, grouped_with_greedy, guided
from jaxrl_llm.rollouts.strategy import Strategy, stateful_strategy, stateless_strategy

__all__ = [
    "Collection", "Io", "Prefix", "Request", "Strategy", "arranged", "concatenate", "contrasted", "doubled", "dynamic_sampling",
    "escalated", "grouped", "grouped_with_anchors", "grouped_with_greedy", "guided", "informative_groups", "joined",
    "make_prefix", "make_rollouts", "prompt_text", "relabelled", "requests_for", "select_rows", "self_taught", "staged",
    "stateful_strategy", "stateless_strategy", "steered", "with_facts",
]  # fmt: skip
