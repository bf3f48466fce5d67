"""What `sandpty doctor` looks at. Every look is quick, changes nothing, and never raises."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from sandpty import __version__
from sandpty.cli.connection import server_url
from sandpty.cli.down import end_supervisor
from sandpty.cli.serve import default_templates_dir
from sandpty.cli.supervisor_link import SupervisorLink
from sandpty.config import SERVER_UID, DataDir
from sandpty.wire.errors import SandptyError

State = Literal["ok", "note", "missing"]

LOOK_TIMEOUT_S = 10.0
LINK_TIMEOUT_S = 10.0
# Not on every account's PATH, but where Debian puts them.
_MORE_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_SAID_ANYWAY = ("sandpty", "isolation")
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12, "CAP_SETPCAP": 8, "CAP_MKNOD": 27, "CAP_SYS_CHROOT": 18}


@dataclass(frozen=True, slots=True)
class Finding:
    """`missing`: isolated sandboxes cannot run without it; `note`: they can, with less; `remedy`: how to get it."""

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program, the Debian package that brings it, and what it is for."""

    name: str
    version_option: str
    package: str
    purpose: str
    needed: bool = True


_TOOLS = (
    Tool("nft", "--version", "nftables", "network rules"),
    Tool("ip", "-V", "iproute2", "network set-up"),
    Tool("mkfs.ext4", "-V", "e2fsprogs", "disk quota", needed=False),
    Tool("skopeo", "--version", "skopeo", "templates from images", needed=False),
    Tool("mmdebstrap", "--version", "mmdebstrap", "building the base template", needed=False),
)
_RUNTIMES = (
    Tool("crun", "--version", "crun", "the default runtime"),
    Tool("runc", "--version", "runc", "--isolation runc", needed=False),
)


def examine(data: DataDir) -> list[Finding]:
    """Everything, in the order in which it is worth reading."""
    findings: list[Finding] = []
    for look in (_isolation, _programs, _machine, _storage, _templates, _running):
        findings.extend(_safely(look, data))
    return findings


def _safely(look: Callable[[DataDir], Iterator[Finding]], data: DataDir) -> list[Finding]:
    try:
        return list(look(data))
    except Exception as error:
        return [Finding(look.__name__.strip("_"), f"could not be looked at: {error}", "note")]


# --- isolation -------------------------------------------------------------------------------------------------------


def _isolation(data: DataDir) -> Iterator[Finding]:
    try:
        yield from _tier(data)
    except (OSError, EOFError, SandptyError):
        yield from _tier_without_supervisor()


def _tier(data: DataDir) -> Iterator[Finding]:
    """What the supervisor found when it started. Raises OSError, EOFError, SandptyError when none answers."""
    with SupervisorLink(data.supervisor_socket, LINK_TIMEOUT_S) as link:
        host = link.host()
    if host.isolated:
        yield Finding("isolation", f"{host.tier} holds ({host.runtime})")
    else:
        yield Finding("isolation", f"{host.tier}: NONE", "note")
    for name, value in host.facts.items():
        if name not in _SAID_ANYWAY:
            yield Finding(f"  {name}", value)


def _tier_without_supervisor() -> Iterator[Finding]:
    if os.geteuid() != 0:
        yield Finding(
            "isolation",
            "cannot be tried without root; what could be offered is --isolation process, which isolates nothing",
            "note",
            "sudo sandpty doctor",
        )
        return
    yield from _probe()


def _probe() -> Iterator[Finding]:
    """Start a supervisor in a directory of its own: its start tries a sandbox and refuses a tier that does not hold."""
    from sandpty.supervisor import watch

    with tempfile.TemporaryDirectory(prefix="sandpty-doctor-") as directory:
        data = DataDir(Path(directory))
        try:
            watch.start(data.root, "auto", SERVER_UID, pool=0, templates_dir=default_templates_dir(), build_base=False)
        except RuntimeError as error:
            yield Finding("isolation", f"none holds here: {error}", "missing", "see what is missing below")
            return
        try:
            yield from _tier(data)
        finally:
            end_supervisor(data)


# --- programs --------------------------------------------------------------------------------------------------------


def _programs(_: DataDir) -> Iterator[Finding]:
    yield Finding("sandpty", f"{__version__}, python {platform.python_version()} ({sys.executable})")
    yield _agent()
    runtimes = {tool.name: _version(tool) for tool in _RUNTIMES}
    some = any(runtimes.values())
    for tool in _RUNTIMES:
        yield _finding(tool, runtimes[tool.name], needed=tool.needed and not some)
    for tool in _TOOLS:
        yield _finding(tool, _version(tool), needed=tool.needed)


def _finding(tool: Tool, version: str | None, *, needed: bool) -> Finding:
    if version is not None:
        return Finding(tool.name, version)
    return Finding(
        tool.name,
        f"not here; for {tool.purpose}",
        "missing" if needed else "note",
        f"apt-get install {tool.package}",
    )


def _version(tool: Tool) -> str | None:
    """The first line it says about its version; None when it is not here."""
    path = shutil.which(tool.name, path=os.environ.get("PATH", os.defpath) + ":" + _MORE_PATH)
    if path is None:
        return None
    try:
        said = subprocess.run(
            [path, tool.version_option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LOOK_TIMEOUT_S,
            check=False,
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return f"{path} (does not tell its version)"
    first = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return first or path


def _agent() -> Finding:
    from sandpty.agent import agent_binary

    try:
        binary = agent_binary()
        return Finding("agent", f"{binary.stat().st_size} bytes for {platform.machine()}")
    except OSError as error:
        return Finding("agent", f"not built: {error}", "missing", "scripts/setup, or pip install .")


# --- machine ---------------------------------------------------------------------------------------------------------


def _machine(_: DataDir) -> Iterator[Finding]:
    yield Finding("system", f"{_distribution()}, kernel {platform.release()}, {platform.machine()}")
    if os.geteuid() == 0:
        absent = _absent_capabilities()
        yield Finding(
            "root",
            f"yes, but without {', '.join(absent)}" if absent else "yes",
            "missing" if absent else "ok",
            "run it outside the container that took them" if absent else "",
        )
    else:
        yield Finding("root", "no: isolated sandboxes need it", "note", "sudo sandpty serve")
    yield Finding("cgroups", cgroup_mode(Path("/sys/fs/cgroup")))
    forward = _read(Path("/proc/sys/net/ipv4/ip_forward"))
    yield Finding("ip forwarding", "on" if forward == "1" else "off; the supervisor switches it on for sandboxes")


def cgroup_mode(mount: Path) -> str:
    """v2 (unified), v1-hybrid, or v1, by what is mounted."""
    if (mount / "cgroup.controllers").exists():
        return f"v2 ({_read(mount / 'cgroup.controllers')})"
    controllers = (
        sorted(path.name for path in mount.iterdir() if (path / "cgroup.procs").exists()) if mount.is_dir() else []
    )
    if not controllers:
        return "none mounted: no limits on memory, pids and cpu"
    hybrid = "v1-hybrid" if "unified" in controllers else "v1"
    return f"{hybrid} ({', '.join(name for name in controllers if name != 'unified')})"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return platform.system()


def _absent_capabilities() -> list[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            have = int(line.split()[1], 16)
            return [name for name, bit in _CAPABILITIES.items() if not have >> bit & 1]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# --- storage, and what runs ------------------------------------------------------------------------------------------


def _storage(data: DataDir) -> Iterator[Finding]:
    place = data.root
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    yield Finding("data directory", f"{data.root}, {free >> 20} MiB free", "ok" if free > 1 << 30 else "note")
    if Path("/dev/loop-control").exists():
        yield Finding("loop devices", "there, for disk quota")
    else:
        yield Finding("loop devices", "none, so what a sandbox writes has no bound", "note", "modprobe loop")


def _templates(_: DataDir) -> Iterator[Finding]:
    from sandpty.templates import collecting, stacks

    directory = default_templates_dir()
    if not os.access(directory, os.R_OK):
        yield Finding("templates", f"{directory}: not there, or not to be read", "note", "sandpty serve builds them")
        return
    for name in stacks.STACKS:
        ready = stacks.ready(directory, name)
        if ready is not None:
            yield Finding(f"template {name}", f"ready, {ready.size_bytes >> 20} MiB")
        else:
            yield Finding(f"template {name}", "not built; another stands in for it until it is", "note")
    unused = [tree for tree in collecting.trees(directory) if tree.state == "unused"]
    if unused:
        size = sum(tree.size_bytes for tree in unused) >> 20
        yield Finding("unused trees", f"{len(unused)}, {size} MiB", "note", "sandpty template gc")


def _running(data: DataDir) -> Iterator[Finding]:
    try:
        with SupervisorLink(data.supervisor_socket, LINK_TIMEOUT_S) as link:
            yield Finding("supervisor", f"process {link.host().pid}, {len(link.sandboxes())} sandboxes")
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        yield Finding("supervisor", "not running", "note", "sandpty serve")
    except PermissionError:
        yield Finding("supervisor", "only root may ask it", "note", "sudo sandpty doctor")
    yield _server(data)


def _server(data: DataDir) -> Finding:
    if not data.server_info.exists():
        return Finding("server", "has not run with this data directory", "note", "sandpty serve")
    url = server_url(data)
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=LOOK_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, HTTPException):
        return Finding("server", f"does not answer on {url}, where it was last", "note", "sandpty serve")
    finally:
        connection.close()
    return Finding("server", url) if status == 200 else Finding("server", f"{url} is not ready", "note")
