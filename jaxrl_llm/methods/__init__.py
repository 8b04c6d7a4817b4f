"""The catalogue: every named method is a strategy, an estimator and an objective."""

import importlib
import pkgutil

from jaxrl_llm.methods.base import Method, conventions_of, get, method, names, options_of, table

# Importing a module registers its methods.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "conventions_of", "get", "method", "names", "options_of", "table"]
