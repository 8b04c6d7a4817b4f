"""The types that users see: pyright accepts what they write, and every public name of every room has a known type.

Out of this are the bodies of functions: arrays that a batch may lack are `Array | None`, which terms read without asking, since
the objective has refused what is missing; and sections of configurations are dictionaries.
"""

import importlib
import json
import os
import pathlib
import pkgutil
import shutil
import subprocess

import pytest

import jaxrl_llm

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("pyright"), reason="pyright is not installed")]
PROGRAMS = {"jaxrl_llm.__main__", "jaxrl_llm.cli", "jaxrl_llm.configs"}
# What packages without types of their own leave unknown: `ConfigDict` of ml_collections, and `jax.Device`.
FOREIGN = {f"jaxrl_llm.training.{name}" for name in ("config.check_config", "config.default_config", "loop.train")}
FOREIGN |= {"jaxrl_llm.distributed.mesh.make_mesh"}
# Partition rules, which come as tables of any nesting.
FOREIGN |= {f"jaxrl_llm.distributed.sharding.{name}" for name in ("abstract_params", "init_params", "parameter_shardings")}
FOREIGN |= {f"jaxrl_llm.distributed.sharding.{name}" for name in ("rules_of", "shard_params")}


def pyright(*arguments: str) -> dict:
    # It does not see packages that are installed from where they are edited, but by the path.
    found = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(["pyright", "--outputjson", *arguments], **found, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def public_names() -> set[str]:
    """Functions and classes of ours that rooms export, by where they are defined."""
    found = {"jaxrl_llm.training.loop.train", "jaxrl_llm.training.policies.load_policy"}
    for room in (module.name for module in pkgutil.iter_modules(jaxrl_llm.__path__, "jaxrl_llm.")):
        imported = {} if room in PROGRAMS else vars(importlib.import_module(room))
        own = [name for name, value in imported.items() if name[0] != "_" and getattr(value, "__module__", "") == room]
        for name in imported.get("__all__", own):
            module = getattr(imported[name], "__module__", None) or ""
            if module.startswith("jaxrl_llm"):
                found.add(f"{module}.{name}")
    return found


def test_pyright_accepts_what_users_write():
    found = pyright()
    assert [(each["range"]["start"]["line"] + 1, each["message"]) for each in found["generalDiagnostics"]] == []
    assert found["summary"]["filesAnalyzed"] == 1


def test_every_public_name_has_a_known_type():
    symbols = pyright("--verifytypes", "jaxrl_llm", "--ignoreexternal")["typeCompleteness"]["symbols"]
    known = {symbol["name"]: symbol["isTypeKnown"] for symbol in symbols}
    names = public_names()
    assert len(names) > 400 and not names - set(known)
    # Of a class, what it has counts too.
    unknown = {name for name, fine in known.items() if not fine and ({name, name.rpartition(".")[0]} & names)}
    assert unknown == FOREIGN
