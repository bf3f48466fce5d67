"""What the host's kernel says of its own files reaches clients without their paths."""

from __future__ import annotations

import errno
import os
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest

from sandpty.config import DataDir
from sandpty.isolation import disk, merging
from sandpty.isolation.driver import Copy, Plan
from sandpty.isolation.failures import told
from sandpty.isolation.network import Network
from sandpty.isolation.outward import Outward
from sandpty.isolation.slots import Slots
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import Limits


async def test_layers_that_cannot_be_merged_say_why(tmp_path: Path) -> None:
    """Of copies that are not there: which of them is for the log."""
    (tmp_path / "target").mkdir()
    with pytest.raises(SandptyError) as caught:
        await merging.run(tmp_path / "target", 16, 1, [Copy(tmp_path / "missing", 200_000, "i")])
    assert caught.value.message == "the layers cannot be merged: No such file or directory"


async def test_a_disk_that_is_full_while_layers_are_merged_is_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everywhere else where a disk is full."""
    (tmp_path / "unshare").write_text(f"#!/bin/sh\nexit {errno.ENOSPC}\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SandptyError) as caught:
        await merging.run(tmp_path, 16, 1, [])
    assert caught.value.reason.name == "no_space"


def test_a_tool_that_fails_is_named_and_its_words_are_for_the_log(tmp_path: Path) -> None:
    """Of a disk that cannot be made or copied."""
    (tmp_path / "disk.img").write_bytes(b"no file system")
    with pytest.raises(OSError, match=r"disk\.img") as caught:
        disk.Disk(tmp_path).grow(tmp_path, 16)
    assert told(caught.value) == "e2fsck fails"
    with pytest.raises(OSError, match="missing") as caught:
        disk.copy(tmp_path / "missing", tmp_path)
    assert told(caught.value) == "cp fails"


class Broken:
    """An egress process whose program cannot be started."""

    async def fail(self, *_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/srv/data/egress/pid")

    set = reachable = certificate = fail


async def test_an_egress_process_that_does_not_start_says_why(tmp_path: Path) -> None:
    """To who asks for a policy with names, a proxy, or its certificate."""
    network = Network("ab12", tmp_path / "network", available=True, _subnet=IPv4Network("10.200.16.0/20"))
    outward = Outward(network, cast(Slots, None), DataDir(tmp_path))
    outward._egress = cast(Any, Broken())
    plan = Plan(
        "i",
        tmp_path,
        (),
        0,
        Limits(),
        True,
        "",
        network=NetworkPolicy(allow_out=("example.com",), deny_out=("0.0.0.0/0",)),
    )
    for asked in (outward.open_names(plan), outward.check_proxy("example.com"), outward.certificate()):
        with pytest.raises(SandptyError, match=r"^the egress process does not .*: No such file or directory$"):
            await asked
