"""Reinforcement learning and preference optimisation of language models in JAX, as pure functions."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl_llm.training.loop import train as train

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Rooms such as `jaxrl_llm.methods`, and `jaxrl_llm.train`, imported when they are first used: JAX takes a second."""
    if name == "train":
        return importlib.import_module("jaxrl_llm.training.loop").train
    if name in _rooms():
        return importlib.import_module(f"jaxrl_llm.{name}")
    raise AttributeError(f"module 'jaxrl_llm' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted([*_rooms(), "__version__", "train"])


def _rooms() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
