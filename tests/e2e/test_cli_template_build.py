"""`sandpty template build`: a directory with a Dockerfile becomes a template."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx

from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until_sync

WAIT_S = 60.0


def _run(server: RunningServer, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **server.env}
    return subprocess.run(sandpty(*words), env=env, capture_output=True, text=True, check=False, timeout=WAIT_S)


def test_a_directory_becomes_a_template(server: RunningServer, tmp_path: Path) -> None:
    """With its files; the second time from the cache; a step that fails says why, and the command fails."""
    (tmp_path / "app.py").write_text("print('from the app')\n")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM base\nCOPY app.py /srv/\nWORKDIR /srv\nRUN python3 app.py\nCMD sleep 1000\n")
    words = ("template", "build", str(tmp_path), "--name", "cli-built:v1", "--tag", "default", "--json")
    first = _run(server, *words)
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    assert (made["name"], made["tags"]) == ("cli-built", ["v1", "default"])
    assert "sending app.py" in first.stderr
    assert "from the app" in first.stderr
    second = _run(server, *words)
    assert second.returncode == 0
    assert "CACHED [" in second.stderr
    assert "sending" not in second.stderr
    sandbox = _run(server, "create", "--template", "cli-built").stdout.strip()
    done = _run(server, "exec", sandbox, "sh", "-c", "pwd; id -un; pgrep -x sleep >/dev/null && echo up")
    _run(server, "kill", sandbox)
    assert done.stdout == "/srv\nuser\nup\n", done.stderr
    dockerfile.write_text("FROM base\nRUN echo words; exit 5\n")
    failed = _run(server, *words)
    assert failed.returncode == 1
    assert "exit code 5" in failed.stderr
    assert failed.stderr.splitlines()[-1].endswith(" failed: RUN echo words; exit 5: exit code 5")
    dockerfile.write_text("FROM base\nCOPY ../secret /srv/\n")
    assert "below the build's directory" in _run(server, *words).stderr
    dockerfile.write_bytes(b"\xff\xfe")
    assert "no text" in _run(server, *words).stderr
    builds = httpx.get(f"{server.url}/templates/cli-built", headers=server.headers).json()["builds"]
    assert sorted(build["status"] for build in builds) == ["error", "error", "ready", "ready"]  # and none waits


def test_ctrl_c_cancels_the_build(server: RunningServer, tmp_path: Path) -> None:
    """The build is over, not only the command that waited for it."""
    (tmp_path / "Dockerfile").write_text("FROM base\nRUN echo begun; sleep 1000\n")
    command = sandpty("template", "build", str(tmp_path), "--name", "cli-cancelled")
    env = {**os.environ, **server.env}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as building:
        assert building.stderr is not None
        for line in building.stderr:
            if line.rstrip().endswith("] begun"):
                break
        building.send_signal(signal.SIGINT)
        building.stderr.read()
        assert building.wait(WAIT_S) == 130

    def hidden() -> bool:
        metas = [path.read_text() for path in (server.data_dir / "sandboxes").glob("*/meta.json")]
        return any('"owner":"build:' in meta for meta in metas)

    until_sync(lambda: not hidden(), WAIT_S)
