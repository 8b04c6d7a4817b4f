"""Errors of the system and of libraries in the words of a user: what happened, to which file, and the mend."""

import errno
import re
import sys

_MENDS = {
    errno.ENOENT: "check the path",
    errno.EACCES: "give yourself the right to it, or choose another place",
    errno.EPERM: "give yourself the right to it, or choose another place",
    errno.EROFS: "the file system cannot be written to; choose another place",
    errno.ENOSPC: "free some space; the same command resumes a run",
    errno.EDQUOT: "free some space; the same command resumes a run",
    errno.EFBIG: "free some space, or raise the limit; the same command resumes a run",
    errno.ENOTDIR: "a folder is needed where a file is; choose another place",
    errno.EEXIST: "it is in the way; choose another place",
    errno.EISDIR: "a file is needed where a folder is; check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the number of open files, `ulimit -n`",
    errno.ENOMEM: "use fewer processes or a smaller model",
    errno.EIO: "the disk or the network to it failed; the same command resumes a run",
    errno.ESTALE: "the disk or the network to it failed; the same command resumes a run",
}
# Packages that come with an extra of ours.
_EXTRAS = dict.fromkeys(("array_record", "pyarrow", "reasoning_gym", "sentencepiece", "tensorflow_datasets"), "jaxrl_llm[data]")
_OF_DISKS = "check the path and the disk"
_MEMORY = "use fewer rows at a time (rl.micro_batches, evaluation.batch), shorter ones, or a smaller model"
LONGEST = 2000


def explain(error: BaseException) -> str | None:
    """One line about an error that a user can mend; None for one that is a fault of the program."""
    text = _text(error)
    if text is None:
        return None
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _text(error: BaseException) -> str | None:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error}"
    if isinstance(error, ValueError):
        return str(error) + _mend_of_store(str(error))
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {str(error) or 'the system has no more'}; {_MEMORY}"
    if isinstance(error, ModuleNotFoundError):
        return _of_import(error)
    if isinstance(error, RecursionError):
        return None
    if _is_of_jax(error):
        head = "out of memory of the device: " if "RESOURCE_EXHAUSTED" in str(error) else "JAX failed: "
        mend = f"; {_MEMORY}" if "RESOURCE_EXHAUSTED" in str(error) else "; --debug shows where"
        return head + str(error).strip().partition("\n")[0] + mend
    return None


def _mend_of_store(text: str) -> str:
    """What errors of TensorStore, which writes checkpoints, say of the system."""
    code = re.search(r"os_error_code='(\d+)'", text)
    return f"; {_MENDS.get(int(code[1]), _OF_DISKS)}" if code else ""


def _of_system(error: OSError) -> str:
    if error.errno is None:  # raised by a program, with words of its own
        return str(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " -> ".join(names) + ": " if names else ""
    cause = error.strerror or str(error)
    return f"{where}{cause}; {_MENDS.get(error.errno, _OF_DISKS)}"


def _of_import(error: ModuleNotFoundError) -> str | None:
    missing = (error.name or "").partition(".")[0]
    if missing == "jaxrl_llm":
        return None
    return f"the package {missing or error} is not installed; try: pip install '{_EXTRAS.get(missing, missing)}'"


def _is_of_jax(error: BaseException) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
