"""Environments: what a policy talks with over several turns, as pairs of functions of values.

Importing this loads no JAX: the worker processes of the reward pool import it too.
"""

from jaxrl_llm.environments.base import Agent, Environment, Transition
from jaxrl_llm.environments.calculator import calculator
from jaxrl_llm.environments.grids import frozen_lake
from jaxrl_llm.environments.poker import kuhn_poker
from jaxrl_llm.environments.words import word_game
from jaxrl_llm.environments.worlds import text_world

# Environments that a configuration can name without a module; each takes options of its own.
NAMED = {make.__name__: make for make in (calculator, frozen_lake, kuhn_poker, text_world, word_game)}

__all__ = [
    "Agent", "NAMED", "Environment", "Transition", "calculator", "frozen_lake", "kuhn_poker", "text_world", "word_game",
]  # fmt: skip
