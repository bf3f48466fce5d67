"""Disks of sandboxes on the host: images of ext4, made by the real tools."""

from __future__ import annotations

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandpty.isolation import disk


def is_whole(image: Path) -> bool:
    """As e2fsck sees it."""
    return subprocess.run(["/sbin/e2fsck", "-f", "-n", image], capture_output=True, check=False).returncode == 0


def test_disks_of_a_new_size_asked_for_at_once_are_all_whole(tmp_path: Path) -> None:
    """The empty image that they are copied from is made once."""
    disks = disk.Disk(tmp_path)
    images = [tmp_path / f"of-{at}" for at in range(8)]
    with ThreadPoolExecutor(len(images)) as threads:
        list(threads.map(lambda image: disks.copy_blank(image, 64), images))
    assert all(map(is_whole, images))


def test_sizes_that_clients_choose_do_not_fill_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the empty images the newest are kept; one that went is made again."""
    monkeypatch.setattr(disk, "_BLANKS_MAX", 3)
    disks = disk.Disk(tmp_path)
    for at in range(6):
        disks.copy_blank(tmp_path / f"of-{at}", 16 + at)
    assert len(list(tmp_path.glob("*.img"))) == 3
    disks.copy_blank(tmp_path / "again", 16)
    assert is_whole(tmp_path / "again")


def test_a_volume_that_grows_holds_no_other_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking and growing one may take minutes; the others are somebody else's."""
    disks, begun, going_on = disk.Disk(tmp_path / "blank"), threading.Event(), threading.Event()
    large, small = tmp_path / "large", tmp_path / "small"
    for directory in (large, small):
        directory.mkdir()
        (directory / disk.IMAGE_NAME).touch()

    def tool(name: str, *arguments: str) -> None:
        if str(large) in arguments[-1]:
            begun.set()
            assert going_on.wait(30)

    monkeypatch.setattr(disk, "_run_tool", tool)
    with ThreadPoolExecutor(2) as threads:
        growing = threads.submit(disks.grow, large, 32)
        try:
            assert begun.wait(30)
            threads.submit(disks.grow, small, 32).result(30)
            assert not growing.done()
        finally:
            going_on.set()
        growing.result(30)
