"""agent/build.py: compiles static binaries for both architectures, only when something has changed."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from sandpty.agent import agent_binary
from tests.component.agent_peer import load_build

build = load_build()
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
PT_INTERP = 3


def program_headers(path: Path) -> tuple[int, list[int]]:
    """ELF machine and the types of the program headers of a 64-bit little-endian file."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    machine = struct.unpack_from("<H", data, 18)[0]
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    return machine, [struct.unpack_from("<I", data, offset + number * size)[0] for number in range(count)]


def test_the_agent_is_a_small_static_binary() -> None:
    """It needs nothing in the image: no interpreter, no library."""
    (path,) = build.build(arches=[build.machine_arch()])
    machine, headers = program_headers(path)
    assert machine == ELF_MACHINES[build.machine_arch()]
    assert PT_INTERP not in headers
    assert path.stat().st_size < 160_000
    assert path.stat().st_mode & 0o777 == 0o755


def test_every_other_architecture_compiles_without_a_warning(tmp_path: Path) -> None:
    """Its objects alone: to link them would first compile zig's C library for it, a minute for a call or two of it."""
    for arch in set(build.ARCHES) - {build.machine_arch()}:
        words = [word for word in build.command_for(arch) if word not in {"-static", "-s", "-Wl,--gc-sections"}]
        command = [word for word in words if not word.endswith(".c")]
        for source in build.SOURCES.glob("*.c"):
            path = tmp_path / f"{source.stem}.o"
            subprocess.run([*command, "-c", str(source), "-o", str(path)], check=True, capture_output=True, timeout=110)
            assert struct.unpack_from("<H", path.read_bytes(), 18)[0] == ELF_MACHINES[arch]


def test_what_is_up_to_date_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp is a hash of sources and command."""
    arch = build.machine_arch()
    (path,) = build.build(arches=[arch])
    before = path.stat().st_mtime_ns

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_run", refuse)
    build.build(arches=[arch])
    assert path.stat().st_mtime_ns == before
    monkeypatch.setattr(build, "RELEASE", (*build.RELEASE, "-DCHANGED"))
    with pytest.raises(AssertionError, match="compiled again"):
        build.build(arches=[arch])


def test_a_missing_output_is_compiled_though_its_stamp_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody cleaned up: the stamp alone proves nothing."""
    runs: list[Path] = []

    def fake(_command: object, output: Path, _cache: Path) -> None:
        runs.append(output)
        output.write_bytes(b"binary")

    monkeypatch.setattr(build, "_run", fake)
    for _ in range(2):
        (path,) = build.build(tmp_path, ["x86_64"])
    assert len(runs) == 1
    path.unlink()
    build.build(tmp_path, ["x86_64"])
    assert len(runs) == 2


def test_a_compiler_error_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RuntimeError with the compiler's own words; nothing half-made is left."""
    broken = tmp_path / "broken.c"
    broken.write_text("int main(void) { return nothing; }\n")
    monkeypatch.setattr(build, "_files", lambda: [broken])
    with pytest.raises(RuntimeError, match="nothing"):
        build.build(tmp_path / "out", [build.machine_arch()])
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """ValueError names the choices."""
    with pytest.raises(ValueError, match="x86_64, aarch64"):
        build.build(tmp_path, ["m68k"])


def test_the_package_knows_its_agent() -> None:
    """sandpty.agent.agent_binary() is what build.py made for this machine."""
    (path,) = build.build(arches=[build.machine_arch()])
    assert agent_binary() == path


def test_every_limit_of_the_agent_has_a_reason() -> None:
    """limits.h: each name comes with a comment or stands under one."""
    lines = (build.SOURCES / "limits.h").read_text().splitlines()
    names = [line.split()[1] for line in lines if line.startswith("#define ") and len(line.split()) > 2]
    assert len(names) == len(set(names))
    used = "".join(file.read_text() for file in build.SOURCES.glob("*.[ch]"))
    assert [name for name in names if used.count(name) < 2] == []
