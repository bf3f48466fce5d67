"""What the supervisor keeps on disk and says of it."""

from __future__ import annotations

import logging
import re
import resource
from pathlib import Path

import pytest

from sandpty.isolation.driver import Layer
from sandpty.supervisor import log as supervisor_log
from sandpty.supervisor import state
from sandpty.supervisor.checks import check_limits
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Limits


def meta(**changed: object) -> state.Meta:
    """A sandbox as it is kept."""
    fields: dict[str, object] = {
        "id": state.new_id(),
        "template": "base",
        "layers": (state.KeptLayer("/lower", "/"),),
        "slot": 3,
        "phase": "running",
        "tier": "crun",
        "limits": Limits(),
        "boot_id": "b",
        "host_boot_id": "h",
        "socket": "/run/x.sock",
    }
    return state.Meta(**{**fields, **changed})  # type: ignore[arg-type]


def test_ids_have_the_shape_that_clients_accept() -> None:
    """i and 20 letters or digits, never the same twice."""
    ids = {state.new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"i[a-z0-9]{20}", each) for each in ids)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Durably or not; no temporary file stays."""
    for durable in (False, True):
        one = meta(annotations={"é": [1, None]}, pid=5)
        state.write(tmp_path, one, durable=durable)
        assert state.read(tmp_path) == one
    assert [path.name for path in tmp_path.iterdir()] == [state.META_NAME]


def test_what_does_not_fit_the_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """The kernel writes as much as there is room for, and calls that a success."""
    one = meta()
    state.write(tmp_path, one)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for durable in (False, True):
            with pytest.raises(OSError, match="No space left"):
                state.write(tmp_path, meta(annotations={"much": "x" * 8192}), durable=durable)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state.read(tmp_path) == one


def test_a_stack_of_layers_is_kept_whole() -> None:
    """What a sandbox was started from is what it is started from again: every tree, in its order."""
    layers = (Layer(Path("/top"), "/", ("hidden",), (Path("/middle"), Path("/bottom"))), Layer(Path("/usr"), "/usr"))
    one = meta(layers=state.kept_layers(layers))
    assert one.plan(Path("/d")).layers == layers
    assert layers[0].trees == (Path("/top"), Path("/middle"), Path("/bottom"))


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_a_torn_or_missing_file_is_no_sandbox(tmp_path: Path, content: bytes | None) -> None:
    """Never an exception: the directory is cleaned up instead."""
    if content is not None:
        (tmp_path / state.META_NAME).write_bytes(content)
    assert state.read(tmp_path) is None


@pytest.mark.parametrize("content", [b'{"id": "i"}', b"[]", b'{"annotations": {"x": ' + b"[" * 100_000])
def test_a_whole_file_that_is_not_understood_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Another version wrote it: its files are somebody's."""
    (tmp_path / state.META_NAME).write_bytes(content)
    with pytest.raises(OSError, match="not what this version writes"):
        state.read(tmp_path)


@pytest.mark.parametrize(
    ("phase", "shown", "memory"),
    [("running", "running", True), ("frozen", "paused", True), ("stopped", "paused", False)],
)
def test_phases_are_told_as_states(phase: str, shown: str, memory: bool) -> None:
    """frozen and stopped are both paused; whether memory is kept is said."""
    sandbox = meta(phase=phase).sandbox()
    assert (sandbox.state, sandbox.paused_memory) == (shown, memory)


@pytest.mark.parametrize(
    "limits",
    [Limits(memory_mb=0), Limits(pids=-1), Limits(cpu_count=float("nan")), Limits(cpu_count=1e9), Limits(disk_mb=1)],
)
def test_absurd_limits_are_refused(limits: Limits) -> None:
    """bad_argument, with the name of the limit."""
    with pytest.raises(SandptyError, match="is not between") as caught:
        check_limits(limits)
    assert caught.value.reason.name == "bad_argument"


def test_the_log_has_one_line_per_event_and_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line breaks are folded; at the limit the file is copied and begins anew."""
    monkeypatch.setattr(supervisor_log, "LOG_BYTES_MAX", 2000)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        supervisor_log.configure(tmp_path / "supervisor.log")
        logging.getLogger("sandpty.x").info("two\nlines")
        line = (tmp_path / "supervisor.log").read_text()
        assert line.count("\n") == 1
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info x: two ⏎ lines\n", line)
        for _ in range(100):
            logging.getLogger("sandpty.x").info("y" * 100)
        assert (tmp_path / "supervisor.log").stat().st_size <= 2000
        assert (tmp_path / "supervisor.log.1").stat().st_size <= 2200
    finally:
        root.handlers[:] = before
        root.setLevel(level)
