"""The operator's word on registries, and what one pull may use of it. Pure but for reading the files.

`registries.conf` (man containers-registries.conf, version 2) says mirrors, other locations and where plain HTTP or a
bad certificate is fine; `registries-auth.json` (man containers-auth.json) holds credentials. skopeo gets copies.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandpty.images.reference import DOCKER_HUB
from sandpty.wire.errors import SandptyError


@dataclass(frozen=True, slots=True)
class Registries:
    """text: registries.conf as it is; prefixes: the registries whose images it tells about; named: these, and where it
    says that they are; places: what it is that is asked then; auths: credentials by registry."""

    text: str
    prefixes: frozenset[str]
    named: frozenset[str]
    places: frozenset[str]
    auths: dict[str, Any]


def read(conf: Path, auth: Path) -> Registries:
    """Missing files say nothing. Raises bad_argument for what cannot be understood."""
    text = _text(conf)
    try:
        told = tomllib.loads(text)
        entries = told.get("registry", [])
        mirrors = [mirror for each in entries for mirror in each.get("mirror", [])]
        prefixes = _domains(each.get("prefix") or each.get("location") for each in entries)
        locations = _domains(each.get("location") for each in (*entries, *mirrors))
        auths = json.loads(_text(auth) or "{}").get("auths", {})
    except (ValueError, AttributeError, TypeError) as error:
        raise SandptyError("bad_argument", f"{conf.name} or {auth.name} is not readable: {error}") from error
    # Without auth.json's helpers: they are programs that would be run.
    return Registries(text, prefixes, prefixes | locations, locations, dict(auths))


def _domains(names: Iterable[object]) -> frozenset[str]:
    return frozenset(str(name).partition("/")[0] for name in names if name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SandptyError("bad_argument", f"{path.name} is not readable: {error}") from error


def is_loopback(domain: str) -> bool:
    """Whether a registry is on this machine, as its name says."""
    host = _host(domain)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(domain: str) -> str:
    if domain.startswith("["):
        return domain[1:].partition("]")[0]
    return domain.partition(":")[0]


def conf_for(registries: Registries, domain: str) -> str:
    """registries.conf of one pull: the operator's; plain HTTP is fine on this machine too."""
    if not is_loopback(domain) or domain in registries.prefixes:
        return registries.text
    return f'{registries.text}\n[[registry]]\nlocation = "{domain}"\ninsecure = true\n'


def auth_for(registries: Registries, domain: str, username: str, password: str) -> str:
    """auth.json of one pull: the operator's credentials for where it may go; those of the request, if any, for its own
    registry."""
    needed = {domain, *registries.places}
    auths = {key: value for key, value in registries.auths.items() if any(_same(key, each) for each in needed)}
    if username or password:
        for key in [key for key in auths if _same(key, domain)]:
            del auths[key]
        auths[domain] = {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}
    return json.dumps({"auths": auths})


def _same(key: str, domain: str) -> bool:
    """Docker's own key for Docker Hub is a URL."""
    registry = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return registry.removeprefix("index.") == domain or (domain == DOCKER_HUB and registry == "registry-1.docker.io")


def check_public(domain: str) -> None:
    """A registry that the operator has not named must be out there: we would knock at this machine's own doors, or its
    neighbours', for a stranger. Raises registry_forbidden."""
    host = _host(domain)
    forbidden = SandptyError(
        "registry_forbidden", f"the registry {domain} is not public, and not named by the operator"
    )
    if host == "localhost" or not set(".:") & set(host):
        raise forbidden
    with contextlib.suppress(ValueError):
        if not ipaddress.ip_address(host).is_global:
            raise forbidden
