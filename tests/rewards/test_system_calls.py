"""The filter of system calls, run by an interpreter of its few instructions."""

import struct

import pytest

from jaxrl_llm.rewards import system_calls

ALLOW, REFUSE, UNKNOWN, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
# Machine -> its number in the kernel's audit, and calls that it numbers: read, clone, socket, ptrace, openat.
MACHINES = {"x86_64": (0xC000003E, 0, 56, 41, 101, 257), "aarch64": (0xC00000B7, 63, 220, 198, 117, 56)}


def decided(program, architecture, number, argument=0):
    """What the kernel would do with a call."""
    data = struct.pack("IIQQ", number, architecture, 0, argument)
    place, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("HBBI", program, 8 * place)
        if code == 0x06:
            return operand
        if code == 0x20:
            (accumulator,), jump = struct.unpack_from("I", data, operand), 0
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}[code]
            jump = if_true if holds else if_false
        place += 1 + jump


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_decided_of_each_call(machine, monkeypatch):
    monkeypatch.setattr(system_calls.platform, "machine", lambda: machine)
    architecture, read, clone, socket, ptrace, openat = MACHINES[machine]
    for forks in (False, True):
        program = system_calls.filter_program(forks)
        wanted = {read: ALLOW, openat: ALLOW, socket: REFUSE, ptrace: REFUSE, 425: UNKNOWN, 435: UNKNOWN, 2**30 + read: UNKNOWN}
        assert {number: decided(program, architecture, number) for number in wanted} == wanted
        assert decided(program, architecture, clone, 0x10000 | 0x900) == ALLOW
        assert decided(program, architecture, clone, 17) == (ALLOW if forks else REFUSE)
        assert decided(program, architecture ^ 1, read) == KILL


def test_numbers_are_distinct():
    """Columns of numbers that a machine has are distinct, so that no name stands for another's call."""
    for column in (0, 1):
        numbers = [found[column] for found in (system_calls._REFUSED | system_calls._FORKS).values() if found[column]]
        assert len(numbers) == len(set(numbers)) and max(numbers) < system_calls._FIRST_UNKNOWN
