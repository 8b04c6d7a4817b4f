"""Strategies that turn prompts into scored rollouts."""

from jaxrl_llm.rollouts.collect import Collection, joined
from jaxrl_llm.rollouts.io import Io
from jaxrl_llm.rollouts.records import concatenate, informative_groups, make_rollouts, select_rows
from jaxrl_llm.rollouts.requests import Prefix, Request, make_prefix, prompt_text, requests_for
from jaxrl_llm.rollouts.strategies import dynamic_sampling, grouped, grouped_with_anchors, grouped_with_greedy, guided
from jaxrl_llm.rollouts.strategy import Strategy, stateful_strategy, stateless_strategy

__all__ = [
    "Collection",
    "Io",
    "Prefix",
    "Request",
    "Strategy",
    "concatenate",
    "dynamic_sampling",
    "grouped",
    "grouped_with_anchors",
    "grouped_with_greedy",
    "guided",
    "informative_groups",
    "joined",
    "make_prefix",
    "make_rollouts",
    "prompt_text",
    "requests_for",
    "select_rows",
    "stateful_strategy",
    "stateless_strategy",
]
