"""Versions of OCI runtimes, and those that must not be used. Pure."""

from __future__ import annotations

import re

# runc before 1.1.12 leaks a host directory into the container (CVE-2024-21626); Debian's 1.1.5+ds1-1+deb12u1 has the
# fix
# under the old number, so the canary decides there. crun before 1.4.4 keeps inheritable capabilities (CVE-2022-27650).
_OLDEST = {"crun": (1, 4, 4), "runc": (1, 1, 5), "runsc": (2023, 0, 0)}
_WHY = {
    "crun": "older than 1.4.4 (CVE-2022-27650)",
    "runc": "older than 1.1.5 (CVE-2023-27561)",
    "runsc": "older than 2023: it does not work on present kernels (try bookworm-backports)",
}


def parse(text: str) -> str:
    """`1.8.1` from `crun version 1.8.1`, `20240729.0` from runsc's `release-20240729.0`; empty: there is none."""
    match = re.search(r"version\s+(?:release-)?v?([0-9][0-9A-Za-z.+~-]*)", text)
    return match.group(1) if match else ""


def _numbers(version: str) -> tuple[int, ...]:
    if re.match(r"^20\d{6}", version):
        return int(version[:4]), int(version[4:6]), int(version[6:8])
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def known_bad(runtime: str, version: str) -> str | None:
    """Why this version must not be used; None when it may."""
    if not version:
        return "it does not tell its version"
    return _WHY[runtime] if _numbers(version) < _OLDEST[runtime] else None
