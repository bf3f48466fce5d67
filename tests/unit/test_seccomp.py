"""The system call filter: what it names, and that it compiles."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sandpty.isolation.seccomp import compiled, profile


def rules(name: str) -> list[dict[str, Any]]:
    """The rules about one system call."""
    return [rule for rule in profile("x86_64")["syscalls"] if name in rule["names"]]


def test_only_the_native_architecture_is_allowed() -> None:
    """No 32-bit entry; an architecture that nobody looked at is refused."""
    assert profile("x86_64")["architectures"] == ["SCMP_ARCH_X86_64"]
    assert profile("aarch64")["architectures"] == ["SCMP_ARCH_AARCH64"]
    assert not [rule for rule in profile("aarch64")["syscalls"] if "arch_prctl" in rule["names"]]
    with pytest.raises(ValueError, match="riscv64"):
        profile("riscv64")


@pytest.mark.parametrize(
    "name", ["mount", "unshare", "setns", "bpf", "keyctl", "io_uring_setup", "userfaultfd", "ptrace"]
)
def test_dangerous_calls_are_denied(name: str) -> None:
    """ptrace aside, which the user namespace confines."""
    allowed = any(rule["action"] == "SCMP_ACT_ALLOW" for rule in rules(name))
    assert allowed is (name == "ptrace")


def test_what_is_unknown_is_not_implemented() -> None:
    """So that programs fall back instead of failing."""
    assert profile("x86_64")["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile("x86_64")["defaultErrnoRet"] == 38


def test_sockets_are_unix_ip_and_netlink_only() -> None:
    """By family."""
    allowed = {rule["args"][0]["value"] for rule in rules("socket") if rule["action"] == "SCMP_ACT_ALLOW"}
    assert allowed == {1, 2, 10, 16}


def test_the_profile_compiles_to_a_bpf_program() -> None:
    """8 bytes per instruction, within the kernel's 4096."""
    program = compiled(profile())
    assert program is not None
    raw = base64.b64decode(program)
    assert len(raw) % 8 == 0
    assert 100 < len(raw) // 8 <= 4096
