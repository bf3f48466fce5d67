"""Limits that only make sense together."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandpty import config
from sandpty.config import DataDir, default_data_dir
from sandpty.wire import frames, verbs


def test_windows_are_acknowledged_before_they_are_used_up() -> None:
    """A client that keeps up never makes the agent wait, and one frame always fits."""
    assert config.ACK_EVERY_BYTES * 2 <= config.ATTACH_WINDOW_BYTES
    assert frames.MAX_OUTPUT_BYTES <= config.ATTACH_WINDOW_BYTES


def test_every_input_we_make_fits_a_frame() -> None:
    """The chunk of a large input, with its selector and offset, is within the limit of a frame."""
    assert len(frames.encode_input(b"x" * config.INPUT_CHUNK_BYTES)) <= frames.MAX_FRAME_BYTES + 4
    selector = frames.Selector.tagged("t" * 1000)
    assert frames.encode_input_process(selector, 2, b"x" * config.INPUT_CHUNK_BYTES)


def test_what_a_client_may_store_fits_the_supervisors_messages() -> None:
    """Metadata is refused by the server long before a message to the supervisor would be too long."""
    assert config.METADATA_BYTES < verbs.MAX_ANNOTATIONS_BYTES < verbs.MAX_MESSAGE_BYTES
    assert config.SANDBOXES_MAX * 1024 < verbs.MAX_MESSAGE_BYTES


def test_deadlines_fit_their_fields() -> None:
    """The longest deadline in milliseconds is below the wire's u32 and its `never`."""
    assert config.TIMEOUT_MAX_S * 1000 < frames.NEVER_MS
    assert config.WAIT_MAX_S * 1000 < frames.NEVER_MS


def test_idle_connections_are_kept_alive_below_the_usual_cut() -> None:
    """A heartbeat comes before a proxy's 60 s."""
    assert config.WS_HEARTBEAT_S < 60


def test_everything_lives_under_the_data_directory(tmp_path: Path) -> None:
    """One directory to back up or delete; the sockets' directory is its own."""
    data = DataDir(tmp_path)
    for path in (data.api_key, data.run, data.server_lock, data.supervisor_pid, data.templates, data.sandboxes):
        assert path.parent == tmp_path
    assert data.supervisor_socket.parent == data.agents.parent == data.run


def test_the_data_directory_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """SANDPTY_DATA_DIR wins over the account's default."""
    monkeypatch.setenv("SANDPTY_DATA_DIR", "/srv/x")
    assert default_data_dir() == Path("/srv/x")
    monkeypatch.delenv("SANDPTY_DATA_DIR")
    assert default_data_dir() in (Path("/var/lib/sandpty"), Path.home() / ".local/share/sandpty")
