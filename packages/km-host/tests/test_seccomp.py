from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import re
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.errors import ProvisionError
from km_host import seccomp
from km_host.syscalls import NUMBERS

MACHINES = ("x86_64", "aarch64")
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NATIVE = os.uname().machine
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")


def run(code: bytes, number: int, args: tuple[int, ...] = (), arch: int = ARCH["x86_64"]) -> int:
    """Interpret classic BPF over a struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *(args + (0,) * (6 - len(args))))
    instructions = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    accumulator, at = 0, 0
    for _ in range(10_000):
        op, true, false, operand = instructions[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif op == 0x06:
            return operand
        elif op == 0x05:
            at += operand
        elif op == 0x54:
            accumulator &= operand
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}[
                op
            ]
            at += true if holds else false
    raise AssertionError("the program does not end")


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_gets_the_tables_answer(machine):
    code = seccomp.program(machine)
    names = {number: name for name, number in NUMBERS[machine].items()}
    for number in range(700):
        name = names.get(number)
        answer = run(code, number, (), ARCH[machine])
        if name is None or name in seccomp.ABSENT:
            assert answer == ERRNO | errno.ENOSYS, (number, name)
        elif name in seccomp.DENIED:
            assert answer == ERRNO | errno.EPERM, name
        elif name in {"socket", "socketpair"}:
            assert answer == ERRNO | errno.EAFNOSUPPORT
        else:
            assert answer == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_jumps_stay_inside_the_program(machine):
    code = seccomp.program(machine)
    count = len(code) // 8
    assert count < 4096
    for at in range(count):
        op, true, false, operand = struct.unpack_from("=HBBI", code, at * 8)
        if op == 0x05:
            assert at + 1 + operand < count
        elif op != 0x06:
            assert at + 1 + max(true, false) < count


def test_every_denied_name_is_a_system_call_of_x86_64():
    assert not (seccomp.DENIED | seccomp.ABSENT) - set(NUMBERS["x86_64"])


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_unique(machine):
    assert len(set(NUMBERS[machine].values())) == len(NUMBERS[machine])


def test_numbers_agree_with_the_headers_of_this_machine():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    found = re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())
    wrong = [name for name, number in found if NUMBERS["x86_64"].get(name, int(number)) != int(number)]
    assert wrong == []


@pytest.mark.parametrize("arch", [0x40000003, 0xC00000B7, 0xC00000F3], ids=["i386", "aarch64", "riscv64"])
def test_foreign_architecture_is_killed(arch):
    assert run(seccomp.program("x86_64"), 1, (), arch) == KILL


def test_x32_is_refused():
    code = seccomp.program("x86_64")
    assert run(code, 0x40000000 | 41, (2, 1, 0)) == ERRNO | errno.EPERM
    assert run(code, 0xFFFFFFFF) == ERRNO | errno.EPERM


@given(
    domain=st.one_of(st.integers(0, 50), st.integers(0, 2**64 - 1)),
    kind=st.integers(0, 2**64 - 1),
    protocol=st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)),
)
def test_sockets_are_allowed_by_family_type_and_protocol_as_the_kernel_sees_them(domain, kind, protocol):
    number = NUMBERS["x86_64"]["socket"]
    answer = run(seccomp.program("x86_64"), number, (domain, kind, protocol))
    family, shape, proto = domain & 0xFFFFFFFF, kind & 0xF, protocol & 0xFFFFFFFF
    expected = (
        (family == 16 and proto == 0)
        or (family == 1 and shape in {1, 2, 5})
        or (family in {2, 10} and shape in {1, 2, 5} and proto in {0, 6, 17})
    )
    assert (answer == ALLOW) == expected


@given(st.integers(0, 2**64 - 1))
def test_no_bits_above_the_low_half_hide_a_terminal_injection(high):
    code = seccomp.program("x86_64")
    command = (high & ~0xFFFFFFFF) | 0x5412
    assert run(code, NUMBERS["x86_64"]["ioctl"], (0, command)) == ERRNO | errno.EPERM


@given(st.integers(0, 2**32 - 1))
def test_docker_masks_allow_every_ioctl_but_the_denied(command):
    profile = seccomp.docker_profile("x86_64")
    rules = [rule["args"][0] for rule in profile["syscalls"] if rule["names"] == ["ioctl"]]
    allowed = any(command & arg["value"] == arg["valueTwo"] for arg in rules)
    assert allowed == (command not in seccomp.IOCTL_DENIED)
    assert all(arg["op"] == "SCMP_CMP_MASKED_EQ" and arg["index"] == 1 for arg in rules)


def test_docker_masks_refuse_the_denied_ioctls():
    profile = seccomp.docker_profile("x86_64")
    rules = [rule["args"][0] for rule in profile["syscalls"] if rule["names"] == ["ioctl"]]
    for command in seccomp.IOCTL_DENIED:
        assert not any(command & arg["value"] == arg["valueTwo"] for arg in rules)


@pytest.mark.parametrize("machine", MACHINES)
def test_docker_profile_allows_what_the_filter_allows(machine):
    profile = seccomp.docker_profile(machine)
    json.dumps(profile)
    allowed = {
        name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    }
    assert allowed == set(NUMBERS[machine]) - seccomp.DENIED - seccomp.ABSENT
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"


def test_unknown_machine_is_refused():
    with pytest.raises(ProvisionError, match="no system call table for mips"):
        seccomp.program("mips")


# What the kernel makes of it, in a child.


def in_filtered_child(work) -> object:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            seccomp.load_filter(seccomp.program())
            answer = work()
        except BaseException as error:
            answer = repr(error)
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(data) if data else f"status {status}"


def call(name: str, *args: int) -> int:
    """Return 0 or the errno of a raw system call."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(NUMBERS[NATIVE][name], *[ctypes.c_long(arg) for arg in args])
    return ctypes.get_errno() if result == -1 else 0


def test_kernel_refuses_every_denied_call():
    names = sorted(seccomp.DENIED & set(NUMBERS[NATIVE]))
    answers = in_filtered_child(lambda: {name: call(name, 0, 0, 0, 0, 0) for name in names})
    assert answers == dict.fromkeys(names, errno.EPERM)


def test_kernel_answers_enosys_for_clone3_and_numbers_yet_unknown():
    def work():
        libc = ctypes.CDLL(None, use_errno=True)
        found = [call("clone3", 0, 0)]
        for number in (400, 470, 512, 999):
            libc.syscall(number, 0, 0)
            found.append(ctypes.get_errno())
        return found

    assert in_filtered_child(work) == [errno.ENOSYS] * 5


@pytest.mark.parametrize(
    "flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
)
def test_kernel_refuses_clone_into_a_new_namespace(flag):
    assert in_filtered_child(lambda: call("clone", flag | 17, 0, 0, 0, 0)) == errno.EPERM


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (40, 1, 0, errno.EAFNOSUPPORT),
        (38, 5, 0, errno.EAFNOSUPPORT),
        (17, 3, 0, errno.EAFNOSUPPORT),
        (30, 5, 0, errno.EAFNOSUPPORT),
        (44, 3, 0, errno.EAFNOSUPPORT),
        (15, 3, 2, errno.EAFNOSUPPORT),
        (16, 3, 12, errno.EAFNOSUPPORT),
        (16, 2, 15, errno.EAFNOSUPPORT),
        (2, 3, 1, errno.EPROTONOSUPPORT),
        (2, 3, 0, errno.EPERM),
        (2, 10, 0, errno.EPERM),
        (10, 3, 17, errno.EPERM),
        (2, 2, 1, errno.EPROTONOSUPPORT),
        (2, 1, 132, errno.EPROTONOSUPPORT),
        (2, 1, 262, errno.EPROTONOSUPPORT),
        (2, 2, 136, errno.EPROTONOSUPPORT),
        (2, 1, 0, 0),
        (2, 2, 17, 0),
        (10, 1, 6, 0),
        (1, 1, 0, 0),
        (16, 3, 0, 0),
    ],
)
def test_kernel_allows_only_the_listed_sockets(family, kind, protocol, expected):
    assert in_filtered_child(lambda: call("socket", family, kind, protocol)) == expected


def test_kernel_refuses_terminal_injection_with_high_bits_set():
    def work():
        _, slave = os.openpty()
        buffer = ctypes.create_string_buffer(b"x")
        return [
            call("ioctl", slave, command, ctypes.addressof(buffer))
            for command in (0x5412, 0x5412 | 1 << 32, 0x541C)
        ]

    assert in_filtered_child(work) == [errno.EPERM] * 3


def test_ordinary_work_goes_on_under_the_filter():
    def work():
        left, right = socket.socketpair()
        left.send(b"x")
        thread = threading.Thread(target=lambda: right.recv(1))
        thread.start()
        thread.join()
        done = subprocess.run(["/bin/sh", "-c", "echo hi | cat"], capture_output=True, text=True, check=True)
        area = mmap.mmap(-1, 4096)
        names = [name for _, name in socket.if_nameindex()]
        fcntl.fcntl(left, fcntl.F_GETFL)
        return [done.stdout, "lo" in names, len(area), platform.system()]

    assert in_filtered_child(work) == ["hi\n", True, 4096, "Linux"]
