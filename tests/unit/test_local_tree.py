"""What `sandpty cp` reads of this machine: files, and never what somebody puts in their way meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandpty.cli.local_tree import open_regular


def test_a_file_is_read(tmp_path: Path) -> None:
    """As it is."""
    (tmp_path / "file").write_bytes(b"\xff\n")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"\xff\n"


def test_a_symlink_put_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """It was a file when the tree was listed; what it leads to now is nobody's business."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "file").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(tmp_path / "file")


@pytest.mark.timeout(60)
def test_a_fifo_put_in_its_place_holds_nobody_up(tmp_path: Path) -> None:
    """Nobody writes to it, and it is refused at once."""
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "file")
