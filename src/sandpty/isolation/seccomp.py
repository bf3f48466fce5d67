"""Which system calls a sandbox may make: the strict profile, as JSON for any runtime or compiled once for crun.

The profile (seccomp-strict.json) is the common container list without everything that makes namespaces, mounts, keys,
BPF programs or io_uring, and with the socket families a sandbox needs. Native architecture only: no 32-bit entry.
Compiling it in the runtime costs 3 ms per sandbox; handing it over compiled costs 1.6 ms.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import errno
import json
import os
import platform
import tempfile
from importlib.resources import files
from typing import Any

_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_UNKNOWN_SYSCALL = -1
_SPECIAL_BELOW = 0  # negative numbers: the call exists on another architecture only


class _Argument(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def profile(machine: str = "") -> dict[str, Any]:
    """The profile for this machine's (or the named) architecture. Raises ValueError for one we have not looked at."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise ValueError(f"there is no seccomp profile for {machine}")
    text = (files("sandpty.isolation") / "seccomp-strict.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    loaded["architectures"] = [_ARCHITECTURES[machine]]
    if machine != "x86_64":
        # arch_prctl and modify_ldt are x86 calls; naming them elsewhere is an error for some runtimes.
        x86 = {"arch_prctl", "modify_ldt"}
        loaded["syscalls"] = [rule for rule in loaded["syscalls"] if not x86 & set(rule["names"])]
    return loaded


def _action(name: str, number: int) -> int:
    return _ALLOW if name == "SCMP_ACT_ALLOW" else _ERRNO | (number & 0xFFFF)


def _add_rule(library: ctypes.CDLL, context: int, rule: dict[str, Any]) -> None:
    action = _action(rule["action"], rule.get("errnoRet", errno.EPERM))
    arguments = [
        _Argument(item["index"], _OPERATORS[item["op"]], item["value"], item.get("valueTwo", 0))
        for item in rule.get("args", [])
    ]
    array = (_Argument * len(arguments))(*arguments)
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < _SPECIAL_BELOW:
            continue
        result = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(arguments), array)
        if result != 0:
            raise OSError(-result, f"libseccomp refuses the rule for {name}: {os.strerror(-result)}")


def compiled(source: dict[str, Any]) -> str | None:
    """The profile as base64 of a BPF program; None without libseccomp. Raises OSError when it refuses the profile."""
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    )
    for function in (library.seccomp_release, library.seccomp_export_bpf):
        function.argtypes = (ctypes.c_void_p, *([ctypes.c_int] if function is library.seccomp_export_bpf else []))
    default = _action(source["defaultAction"], source["defaultErrnoRet"])
    context = library.seccomp_init(ctypes.c_uint32(default))
    if not context:
        raise OSError("libseccomp does not start")
    try:
        for rule in source["syscalls"]:
            if rule["action"] != source["defaultAction"] or rule.get("errnoRet") != source["defaultErrnoRet"]:
                _add_rule(library, context, rule)
        with tempfile.TemporaryFile() as file:
            result = library.seccomp_export_bpf(context, file.fileno())
            if result != 0:
                raise OSError(-result, "libseccomp cannot export the program")
            file.seek(0)
            return base64.b64encode(file.read()).decode("ascii")
    finally:
        library.seccomp_release(context)
