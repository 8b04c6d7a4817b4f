"""Slow, obvious, independent versions of what the package computes, by plain loops in NumPy float64."""

import importlib
import pkgutil


def names() -> set[str]:
    """Names of everything in the modules of this folder: an oracle has the name of what it checks."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {name for module in modules for name in vars(module)}
