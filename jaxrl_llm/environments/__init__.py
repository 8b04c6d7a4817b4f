"""Environments: what a policy talks with over several turns, as pairs of functions of values, and tools.

Importing this loads no JAX: the worker processes of the reward pool import it too.
"""

from jaxrl_llm.environments.adapters import gymnasium, textarena, verifiers
from jaxrl_llm.environments.attempts import attempts
from jaxrl_llm.environments.base import Agent, Environment, Transition
from jaxrl_llm.environments.grids import frozen_lake
from jaxrl_llm.environments.inline_calculator import inline_calculator
from jaxrl_llm.environments.lookups import search, sql
from jaxrl_llm.environments.poker import kuhn_poker
from jaxrl_llm.environments.roles import advised, discussion
from jaxrl_llm.environments.syntaxes import STYLES, Call, calls_in, style_of
from jaxrl_llm.environments.tool_use import tool_use
from jaxrl_llm.environments.tools import Counts, Tool, calculator, call, load_tools, python, tool
from jaxrl_llm.environments.words import word_game
from jaxrl_llm.environments.worlds import text_world

# Environments that a configuration can name without a module; each takes options of its own.
NAMED = {
    make.__name__: make
    for make in (
        advised, attempts, discussion, frozen_lake, gymnasium, inline_calculator, kuhn_poker, search, sql, text_world,
        textarena, tool_use, verifiers, word_game,
    )
}  # fmt: skip

__all__ = [
    "NAMED", "STYLES", "Agent", "Call", "Counts", "Environment", "Tool", "Transition", "advised", "attempts", "calculator",
    "call", "calls_in", "discussion", "frozen_lake", "gymnasium", "inline_calculator", "kuhn_poker", "load_tools", "python",
    "search", "sql", "style_of", "text_world", "textarena", "tool", "tool_use", "verifiers", "word_game",
]  # fmt: skip
