"""The blocking SDK is generated, and what comes with the package can be imported anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sandpty
from sandpty.sdk.characters import WholeCharacters
from sandpty.sdk.settings import DEFAULT_URL, server_from_environment
from sandpty.wire.errors import SandptyError

ROOT = Path(__file__).resolve().parents[2]


def test_the_blocking_flavour_is_up_to_date() -> None:
    """scripts/generate-sync writes exactly what is there."""
    done = subprocess.run([ROOT / "scripts" / "generate-sync", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_generator_says_when_it_is_not(tmp_path: Path) -> None:
    """A changed source, or a changed result, is a failure that names the module."""
    copy = tmp_path / "repository"
    for name in ("scripts/generate-sync", "pyproject.toml"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    (copy / "scripts" / "generate-sync").chmod(0o755)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    for flavour in ("_async", "_sync"):
        target = copy / "src" / "sandpty" / "sdk" / flavour
        target.mkdir(parents=True)
        for path in (ROOT / "src" / "sandpty" / "sdk" / flavour).glob("*.py"):
            (target / path.name).write_bytes(path.read_bytes())
    changed = copy / "src" / "sandpty" / "sdk" / "_async" / "handle.py"
    changed.write_text(changed.read_text() + "\n\nasync def more() -> None:\n    await less()\n")
    command = [sys.executable, str(copy / "scripts" / "generate-sync")]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "handle.py" in done.stderr
    subprocess.run(command, check=True)
    assert "def more() -> None:\n    less()\n" in (copy / "src/sandpty/sdk/_sync/handle.py").read_text()


def test_importing_the_package_loads_no_server_and_no_sdk() -> None:
    """`import sandpty` is free; the SDK brings the client's libraries, the blocking one no event loop."""
    program = (
        "import sys, sandpty; early = [name for name in ('httpx', 'asyncio', 'sandpty.sdk') if name in sys.modules];"
        "from sandpty import Sandbox; early += [n for n in ('httpx', 'asyncio', 'ssl') if n in sys.modules];"
        "from sandpty import AsyncSandbox, PtySize;"
        "late = [n for n in ('aiohttp', 'msgspec', 'uvloop', 'sandpty.server') if n in sys.modules];"
        "print(early, late)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_every_public_name_is_there() -> None:
    """`dir(sandpty)` tells what there is; what there is not is an AttributeError like any other."""
    for name in dir(sandpty):
        assert getattr(sandpty, name) is not None
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = sandpty.Nonsense


def test_where_the_server_is_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments first; a missing key is an error that says what to set."""
    monkeypatch.delenv("SANDPTY_URL", raising=False)
    monkeypatch.setenv("SANDPTY_API_KEY", "k")
    assert server_from_environment(None, None) == (DEFAULT_URL, "k")
    monkeypatch.setenv("SANDPTY_URL", "http://there:1")
    assert server_from_environment(None, None) == ("http://there:1", "k")
    assert server_from_environment("http://here:2", "j") == ("http://here:2", "j")
    monkeypatch.delenv("SANDPTY_API_KEY")
    with pytest.raises(SandptyError, match="SANDPTY_API_KEY"):
        server_from_environment(None, None)


def test_chunks_hold_whole_characters() -> None:
    """However a text is cut; what is no text is neither lost nor held back."""
    text = "aé€😀z".encode()
    for size in range(1, len(text) + 1):
        cutter, chunks = WholeCharacters(), []
        for at in range(0, len(text), size):
            chunks.append(cutter.feed(text[at : at + size]))
        assert b"".join([*chunks, cutter.finish()]) == text
        for chunk in chunks:
            chunk.decode()
    odd = bytes(range(256)) * 3
    cutter = WholeCharacters()
    assert b"".join([*(cutter.feed(odd[i : i + 1]) for i in range(len(odd))), cutter.finish()]) == odd
