"""Who may import whom: walks the imports of every module and fails on an arrow that the architecture forbids.

`python tests/test_import_direction.py` prints the wrong arrows and exits with 1 where there are any.
"""

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "jaxrl_llm"
# Lowest first. A room imports only rooms of earlier lines, never one of its own line or a later one.
LEVELS = (
    ("__init__", "__version__", "types", "compose", "numerics", "failures", "progress", "reading"),
    ("controllers", "optimizers"),
    ("estimators", "objectives", "networks"),
    ("distributed", "dense", "head"),
    ("scoring", "sampling"),
    ("rewards", "data"),
    ("environments",),
    ("serving",),
    ("rollouts",),
    ("methods",),
    ("training",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# What others import into their own code depends on nothing else of ours, and on none of these packages.
PURE = ("estimators", "objectives")
PURE_PACKAGES = {"jax", "chex", "optax", "numpy", "flax"}
HEAVY = {
    "tensorflow_datasets",
    "tensorflow",
    "reasoning_gym",
    "math_verify",
    "transformers",
    "torch",
    "tokenizers",
    "sentencepiece",
}


def wrong_arrows(package: pathlib.Path = PACKAGE) -> list[str]:
    """One line for each import that the architecture forbids."""
    places = {path: path.relative_to(package).with_suffix("").parts for path in sorted(package.rglob("*.py"))}
    lines = {path: list(imports(ast.parse(path.read_text()), (package.name, *place[:-1]))) for path, place in places.items()}
    loaded_early = {module for found in lines.values() for _, module, top_level in found if top_level}
    faults = []
    for path, place in places.items():
        where = f"{package.name}/{path.relative_to(package)}"
        if place[0] not in LEVEL:
            faults.append(f"{where}: room {place[0]!r} has no place in the architecture")
            continue
        name = ".".join((package.name, *place))
        early = not is_late(name, loaded_early)
        for line, module, top_level in lines[path]:
            fault = judge(place[0], module.split("."), top_level and early, package.name)
            if fault:
                faults.append(f"{where}:{line}: {fault}")
    return list(dict.fromkeys(faults))


def is_late(name: str, loaded_early: set[str]) -> bool:
    """Whether a private module, such as one with a subclass of a heavy package, is imported only inside functions."""
    private = name.count(".") > 1 and not name.endswith("__init__")
    return private and not any(module == name or module.startswith(name + ".") for module in loaded_early)


def judge(room: str, module: list[str], early: bool, package: str) -> str | None:
    """What is wrong with an import of `module` in `room`; None where nothing is."""
    if module[0] != package:
        if module[0] in HEAVY and early:
            return f"imports {module[0]} at the top of the module; import it in the function that uses it"
        known = module[0] in PURE_PACKAGES or module[0] in sys.stdlib_module_names
        return None if room not in PURE or known else f"{room} imports {module[0]}"
    target = module[1] if len(module) > 1 else "__init__"
    if target == room:
        return None
    if target not in LEVEL:
        return f"imports {'.'.join(module)}, which is no room of the architecture"
    if LEVEL[target] >= LEVEL[room]:
        return f"{room} must not import {target}"
    return None


def imports(tree: ast.Module, package: tuple[str, ...]):
    """Yields (line, dotted name, whether it runs when the module is imported) for each import in `tree`."""
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    unread = never_run(tree)
    for node in (node for node in ast.walk(tree) if id(node) not in unread):
        top_level = id(node) not in inside_functions
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name, top_level
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            for name in node.names:
                yield node.lineno, ".".join((*above, *([node.module] if node.module else []), name.name)), top_level


def never_run(tree: ast.Module) -> set[int]:
    """What stands behind `if TYPE_CHECKING:`, by id."""
    checked = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {id(node) for branch in checked for statement in branch.body for node in ast.walk(statement)}


def test_no_wrong_arrows():
    assert wrong_arrows() == []


def test_a_wrong_arrow_is_found(tmp_path):
    """Each kind of fault in a small copy of the house."""
    package = tmp_path / "jaxrl_llm"
    files = {
        "types.py": "from jaxrl_llm.compose import x\n",
        "estimators/base.py": "from jaxrl_llm import objectives\n",
        "networks/convert.py": "import torch\n",
        "networks/late.py": "import torch\n",
        "networks/__init__.py": "from jaxrl_llm.networks.convert import f\ndef g():\n    from jaxrl_llm.networks import late\n",
        "objectives/base.py": "from jaxrl_llm.types import Batch\nimport rich\nimport optax\n",
        "data/chat.py": "def f():\n    import transformers\n    from jaxrl_llm.rollouts import g\n",
        "training/loop.py": "from . import state\nfrom ..cli import main\nfrom jaxrl_llm.methods import get\n",
        "extra/thing.py": "",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert wrong_arrows(package) == [
        "jaxrl_llm/data/chat.py:3: data must not import rollouts",
        "jaxrl_llm/estimators/base.py:1: estimators must not import objectives",
        "jaxrl_llm/extra/thing.py: room 'extra' has no place in the architecture",
        "jaxrl_llm/networks/convert.py:1: imports torch at the top of the module; import it in the function that uses it",
        "jaxrl_llm/objectives/base.py:2: objectives imports rich",
        "jaxrl_llm/training/loop.py:2: training must not import cli",
        "jaxrl_llm/types.py:1: types must not import compose",
    ]


def test_importing_the_algebra_loads_nothing_heavy():
    """Nor does it load rooms that estimators and objectives do not need."""
    program = (
        "import sys, jaxrl_llm, jaxrl_llm.estimators, jaxrl_llm.objectives\n"
        "print(*sorted(name.split('.')[0] for name in sys.modules))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('jaxrl_llm.')))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    packages, ours = (set(line.split()) for line in output.stdout.splitlines())
    assert not packages & HEAVY
    assert {name.split(".")[1] for name in ours} <= {"types", "compose", "numerics", *PURE}


def test_importing_everything_loads_nothing_heavy():
    program = "import sys, jaxrl_llm.cli, jaxrl_llm.training\nprint(*{name.split('.')[0] for name in sys.modules})"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert not set(output.stdout.split()) & HEAVY


if __name__ == "__main__":
    faults = wrong_arrows()
    print("\n".join(faults) or "no wrong arrows")
    sys.exit(bool(faults))
