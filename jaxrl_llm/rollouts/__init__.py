"""Strategies that turn prompts into scored rollouts."""

from jaxrl_llm.rollouts.collect import Collection, collect, prompt_text
from jaxrl_llm.rollouts.records import concatenate, informative_groups, make_rollouts, select_rows
from jaxrl_llm.rollouts.strategies import dynamic_sampling, grouped, grouped_with_anchors, grouped_with_greedy, guided

__all__ = [
    "Collection",
    "collect",
    "concatenate",
    "dynamic_sampling",
    "grouped",
    "grouped_with_anchors",
    "grouped_with_greedy",
    "guided",
    "informative_groups",
    "make_rollouts",
    "prompt_text",
    "select_rows",
]
