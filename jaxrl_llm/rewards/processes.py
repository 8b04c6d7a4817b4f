"""The workers of the pool: processes and threads, what they are told and what they say, and how they end."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from jaxrl_llm.rewards import worker as protocol

_SERVE = "import sys; from jaxrl_llm.rewards.worker import serve; serve(*map(int, sys.argv[1:]))"
# A signal at the death of the parent would reach a worker alone, not the children of its reward, and would come when the
# thread that started it ends. The end of a pipe comes however the program ends, and a process group has them all.
_GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class Channel:
    """The pool's end of a pipe to a worker. Neither side ever waits for the other to read."""

    def __init__(self, pipe: socket.socket):
        self._pipe = pipe
        self._unread = bytearray()
        self._sending: threading.Thread | None = None

    def fileno(self) -> int:
        return self._pipe.fileno()

    def send(self, request: bytes) -> None:
        """Begins to send; a worker that dies meanwhile, or does not read, shows at the reading end."""
        self._sending = threading.Thread(target=self._send, args=(request,), daemon=True)
        self._sending.start()

    def _send(self, request: bytes) -> None:
        with contextlib.suppress(OSError):
            self._pipe.sendall(len(request).to_bytes(protocol.HEADER_BYTES, "big"))
            self._pipe.sendall(request)

    def has_line(self) -> bool:
        """Whether there is a whole line that was read already."""
        return b"\n" in self._unread

    def line(self, most: int) -> bytes | None:
        """The next line, or None where it has not arrived.

        Raises:
          EOFError: the other end was closed.
          ValueError: more than `most` bytes without an end of a line.
        """
        if not self.has_line():
            try:
                piece = self._pipe.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                raise EOFError from error
            if not piece:
                raise EOFError
            self._unread += piece
        line, end, rest = self._unread.partition(b"\n")
        if len(line) > most:
            raise ValueError(f"a line of more than {most} bytes")
        if not end:
            return None
        self._unread = rest
        return bytes(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.shutdown(socket.SHUT_RDWR)  # wakes the thread that sends
        if self._sending is not None:
            self._sending.join()
        self._pipe.close()


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process or a thread: where its messages arrive, and how to be rid of it."""

    channel: Channel
    end: Callable[[], None] = lambda: None

    def stop(self) -> None:
        self.channel.close()
        self.end()


class Guard:
    """A process that outlives this one, however it ends, just long enough to end the workers and their children."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def watch(self, group: int) -> None:
        """From now on, this process group ends with us."""
        if self._process is None:
            command = [sys.executable, "-I", "-S", "-c", _GUARD]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """The group has ended: its number may become that of another."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
        self._process = None


def process_worker(guard: Guard, memory_bytes: int) -> Worker:
    """A fresh interpreter; 0 bytes stand for no limit."""
    ours, theirs = socket.socketpair()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        "JAX_PLATFORMS": "cpu",  # should a reward import JAX, it must not take the accelerator
    }
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno()), str(memory_bytes)],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to handle, and a kill takes the children of a reward along
        )
    guard.watch(process.pid)

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        guard.forget(process.pid)
        process.wait()

    return Worker(Channel(ours), end)


def thread_worker(name: str, reward: Callable, call: protocol.Call, by_row: bool) -> Worker:
    """A thread of this process, which works at once."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        # The pool closes its end when it gives a late thread up; what that thread sends then is of no interest.
        with contextlib.suppress(OSError), theirs:
            protocol.work(reward, call, by_row, lambda message: theirs.sendall(protocol.encode(message)), lambda: None)

    threading.Thread(target=run, name=f"reward {name}", daemon=True).start()
    return Worker(Channel(ours))
