"""What a policy acts in beside its own text: tools."""

from jaxrl_llm.environments.syntaxes import STYLES, Call, calls_in, style_of
from jaxrl_llm.environments.tools import Counts, Tool, calculator, call, load_tools, python, tool

__all__ = [
    "STYLES", "Call", "Counts", "Tool", "calculator", "call", "calls_in", "load_tools", "python", "style_of", "tool",
]  # fmt: skip
