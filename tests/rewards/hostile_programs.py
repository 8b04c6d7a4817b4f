"""Programs that attack the sandbox or the verdict. None of them computes what the tests want, `f(x) == x * x + 1`."""

# What succeeds in something that it must not prints this as a line.
SUCCESS = "ESCAPED"

_CTYPES = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_WRONG = "def f(x): return 0\n"

# Each finds SECRET (a file), VARIABLE (of the environment) and PORT (of a server) defined, tries something, and prints SUCCESS
# where it works; an exception, a kill or the deadline is a failure to escape.
ESCAPES = {
    "passwords": "print(open('/etc/passwd').read() and 'ESCAPED')",
    "shadow": "print(open('/etc/shadow').read() and 'ESCAPED')",
    "home": """\
import os
for path in ('/root', '/home', os.path.expanduser('~')):
    if os.path.exists(path) and os.listdir(path): print('ESCAPED')""",
    "folder of the run": "import os\nprint('ESCAPED' if os.path.exists(SECRET) else '')",
    "link to a secret": "import os\nos.symlink(SECRET, 'link')\nprint(open('link').read() and 'ESCAPED')",
    "hard link": "import os\nos.link('/python/bin/python', 'python')\nprint('ESCAPED')",
    "above the root": "print(open('/../../..' + SECRET).read() and 'ESCAPED')",
    "other processes": """\
import os
if any(name.isdigit() and int(name) > 3 for name in os.listdir('/proc')): print('ESCAPED')""",
    "memory of the parent": "print(open('/proc/1/mem', 'rb').read(1) and 'ESCAPED')",
    "environment": "import os\nif VARIABLE in os.environ: print('ESCAPED')",
    "write to the system": "open('/usr/lib/x', 'w'); print('ESCAPED')",
    "write to Python": "import os\nopen(os.path.join(os.path.dirname(os.__file__), 'x.py'), 'w'); print('ESCAPED')",
    "write to the root": "open('/x', 'w'); print('ESCAPED')",
    "write to devices": "open('/dev/x', 'w'); print('ESCAPED')",
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1); print('ESCAPED')",
    "udp": """\
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)); print('ESCAPED')""",
    "listening": "import socket\ns = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); print('ESCAPED')",
    "unix sockets": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0x'); print('ESCAPED')",
    "raw sockets": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('ESCAPED')",
    "names": "import socket\nsocket.getaddrinfo('example.org', 80); print('ESCAPED')",
    "root": "import os\nos.setuid(0); print('ESCAPED')\n",
    "a group": "import os\nos.setgid(0); print('ESCAPED')\n",
    "capabilities": _CTYPES + "if libc.prctl(23, 21, 0, 0, 0) == 1 and libc.prctl(47, 2, 21, 0, 0) == 0: print('ESCAPED')",
    "mount": _CTYPES + "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('ESCAPED')",
    "remount": _CTYPES + "if libc.mount(b'none', b'/', None, 32, None) == 0: print('ESCAPED')",
    "unmount": _CTYPES + "if libc.umount2(b'/tmp', 2) == 0: print('ESCAPED')",
    "chroot": "import os\nos.mkdir('a'); os.chroot('a'); print('ESCAPED')",
    "namespaces": _CTYPES + "if libc.unshare(0x10000000) == 0: print('ESCAPED')",
    "namespaces by clone": _CTYPES + "if libc.syscall(56, 0x10000011, 0, 0, 0, 0) >= 0: print('ESCAPED')",
    "new calls": _CTYPES + "if libc.syscall(425, 8, ctypes.create_string_buffer(200)) >= 0: print('ESCAPED')",
    "trace": _CTYPES + "if libc.ptrace(16, 1, 0, 0) == 0 or libc.ptrace(0, 0, 0, 0) == 0: print('ESCAPED')",
    "read a process": _CTYPES + "if libc.process_vm_readv(1, None, 0, None, 0, 0) >= 0: print('ESCAPED')",
    "perf": _CTYPES + "if libc.syscall(298, None, 0, -1, -1, 0) >= 0: print('ESCAPED')",
    "keys": _CTYPES + "if libc.syscall(248, b'user', b'x', b'y', 1, -3) >= 0: print('ESCAPED')",
    "calls of x32": _CTYPES + "if libc.syscall(0x40000000 + 57) >= 0: print('ESCAPED')",
    "device": "import os, stat\nos.mknod('d', stat.S_IFBLK | 0o666, os.makedev(8, 0)); print('ESCAPED')",
    "terminal": """\
import fcntl, termios
for c in b'ls\\n': fcntl.ioctl(0, termios.TIOCSTI, bytes([c]))
print('ESCAPED')""",
    "kill all": """\
import os, signal
for process in (-1, 1, os.getppid()):
    try: os.kill(process, signal.SIGKILL)
    except OSError: pass
""",
    "shell": "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])",
    "system": "import os\nif os.system('echo') == 0: print('ESCAPED')",
    "subprocess": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(\"ESCAPED\")'])",
    "descriptors": """\
import os
for number in range(3, 64):
    try:
        if os.write(number, b'[true]\\n'): print('ESCAPED')
    except OSError: pass""",
    "higher limits": """\
import resource as r
for kind in (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_NPROC, r.RLIMIT_NOFILE, r.RLIMIT_FSIZE):
    try: r.setrlimit(kind, (10**12, 10**12)); print('ESCAPED')
    except (ValueError, OSError): pass""",
    "higher priority": "import os\nos.nice(-5); print('ESCAPED')",
    "real time": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); print('ESCAPED')",
}

# Each takes all that it gets of something; what it gets of it is bounded.
EXHAUSTIONS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork": "import os\nif os.fork() >= 0: print('ESCAPED')",
    "vfork by spawn": """\
import os
os.posix_spawn('/python/bin/python', ['python', '-c', 'pass'], {}); print('ESCAPED')""",
    "child that outlives": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(600)",
    "threads": """\
import threading, time
threading.stack_size(32768)
count = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); count += 1
except RuntimeError: pass
print('ESCAPED' if count > 64 else count, flush=True)
import os
os._exit(0)""",
    "memory": "held = []\nwhile True: held.append(bytearray(2**24))",
    "memory within": "try:\n    x = bytearray(2**31); print('ESCAPED')\nexcept MemoryError: pass",
    "mapped memory": "import mmap\nheld = [mmap.mmap(-1, 2**24) for _ in range(100)]\nprint('ESCAPED')",
    "memory of nobody": "import os\nos.memfd_create('x'); print('ESCAPED')",
    "shared memory": _CTYPES + "if libc.shmget(0, 2**20, 0o1666) >= 0: print('ESCAPED')",
    "shared memory of multiprocessing": """\
from multiprocessing import shared_memory
shared_memory.SharedMemory(create=True, size=2**20); print('ESCAPED')""",
    "disk": "import os\nf = open('x', 'wb')\nfor _ in range(64): f.write(bytes(2**20))\nprint('ESCAPED')",
    "disk in parts": """\
import os
for number in range(64): open(str(number), 'wb').write(bytes(2**20))
print('ESCAPED')""",
    "disk elsewhere": """\
import os
for path in ('/dev/shm', '/var/tmp', '/run', '/dev', '/'):
    try: open(path + '/x', 'wb'); print('ESCAPED')
    except OSError: pass""",
    "open files": """\
held = []
try:
    while True: held.append(open('/dev/null'))
except OSError: pass
if len(held) > 64: print('ESCAPED')""",
    "output": "while True: print('x' * 100000)",
    "output of errors": "import sys\nwhile True: sys.stderr.write('x' * 100000)",
    "output without end of line": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "endless": "while True: pass",
    "sleep": "import time\ntime.sleep(600)",
    "ignored signals": """\
import signal
for number in signal.valid_signals():
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""",
    "blocked signals": """\
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
time.sleep(600)""",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "closed output": "import os, time\nos.close(1); os.close(2)\ntime.sleep(600)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef g(x): return g(x) + 1\ng(0)",
    "recursion in C": "x = []\nfor _ in range(10**6): x = [x]\nprint(repr(x)[:1])",
    "nested source": "x = " + "(" * 5000 + ")" * 5000,
    "whole numbers": "x = 7 ** (10 ** 9)",
    "texts": "x = 'a' * 10**10",
    "expression": "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')",
    "crash": "import ctypes\nctypes.string_at(0)",
    "end of the line": "x = 1\x00",
    "half characters": "print('\ud800')",
    "no exit": "import atexit, time\natexit.register(time.sleep, 600)",
    "endless error": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "what reads waits": "import os\nr, w = os.pipe()\nos.read(r, 1)",
}

# Each wants `f(3) == 10` and `f(4) == 17` to hold without knowing them.
FORGERIES = {
    "nothing": "",
    "wrong": _WRONG,
    "exit": _WRONG + "import sys\nsys.exit(0)",
    "exit at once": _WRONG + "import os\nos._exit(0)",
    "exit within": "import os\ndef f(x): os._exit(0)",
    "exception": "def f(x): raise SystemExit(0)",
    "no assert": "def f(x): raise AssertionError",
    "stop": "def f(x): raise StopIteration",
    "printed verdict": _WRONG + "print('{\"cases\": [true, true]}')\nprint('[true, true]')",
    "written verdict": _WRONG
    + """\
import os
for number in range(64):
    try: os.write(number, b'{"cases": [true, true]}\\n' * 3)
    except OSError: pass""",
    "written answers": _WRONG
    + """\
import os
for number in range(3, 64):
    try: os.write(number, b'[true, true]\\n' * 9)
    except OSError: pass""",
    "equal to all": """\
class A:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def f(x): return A()""",
    "number equal to all": """\
class A(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return A(0)""",
    "text equal to all": """\
class A(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(x): return A('')""",
    "kind of kinds": """\
class M(type):
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class A(metaclass=M): pass
def f(x): return A""",
    "not a number": "def f(x): return float('nan')",
    "own check": _WRONG + "def check(candidate): pass\ncandidate = check\n__case__ = lambda test: True",
    "own built-ins": _WRONG
    + """\
import builtins
builtins.AssertionError = Exception
builtins.bool = lambda x: True
builtins.all = lambda x: True""",
    "own built-ins by name": _WRONG + "def bool(x): return True\ndef eval(*a): return 10\ndef __build_class__(*a): return 10",
    "own json": _WRONG + "import json\njson.dumps = lambda *a, **k: '{\"cases\": [true, true]}'",
    "own pack": _WRONG
    + """\
import sys
frame = sys._getframe()
while frame.f_back: frame = frame.f_back
names = frame.f_globals.get('names', frame.f_globals)
names['pack'] = lambda value, keep: True""",
    "tests on the stack": """\
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values()]:
            if isinstance(value, str) and 'assert' in value: return int(value.split('==')[1])
        frame = frame.f_back
    return 0""",
    "tests in memory": """\
import gc, re
def f(x):
    for value in gc.get_objects():
        found = re.search(r'assert f\\(%d\\) == (\\d+)' % x, repr(value)[:9999])
        if found: return int(found[1])
    return 0""",
    "tests in files": """\
import os, re
def f(x):
    for folder, _, names in [*os.walk('/tmp'), *os.walk('/dev'), *os.walk('/proc')]:
        for name in names:
            try: found = re.search(r'f\\(%d\\) == (\\d+)' % x, open(os.path.join(folder, name)).read(99999))
            except (OSError, UnicodeDecodeError): continue
            if found: return int(found[1])
    return 0""",
    "traced": _WRONG
    + """\
import sys
def t(frame, event, argument):
    frame.f_trace_opcodes = True
    return t
sys.settrace(t); sys.setprofile(t)""",
    "at exit": _WRONG + "import atexit, os\natexit.register(lambda: os.write(1, b'{\"cases\": [true, true]}'))",
    "imports": _WRONG
    + """\
import sys, types
class H:
    def find_spec(self, *a): sys.exit(0)
sys.meta_path.insert(0, H())
for name in ('ast', 'json', 'random', 'math'): sys.modules[name] = types.ModuleType(name)""",
    "small numbers": """\
import ctypes
def f(x):
    ctypes.memmove(id(10) + 24, id(0) + 24, 4); ctypes.memmove(id(17) + 24, id(0) + 24, 4)
    return 0""",
    "truth": "import ctypes\nctypes.memmove(id(False) + 24, id(True) + 24, 4)\ndef f(x): return 0\n",
    "another signal": _WRONG + "import os, signal\nos.kill(os.getppid(), signal.SIGUSR1)\nos.kill(1, signal.SIGTERM)",
    "endless answer": "def f(x):\n    import os\n    while True: os.write(3, b'1' * 65536)",
    "endless answers": """\
import os
while True:
    for number in range(3, 16):
        try: os.write(number, b'[true, 0]\\n' * 999)
        except OSError: pass""",
    "large answer": "def f(x): return [0] * 10**8",
    "deep answer": "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "answer of itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "hanging answer": "import time\ndef f(x): time.sleep(600)",
    "hanging program": "while True: pass",
    "answer that hangs": "class A(dict):\n    def items(self):\n        while True: pass\ndef f(x): return A(a=1)",
    "descriptors in a message": """\
import os, socket, array
s = socket.socket(fileno=3)
try: s.sendmsg([b'[true, 0]\\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0]))])
except OSError: pass
def f(x): return 0
""",
    "changed argument": "def f(x):\n    x = 0\n    return x",
    "answers of other shapes": """\
import os
os.write(3, b'{}\\n[]\\n[true]\\n[true, {"kept": "open"}]\\n[true, {"int": 5}]\\nnull\\n[1, 10]\\n')
def f(x): return 0
""",
    "deep line": "import os\nos.write(3, b'[' * 10**6 + b'\\n')\ndef f(x): return 0\n",
}
