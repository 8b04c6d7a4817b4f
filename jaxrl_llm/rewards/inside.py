"""What runs within the sandbox: programs, and the tests of what they answer. `sandbox` sends this module there as code.

A program and its tests are never in one process. The tests know the expected values and say the verdict; all that they have of
the program are lines of JSON with plain values that its functions returned. Whatever a program does to its own interpreter, it
can only choose what it answers. Nothing of the package is imported here, and for programs nothing that is slow to import, as
the module json is.
"""

import builtins
import marshal
import os
import resource
import sys

READY = b"1"
MOST_LINE = 2**22  # bytes of a value that a program answers
FILE = "/tmp/program.py"
_PLAIN = (bool, int, float, str, bytes, complex, list, tuple, set, frozenset, dict)
_CASE = "__case__"  # what an assert of the tests becomes a call of


def begin(channel: int, user: int, limits: dict[str, int], function: str, arguments: list) -> None:
    """Gives up what a program must not have, says that it is ready, and goes on with a function of this module.

    Args:
      channel: descriptor of a socket to whoever started the sandbox.
      user: number of the user to become; 0 to stay who one is.
      limits: soft and hard limit of each resource by its name in the module `resource`.
      function: its name.
      arguments: of it, behind the channel.
    """
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for name, value in limits.items():
        _set_limit(getattr(resource, name), value)
    os.write(channel, READY)
    globals()[function](channel, *arguments)


def _set_limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


# ---- the program's side


def execute(channel: int, texts: list[str]) -> None:
    """Runs a program as the main module; an exception is told as Python tells it."""
    os.close(channel)
    try:
        exec(_compiled(texts), {"__name__": "__main__", "__file__": FILE, "__builtins__": builtins})
    except Exception as error:
        places = error.__traceback__
        while places is not None and places.tb_frame.f_code.co_filename != FILE:
            places = places.tb_next
        sys.excepthook(type(error), error.with_traceback(places), places)
        raise SystemExit(1) from None


def answer(channel: int, texts: list[str]) -> None:
    """Runs a program, then works on what it defined as it is asked to on the channel, until that is closed."""
    names = {"__name__": "program", "__file__": FILE, "__builtins__": builtins}
    kept: list = []

    def keep(value):
        kept.append(value)
        return {"kept": len(kept) - 1}

    def find(place):
        return eval(place, names) if isinstance(place, str) else kept[place]

    operations = {
        "call": lambda function, *arguments, **named: function(*arguments, **named), "get": getattr, "set": setattr,
        "item": lambda value, key: value[key], "truth": bool, "length": len, "iterator": iter, "next": next,
    }  # fmt: skip
    code = _compiled(texts)
    with open(channel, "rb", closefd=False) as asked, open(channel, "wb") as told:
        exec(code, names)
        while True:
            request = marshal.load(asked)
            try:
                operation, arguments, named = unpack(request, find)
                reply = [True, pack(operations[operation](*arguments, **named), keep)]
            except BaseException as error:
                known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
                reply = [False, [known, str(error)[:1000]]]
            told.write(_json(reply).encode() + b"\n")
            told.flush()


def _compiled(texts: list[str]):
    """The first of the texts that is a program, compiled, and in a file for tracebacks; the error of the last if none is."""
    for text in texts:
        try:
            code = compile(text, FILE, "exec")
        except Exception as error:
            fault = error
        else:
            try:
                with open(FILE, "w", encoding="utf-8", errors="replace") as file:
                    file.write(text)
            except OSError:  # noqa: SIM105  the module contextlib is slow to import
                pass
            return code
    raise fault.with_traceback(None)


def pack(value, keep):
    """A value as JSON holds it exactly, by its plain base; what is no plain value is what `keep` makes of it."""
    kind = next((kind for kind in _PLAIN if isinstance(value, kind)), None)
    if value is None or kind in (bool, float, str):
        return value if kind in (None, bool) else kind(value)
    if kind is int:
        return int(value) if -(2**63) < value < 2**63 else {"int": hex(value)}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is list:
        return [pack(item, keep) for item in value]
    if kind is dict:
        return {"dict": [[pack(key, keep), pack(item, keep)] for key, item in value.items()]}
    return keep(value) if kind is None else {kind.__name__: [pack(item, keep) for item in value]}


_NAMES = {"None": "null", "True": "true", "False": "false", "nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _json(value) -> str:
    """The text of what `pack` gives."""
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(_json(key) + ":" + _json(item) for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return _NAMES.get(repr(value), repr(value))
    if value.isascii() and value.isalnum():
        return f'"{value}"'
    units = memoryview(value.encode("utf-16", "surrogatepass")[2:]).cast("H")
    return '"' + "".join(map("\\u{:04x}".format, units)) + '"'


def unpack(value, kept):
    """What `pack` packed; `kept` gives what stands for a number. May raise anything for what no `pack` made."""
    if isinstance(value, list):
        return [unpack(item, kept) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    if kind == "dict":
        return {unpack(key, kept): unpack(item, kept) for key, item in inner}
    if kind in ("tuple", "set", "frozenset"):
        return getattr(builtins, kind)(unpack(item, kept) for item in inner)
    makers = {
        "kept": kept,
        "int": lambda digits: int(digits, 16),
        "bytes": bytes.fromhex,
        "complex": lambda parts: complex(*parts),
    }
    return makers[kind](inner)


# ---- the side of the tests


class Fault(BaseException):
    """What is wrong with the tests themselves, whatever the program is."""


def _method(operation: str):
    return lambda self, *arguments, **named: self._asked(operation, self, *arguments, **named)


class Remote:
    """Something that the program holds: it can be called and read, and equals nothing else, since only plain values do."""

    __slots__ = ("_asked", "_place")
    __call__, __getitem__, __bool__, __len__ = map(_method, ("call", "item", "truth", "length"))
    __iter__, __next__ = map(_method, ("iterator", "next"))

    def __init__(self, asked, place):
        """`place` is the name of it, or the number under which the program keeps it."""
        object.__setattr__(self, "_asked", asked)
        object.__setattr__(self, "_place", {"kept": place})

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._asked("get", self, name)

    def __setattr__(self, name, value):
        self._asked("set", self, name, value)


def judge(channel: int) -> None:
    """Answers requests until the channel is closed: each comes with the other end of a program's and has a fork of its own."""
    import ast  # noqa: F401  once for all forks
    import json
    import random
    import socket

    random.seed(0)  # tests that draw at random draw the same for all programs
    server = socket.socket(fileno=channel)
    while True:
        header, descriptors, _, _ = socket.recv_fds(server, 8, 1)
        if not header:
            return
        request = server.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL)
        child = os.fork()
        if child == 0:
            server.sendall(json.dumps(_judged(descriptors[0], **json.loads(request))).encode() + b"\n")
            os._exit(0)
        os.close(descriptors[0])
        if os.waitpid(child, 0)[1]:
            server.sendall(b'{"cases": [false]}\n')  # an answer so large that reading it took all that a fork may have


def _judged(descriptor: int, seconds: int, **tests) -> dict:
    _set_limit(resource.RLIMIT_CPU, seconds)
    try:
        return {"cases": cases_of(_asker(descriptor), **tests)}
    except Fault as fault:
        return {"fault": str(fault)}


def _asker(descriptor: int):
    """`asked(operation, *arguments, **named)`, which the program at the other end of a socket answers, or fails to."""
    import json
    import socket

    program = socket.socket(fileno=descriptor)
    told = program.makefile("rb")

    def ours(value):
        if isinstance(value, Remote):
            return value._place
        raise Fault(f"they give the program a {type(value).__name__}; give plain values, or what the program made")

    def asked(operation, *arguments, **named):
        program.sendall(marshal.dumps(pack([operation, list(arguments), named], ours)))
        line = told.readline(MOST_LINE)
        if not line.endswith(b"\n"):
            raise ConnectionError("the program ended, or answered too much")
        done, value = unpack(json.loads(line), lambda number: Remote(asked, int(number)))
        if done is True:
            return value
        kind = getattr(builtins, value[0], None)
        raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(value[1])

    return asked


def cases_of(asked, *, helpers: str, setup: str, tests: list[str], entry: str | None) -> list[bool]:
    """Whether each assert of the tests holds, in the order in which they run; one that raises does not.

    Where something else than an assert raises, the text that it stands in is one case that does not hold.

    Args:
      asked: as `_asker` makes it.
      helpers: a program with what the tests of an `entry` may use beside it; left aside where it is none.
      setup: code in front of the tests.
      tests: texts with asserts; of an `entry` they define `check(candidate)`.
      entry: name of the program's function that `check` is given; None where the tests name what they call.

    Raises Fault: the tests are not what is said here.
    """
    import ast

    cases: list[bool] = []
    own = {"__name__": "tests", "__builtins__": builtins, _CASE: lambda value: cases.append(bool(value))}
    names = _defined(helpers, own)
    try:
        prepared, *trees = [ast.parse(text) for text in [setup, *tests]]
        wanted = {entry} if entry else _wanted([prepared, *trees], names)
        codes = [compile(_counted(tree), "tests", "exec") for tree in trees]
    except (SyntaxError, ValueError) as error:
        raise Fault(f"they are no Python: {error}") from error
    names |= {name: Remote(asked, name) for name in wanted}
    try:
        exec(compile(prepared, "setup", "exec"), names)
    except Exception as error:
        if not _loaded(prepared) & wanted:
            raise Fault(f"their setup raises {type(error).__name__}: {error}") from error
        return [False] * len(codes)
    for code in codes:
        before = len(cases)
        try:
            exec(code, names)
            if entry:
                names["check"](names[entry])
        except Exception as error:
            if entry and "check" not in names:
                raise Fault(f"they define no check(candidate): {type(error).__name__}: {error}") from error
            cases[before:] = [False]
    if not cases:
        raise Fault("they assert nothing")
    return cases


def _defined(helpers: str, names: dict) -> dict:
    """Names with those that the helpers define; without where they are no program, such as a prompt in words."""
    found = dict(names)
    try:
        exec(compile(helpers, "helpers", "exec"), found)
    except Exception:
        return names
    return found


def _wanted(trees: list, names: dict) -> set[str]:
    """Names that the tests want of the program; modules of Python among them are the tests' own.

    Programs may define built-in names, but tests that name anything else mean Python's own by them: else a program could say
    what `len` and `sorted` are for its tests.
    """
    import ast

    nodes = [node for tree in trees for node in ast.walk(tree)]
    loaded = set().union(*map(_loaded, trees))
    own = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)} | names.keys()
    own |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)) and node.name}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    read = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = (loaded - own) & read & sys.stdlib_module_names
    names |= {name: __import__(name) for name in modules}
    wanted = loaded - own - modules
    return wanted - set(dir(builtins)) or wanted


def _loaded(tree) -> set[str]:
    import ast

    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _counted(tree):
    """The tests with each assert in a `try` that makes a case of it, whether it holds, does not or raises."""
    import ast

    def case(value):
        return ast.Expr(ast.Call(ast.Name(_CASE, ast.Load()), [value], []))

    def made(statement):
        if not isinstance(statement, ast.Assert):
            return statement
        failed = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [case(ast.Constant(False))])
        return ast.copy_location(ast.Try([case(statement.test)], [failed], [], []), statement)

    for node in list(ast.walk(tree)):
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [made(each) for each in value])
    return ast.fix_missing_locations(tree)
