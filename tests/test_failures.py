"""Errors of the system and of libraries, in one line with what is to be done."""

import errno
import os

import jax
import pytest

from jaxrl_llm import cli
from jaxrl_llm.failures import LONGEST, explain

STORE = "RESOURCE_EXHAUSTED: Error writing\n \"/w/x\": No space left on device [os_error_code='28']"


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/w/x"), ["/w/x: No space left on device; free some space"]),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/w"), ["/w: Read-only file system", "choose another place"]),
        (PermissionError(errno.EACCES, "Permission denied", "/w"), ["/w: Permission denied; give yourself the right"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/w"), ["/w: No such file or directory; check the path"]),
        (OSError(errno.ENOTDIR, "Not a directory", "/a", None, "/b"), ["/a -> /b: Not a directory"]),
        (OSError(errno.ENODEV, "No such device"), ["No such device; check the path and the disk"]),
        (FileNotFoundError("runs/x holds no policy"), ["runs/x holds no policy"]),
        (ValueError(STORE), ['"/w/x": No space left on device', "free some space; the same command resumes"]),
        (MemoryError(), ["out of memory: the system has no more; use fewer rows"]),
        (ModuleNotFoundError("No module named 'a'", name="a.b"), ["the package a is not installed; try: pip install 'a'"]),
        (ModuleNotFoundError(name="reasoning_gym"), ["pip install 'jaxrl_llm[data]'"]),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"),
            ["out of memory of the device: RESOURCE_EXHAUSTED: 9 GB; use"],
        ),
        (jax.errors.JaxRuntimeError("INTERNAL: x"), ["JAX failed: INTERNAL: x; --debug shows where"]),
        (ValueError("x" * 10**6), ["xxx..."]),
    ],
)
def test_one_line_with_the_mend(error, parts):
    line = explain(error)
    assert "\n" not in line and len(line) <= LONGEST and all(part in line for part in parts), line


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RecursionError(), ModuleNotFoundError(name="jaxrl_llm.x")])
def test_faults_of_the_program_stay_tracebacks(error):
    assert explain(error) is None


@pytest.mark.parametrize(
    ("arguments", "raised", "status", "told"),
    [
        ([], OSError(errno.ENOSPC, "No space left on device", "/w"), 2, "jaxrl-llm methods: /w: No space left on device; free"),
        ([], KeyboardInterrupt(), 130, "jaxrl-llm methods: interrupted"),
        (["--debug"], ValueError("no"), 2, "Traceback"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_the_verbs(arguments, raised, status, told, before, monkeypatch, capsys):
    def fail(*_):
        raise raised

    monkeypatch.setattr(cli, "_methods", fail)
    given = [*arguments, "methods"] if before else ["methods", *arguments]
    assert cli.main(given) == status
    error = capsys.readouterr().err
    assert told in error and ("Traceback" in error) == bool(arguments)
