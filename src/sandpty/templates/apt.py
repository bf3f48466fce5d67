"""How the host gets its packages: its sources and apt options.

A build must work wherever the host's own apt works: behind proxies, with mirrors, with private certificates.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ETC_APT = Path("/etc/apt")
# What lets apt fetch here (proxies, certificates, clocks), and nothing else of the host's habits.
_OPTION = re.compile(
    r'^(Acquire::(?:http|https|ftp|Retries|ForceIPv4|ForceIPv6|Check-Date|Check-Valid-Until)\b[^ ]*) "(.*)";$'
)


@dataclass(frozen=True, slots=True)
class Sources:
    """suite: the host's release; text: its own sources for it, in one file; kind: sources (deb822) or list."""

    suite: str
    deb822: str
    one_line: str


def codename(os_release: str) -> str:
    """VERSION_CODENAME of an os-release text; empty when there is none."""
    match = re.search(r'^VERSION_CODENAME="?([A-Za-z0-9._-]+)"?$', os_release, re.MULTILINE)
    return match.group(1) if match else ""


def _is_of(suites: str, suite: str) -> bool:
    return any(word == suite or word.startswith(suite + "-") for word in suites.split())


def stanzas(text: str, suite: str) -> list[str]:
    """The deb822 stanzas of `text` that are about the release itself (not of other vendors), enabled ones."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        fields = {key.strip().lower(): value for key, _, value in (line.partition(":") for line in lines)}
        enabled = fields.get("enabled", "yes").strip().lower() not in ("no", "false", "0")
        if enabled and "deb" in fields.get("types", "").split() and _is_of(fields.get("suites", ""), suite):
            found.append("\n".join(lines))
    return found


def one_liners(text: str, suite: str) -> list[str]:
    """The `deb` lines of a sources.list that are about the release itself."""
    found = []
    for line in text.splitlines():
        match = re.match(r"^deb\s+(?:\[[^\]]*\]\s+)?\S+\s+(\S+)\s", line.strip() + " ")
        if match and _is_of(match.group(1), suite):
            found.append(line.strip())
    return found


def sources(etc_apt: Path = ETC_APT, os_release: Path = Path("/etc/os-release")) -> Sources:
    """Raises RuntimeError when the host has no usable sources."""
    suite = codename(os_release.read_text(encoding="utf-8")) if os_release.exists() else ""
    deb822: list[str] = []
    lines: list[str] = []
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources" and path.is_file():
            deb822 += stanzas(path.read_text(encoding="utf-8", errors="replace"), suite)
        elif path.suffix == ".list" and path.is_file():
            lines += one_liners(path.read_text(encoding="utf-8", errors="replace"), suite)
    if not suite or not (deb822 or lines):
        raise RuntimeError("this host has no apt sources for its own release; `base` cannot be built here")
    return Sources(suite, "\n\n".join(deb822), "\n".join(lines))


def options(dump: str) -> list[str]:
    """Lines for apt.conf from the output of `apt-config dump`: what fetching needs on this host."""
    matches = (_OPTION.match(line) for line in dump.splitlines())
    return [f'{match.group(1)} "{match.group(2)}";' for match in matches if match and match.group(2)]


def host_options() -> list[str]:
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, timeout=10, check=False)
    found = options(done.stdout)
    netrc = ETC_APT / "auth.conf.d"
    if netrc.is_dir() and any(netrc.iterdir()):
        found.append(f'Dir::Etc::netrcparts "{netrc}/";')
    return found
