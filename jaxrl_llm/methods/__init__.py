"""The catalogue: every named method is a strategy, an estimator and an objective."""

from jaxrl_llm.methods import catalogue as _catalogue  # noqa: F401  (registers the methods)
from jaxrl_llm.methods.base import Method, conventions_of, get, names, options_of, table

__all__ = ["Method", "conventions_of", "get", "names", "options_of", "table"]
