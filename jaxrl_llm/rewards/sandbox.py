"""Programs that nobody trusts, in a sandbox: bubblewrap's namespaces, limits of the kernel, and a deadline.

A program sees the interpreter with its standard library and the system's shared libraries, read only, and a folder /tmp of its
own. It has no network, no other process, no environment and no descriptor but its standard ones and a pipe to us. One
process is one sandbox; it ends with whoever started it. Without bubblewrap nothing runs.
"""

import dataclasses
import fcntl
import functools
import json
import marshal
import math
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection
from typing import BinaryIO, NamedTuple

from jaxrl_llm.rewards import inside
from jaxrl_llm.rewards.system_calls import filter_program

START_SECONDS = 30.0  # until a sandbox is ready, on a machine that has much else to do
DISK_BYTES = 2**24  # of /tmp
MOST_THREADS, MOST_FILES = 64, 64
MOST_OUTPUT = 2**16  # bytes, of `run`
_JUDGE_MB = 2000  # address space of the tests in 1e6 bytes
_OF_THREAD = threading.local()
_GRACE_SECONDS = 5.0  # for the tests to take in that the program was ended
# Users that systemd gives to services for as long as they run: nobody's files are theirs.
_FIRST_USER, _USERS = 61184, 4336
_PYTHON = "/python"
_FOLDERS = ("/dev", "/etc", "/usr", _PYTHON, f"{_PYTHON}/bin")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LD_LIBRARY_PATH": f"{_PYTHON}/lib"}
_BOOT = (
    "import marshal, sys; channel = int(sys.argv[1]); file = open(channel, 'rb', closefd=False); "
    "code, given = marshal.load(file); names = {'__name__': 'inside'}; exec(code, names); del file; "
    "names['begin'](channel, *given)"
)


class SandboxError(RuntimeError):
    """A sandbox could not be had, or was lost, through no fault of the program in it."""


class Run(NamedTuple):
    """What a program wrote, and how it ended: "" for well, or else in words."""

    output: str
    fault: str


@dataclasses.dataclass(frozen=True)
class _Sandbox:
    """A process in a sandbox, and our end of its channel."""

    process: subprocess.Popen
    channel: socket.socket

    def close(self) -> None:
        self.process.kill()  # and with it all that it started
        self.process.wait()
        self.channel.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


def check() -> None:
    """Sees to it that there is a sandbox.

    Raises ValueError: bubblewrap is not installed, or cannot make namespaces here; the message says how to mend it.
    """
    try:
        _start("execute", [["pass"]], _limits(1, 512), stdout=subprocess.PIPE, stderr=subprocess.STDOUT).close()
    except SandboxError as error:
        raise ValueError(
            f"programs run in bubblewrap (0.5 or newer), which does not work here: {error}. Let users make namespaces "
            "(sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0, and "
            "user.max_user_namespaces above 0), and start a container with --privileged, or --cap-add=SYS_ADMIN "
            "--security-opt seccomp=unconfined"
        ) from error


def run(
    texts: Sequence[str], given: str = "", *, seconds: float = 4.0, memory_mb: int = 512, most_output: int = MOST_OUTPUT,
    errors: bool = False,
) -> Run:  # fmt: skip
    """Runs a program as a user would: what it reads is `given`, what it prints is kept.

    Args:
      texts: the first of them that compiles is the program.
      given: its standard input.
      seconds: of a processor that it may take; after twice as many by the clock it is ended.
      memory_mb: address space in 1e6 bytes.
      most_output: bytes; a program that writes more is ended.
      errors: keep what it writes to its standard error too, such as tracebacks.

    Raises SandboxError: there is no sandbox.
    """
    stderr = subprocess.STDOUT if errors else subprocess.DEVNULL
    with _sealed(given) as stdin:
        limits = _limits(seconds, memory_mb)
        sandbox = _start("execute", [list(texts)], limits, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)
    try:
        ends = time.monotonic() + 2 * seconds
        output, fault = _read(sandbox.process.stdout.fileno(), most_output, ends)
        return Run(output.decode("utf-8", "replace"), fault or _end_of(sandbox.process, ends))
    finally:
        sandbox.close()


def verdict(texts: Sequence[str], tests: dict, *, seconds: float = 4.0, memory_mb: int = 512) -> list[bool]:
    """Which asserts of tests a program satisfies, see `inside.cases_of`: none where it hangs or ends before them.

    Args:
      texts: the first of them that compiles is the program.
      tests: arguments of `inside.cases_of`.
      seconds: of a processor for the program, and again for the tests; after twice as many by the clock it is ended.
      memory_mb: address space of the program in 1e6 bytes.

    Raises:
      ValueError: the tests are at fault.
      SandboxError: there is no sandbox, or the tests went on when the program was ended.
    """
    judge, reply = _judge(), None
    program = _start("answer", [list(texts)], _limits(seconds, memory_mb))
    try:
        request = json.dumps(tests | {"seconds": math.ceil(seconds)}).encode()
        socket.send_fds(judge.channel, [len(request).to_bytes(8, "big")], [program.channel.fileno()])
        judge.channel.sendall(request)
        program.channel.close()
        if not connection.wait([judge.channel], 2 * seconds):
            program.close()
        reply = _reply(judge.channel)
    except (OSError, ValueError) as error:
        raise SandboxError(f"the tests gave no verdict: {error}") from error
    finally:
        program.close()
        if reply is None:
            judge.close()  # what it may yet say is said of this program
    if "fault" in reply:
        raise ValueError(f"the tests are at fault: {reply['fault']}; correct the columns of the tests")
    return reply["cases"]


def _judge() -> _Sandbox:
    """What works on the tests of this thread; the kernel ends what a thread started when that ends."""
    found = getattr(_OF_THREAD, "judge", None)
    if found is None or found.process.poll() is not None:
        limits = {name: value for name, value in _limits(0, _JUDGE_MB).items() if name not in ("RLIMIT_CPU", "RLIMIT_NPROC")}
        found = _OF_THREAD.judge = _start("judge", [], limits, second=True)
    return found


def _sealed(text: str) -> BinaryIO:
    """A file in memory that nobody can change."""
    file = os.fdopen(os.memfd_create("input", os.MFD_ALLOW_SEALING), "r+b")
    file.write(text.encode("utf-8", "surrogatepass"))
    file.seek(0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


def _start(
    function: str, arguments: list, limits: dict[str, int], *, second: bool = False, stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
) -> _Sandbox:  # fmt: skip
    """A sandbox in which a function of `inside` begins to work; a `second` one beside that of a program may fork."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxError("there is no command bwrap on PATH; apt-get install bubblewrap")
    # The limit of threads counts those of a user, and does not hold for root.
    user = _FIRST_USER + (2 * os.getpid() + second) % _USERS if os.geteuid() == 0 else 0
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with theirs, open(reading, "rb") as rules, open(writing, "wb") as written:
        written.write(filter_program(forks=second))
        written.close()
        command = [bubblewrap, "--seccomp", str(rules.fileno()), *_options(), str(theirs.fileno())]
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=_ENVIRONMENT, pass_fds=[theirs.fileno(), rules.fileno()],
            start_new_session=True,
        )  # fmt: skip
    sandbox = _Sandbox(process, ours)
    ours.settimeout(START_SECONDS)
    try:
        ours.sendall(marshal.dumps((_code(), (user, limits, function, arguments))))
        ready = ours.recv(1)
        ours.settimeout(None)  # the judge, which may be given it, waits
    except OSError:
        ready = b""
    if ready != inside.READY:
        process.kill()
        said = b"" if process.stdout is None else process.stdout.read(1000)
        sandbox.close()
        raise SandboxError(said.decode(errors="replace").strip().replace("\n", "; ") or "the sandbox did not start")
    return sandbox


@functools.cache
def _code():
    """The module `inside`, compiled by the interpreter that runs it."""
    path = pathlib.Path(inside.__file__)
    return compile(path.read_text(encoding="utf-8"), path.name, "exec")


@functools.cache
def _options() -> list[str]:
    """What bubblewrap is told for every sandbox, and the interpreter in it."""
    apart = ["--unshare-all"]
    if os.geteuid() == 0:  # users whom root becomes must not be users of a namespace where they are root
        apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        apart += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    folders = [option for path in _FOLDERS for option in ("--perms", "0755", "--dir", path)]
    # Python under a name of its own, since folders above it may be closed to all but their owner.
    places = {path: path for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")}
    places |= {f"{sys.base_prefix}/{name}": f"{_PYTHON}/{name}" for name in ("lib", sys.platlibdir)}
    places[os.path.realpath(sys.executable)] = f"{_PYTHON}/bin/python"
    seen = [option for path, place in places.items() for option in ("--ro-bind-try", path, place)]
    devices = [option for path in ("/dev/null", "/dev/urandom") for option in ("--dev-bind", path, path)]
    # Before version 0.7 bubblewrap knows no size, and there is no place to write to.
    sized = b" --size " in subprocess.run(["bwrap", "--help"], capture_output=True).stdout
    folder = ["--perms", "1777", "--size", str(DISK_BYTES), "--tmpfs", "/tmp"] if sized else ["--dir", "/tmp"]
    ended = ["--remount-ro", "/", "--chdir", "/tmp", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    interpreter = [f"{_PYTHON}/bin/python", "-P", "-s", "-S", "-B", "-c", _BOOT]
    return [*apart, *folders, *seen, *devices, *folder, *ended, "--", *interpreter]


def _limits(seconds: float, memory_mb: int) -> dict[str, int]:
    return {
        "RLIMIT_CPU": math.ceil(seconds), "RLIMIT_AS": memory_mb * 10**6, "RLIMIT_NPROC": MOST_THREADS,
        "RLIMIT_NOFILE": MOST_FILES, "RLIMIT_FSIZE": DISK_BYTES, "RLIMIT_MEMLOCK": 0,
        "RLIMIT_CORE": 1,  # with 0 there would be a dump where a program takes dumps
    }  # fmt: skip


def _reply(channel: socket.socket) -> dict:
    channel.settimeout(_GRACE_SECONDS)
    found = b""
    while not found.endswith(b"\n"):
        piece = channel.recv(1 << 16)
        if not piece:
            raise ConnectionError("they ended")
        found += piece
    return json.loads(found)


def _read(descriptor: int, most: int, ends: float) -> tuple[bytes, str]:
    """What is written into a pipe until it is closed, and what was wrong with that: too much, or too late."""
    found = b""
    while connection.wait([descriptor], max(0.0, ends - time.monotonic())):
        piece = os.read(descriptor, 1 << 16)
        found += piece
        if len(found) > most:
            return found[:most], f"it wrote more than {most} bytes"
        if not piece:
            return found, ""
    return found, _LATE


_LATE = "it took too long"


def _end_of(process: subprocess.Popen, ends: float) -> str:
    try:
        status = process.wait(max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        return _LATE
    killed = {128 + signal.SIGKILL: _LATE, 128 + signal.SIGSEGV: "its interpreter crashed"}
    return killed.get(status, f"it ended with status {status}") if status else ""
