"""Which calls of the kernel a program in the sandbox may make: a filter of seccomp, see seccomp(2) and filter.h of Linux.

The rest of the sandbox does not depend on it. It takes away what programs have no use for and the kernel's faults are found
in, and the ways round the limits: other processes, and memory that is nobody's address space.
"""

import platform
import struct

# Numbers on x86_64 and on aarch64, None where there is no such call (asm/unistd_64.h, asm-generic/unistd.h).
_REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "socket": (41, 198), "memfd_create": (319, 279), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282),
}  # fmt: skip
_FORKS = {"fork": (57, None), "vfork": (58, None)}
_CLONE = (56, 220)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
# Newer calls are unknown, as they are to Linux 5.0, and so are those of x32: libraries do without.
_FIRST_UNKNOWN = 424
_CLONE_THREAD = 0x10000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data
_ALLOW, _KILL, _ERROR, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000, 1, 38


def filter_program(forks: bool) -> bytes:
    """The filter in the form that the kernel takes; with `forks` a process may make others, else only threads.

    Raises ValueError: the machine is neither x86_64 nor aarch64.
    """
    if platform.machine() not in _MACHINES:
        raise ValueError(
            f"the sandbox knows the system calls of {', '.join(_MACHINES)}, and this machine is {platform.machine()}"
        )
    column, architecture = _MACHINES[platform.machine()]
    numbers = [found[column] for found in (_REFUSED | ({} if forks else _FORKS)).values()]
    # (code, jump where true, where false, operand); jumps by the name of where they lead, None for the next line.
    lines = [(_LOAD, None, None, _ARCHITECTURE), (_EQUAL, None, "kill", architecture), (_LOAD, None, None, _NUMBER)]
    lines += [(_AT_LEAST, "unknown", None, _FIRST_UNKNOWN)]
    lines += [(_EQUAL, "refuse", None, number) for number in numbers if number is not None]
    if not forks:
        lines += [(_EQUAL, None, "allow", _CLONE[column]), (_LOAD, None, None, _FIRST_ARGUMENT)]
        lines += [(_ANY_BIT, "allow", "refuse", _CLONE_THREAD)]
    ends = {"allow": _ALLOW, "refuse": _ERROR | _EPERM, "unknown": _ERROR | _ENOSYS, "kill": _KILL}
    place = {name: len(lines) + number for number, name in enumerate(ends)}
    jumps = [[place[name] - line - 1 if name else 0 for name in names] for line, (_, *names, _) in enumerate(lines)]
    packed = [struct.pack("HBBI", code, *jump, operand) for (code, _, _, operand), jump in zip(lines, jumps, strict=True)]
    return b"".join(packed + [struct.pack("HBBI", _RETURN, 0, 0, value) for value in ends.values()])
