"""Accounts for pulls, one each, and what their connections may reach.

A registry can send its clients anywhere: by redirects, by the address of whoever gives tokens, by its names' addresses.
What was asked for by a stranger therefore pulls as an account for which the kernel lets connections out to public
addresses only, to the host's resolvers, and to the registries that the operator has named.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sandpty import config
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_rules import CLOSED

_LOCKS = Path("/run/sandpty-images")
_RESOLVERS = Path("/etc/resolv.conf")
_NFT_TIMEOUT_S = 10.0
_HTTP_PORTS = (80, 443)
_NEW_LINE = "\n    "
Place = tuple[str, int]  # address, port


@contextlib.contextmanager
def account() -> Iterator[int]:
    """A uid that nobody else uses now. Raises limit when there is none."""
    _LOCKS.mkdir(mode=0o700, exist_ok=True)
    for uid in range(config.IMAGES_UID, config.IMAGES_UID + config.IMAGES_UIDS):
        fd = os.open(_LOCKS / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        with contextlib.suppress(SandptyError):
            _load(_without(_table(uid)))  # of a pull that was killed
        try:
            yield uid
        finally:
            os.close(fd)
        return
    raise SandptyError("limit", f"{config.IMAGES_UIDS} images are being pulled on this host")


@contextlib.contextmanager
def fenced(uid: int, domains: Iterable[str]) -> Iterator[None]:
    """Meanwhile `uid` connects to public places, to resolvers and to these registries only. Raises runtime_failed."""
    table = _table(uid)
    _load(f"{_without(table)}{rules(table, uid, _resolvers(), _places(domains))}")
    try:
        yield
    finally:
        with contextlib.suppress(SandptyError):
            _load(_without(table))


def _table(uid: int) -> str:
    return f"inet sandpty_pull_{uid}"


def _without(table: str) -> str:
    return f"table {table}\ndelete table {table}\n"


def rules(table: str, uid: int, resolvers: Iterable[str], places: Iterable[Place]) -> str:
    """The table. Pure."""
    lines = [f"{_family(each)} daddr {each} meta l4proto {{ tcp, udp }} th dport 53 accept" for each in resolvers]
    lines += [f"{_family(address)} daddr {address} tcp dport {port} accept" for address, port in places]
    return f"""
table {table} {{
  chain output {{
    type filter hook output priority -10; policy accept;
    meta skuid {uid} jump pull
  }}
  chain pull {{
    {_NEW_LINE.join(lines)}
    fib daddr type != unicast reject with icmpx type admin-prohibited
    ip daddr {{ {", ".join(map(str, CLOSED))} }} reject with icmpx type admin-prohibited
    meta nfproto ipv6 ip6 daddr != 2000::/3 reject with icmpx type admin-prohibited
    meta l4proto != tcp reject with icmpx type admin-prohibited
    accept
  }}
}}
"""


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _resolvers() -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for line in _RESOLVERS.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
    return found


def _places(domains: Iterable[str]) -> list[Place]:
    """Where these registries, and the proxies of our environment, are at present."""
    proxies = [value for name, value in os.environ.items() if name.lower() in ("http_proxy", "https_proxy")]
    found: list[Place] = []
    for url in (*(f"//{domain}" for domain in domains), *(each if "//" in each else f"//{each}" for each in proxies)):
        with contextlib.suppress(ValueError, OSError):
            parts = urlsplit(url)
            ports = (parts.port,) if parts.port else _HTTP_PORTS
            addresses = {str(each[4][0]) for each in socket.getaddrinfo(parts.hostname, None, type=socket.SOCK_STREAM)}
            found += [(address.partition("%")[0], port) for address in sorted(addresses) for port in ports]
    return found


def _load(text: str) -> None:
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")
    if program is None:
        raise SandptyError("runtime_failed", "nft is not installed (Debian: apt-get install nftables)")
    try:
        done = subprocess.run(
            [program, "-f", "-"], input=text, text=True, capture_output=True, timeout=_NFT_TIMEOUT_S, check=False
        )
    except subprocess.SubprocessError as error:
        raise SandptyError("runtime_failed", f"nft does not answer: {error}") from error
    if done.returncode != 0:
        raise SandptyError("runtime_failed", f"nft refuses the rules of a pull: {done.stderr.strip()[:300]}")
