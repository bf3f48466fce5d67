"""A network policy as it is said, and what of it is secret: values of headers, a proxy's password. Pure.

The meaning is E2B's (its OpenAPI document). The destinations: network_rules.py. Where a policy is told, secrets are
HIDDEN; where one is given, HIDDEN means the value that is there already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

from sandpty.wire import network_rules
from sandpty.wire.network_rules import RuleError

HIDDEN = "<hidden>"
HEADER_HOSTS_MAX = 100  # that a policy sets headers for: it travels in one message and is kept with the sandbox
HEADERS_PER_HOST_MAX = 32
HEADER_NAME_BYTES_MAX = 128
HEADER_VALUE_BYTES_MAX = 8192  # what the usual web servers take of one header
PROXY_WORD_BYTES_MAX = 255  # a proxy's user name and its password: RFC 1929
PROXY_CA_BYTES_MAX = 8192  # E2B's own
Headers = Mapping[str, Mapping[str, str]]  # host -> header -> value
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_NOT_IN_VALUES = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, 5.5: a tab may be
_SECRET = re.compile(r"\$\{e2b\.secrets\.([^{}\x00-\x1f\x7f-\x9f]+)\}")  # as E2B's SDKs write it
_IDENTITY = "${e2b.identity."
# What decides where a request goes, where it ends and what its connection speaks is not for a policy to change.
_KEPT = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


class ProxyTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`server_name`: in the proxy's certificate, "" for its host. `ca_cert`: PEM, instead of the system's."""

    server_name: str = ""
    ca_cert: str = ""


class EgressProxy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A SOCKS5 proxy (RFC 1928, 1929) that TCP goes through. `address`: host:port."""

    address: str
    username: str = ""
    password: str = ""
    tls: ProxyTls | None = None

    def __repr__(self) -> str:  # logs and tracebacks show it
        return f"EgressProxy({self.address!r})"

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


class NetworkPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a sandbox may connect to, and how that is done. dns_servers None: the host's.

    headers: by host (a name, or `*.` and a name), what its HTTP requests are given on the way out.
    """

    allow_out: tuple[str, ...] = ()
    deny_out: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] | None = None
    headers: dict[str, dict[str, str]] = {}
    proxy: EgressProxy | None = None

    def __repr__(self) -> str:  # logs and tracebacks show it
        return f"NetworkPolicy(allow_out={self.allow_out!r}, deny_out={self.deny_out!r}, ...)"


# --- checked ---


def checked(policy: NetworkPolicy) -> NetworkPolicy:
    """The policy with its headers' hosts in normal form. Raises RuleError; its message holds no secret."""
    if policy.proxy is not None:
        _check_proxy(policy.proxy)
    if not policy.headers:
        return policy
    if len(policy.headers) > HEADER_HOSTS_MAX:
        raise RuleError(f"rules name {len(policy.headers)} hosts; {HEADER_HOSTS_MAX} are the most")
    headers: dict[str, dict[str, str]] = {}
    for host, given in policy.headers.items():
        _check_headers(host, given)
        least = 1 if host.strip().startswith("*.") else 2  # E2B allows *.com, and says what that means
        headers[network_rules.name_pattern(host, "rules host", least)] = given
    return msgspec.structs.replace(policy, headers=headers)


def _check_headers(host: str, headers: Mapping[str, str]) -> None:
    where = f"rules of {host[:80]!r}"
    if len(headers) > HEADERS_PER_HOST_MAX:
        raise RuleError(f"{where}: {len(headers)} headers; {HEADERS_PER_HOST_MAX} are the most")
    if len({name.lower() for name in headers}) < len(headers):
        raise RuleError(f"{where}: two headers differ only in case")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or len(name) > HEADER_NAME_BYTES_MAX:
            raise RuleError(f"{where}: {name[:80]!r} is not the name of a header")
        if name.lower() in _KEPT:
            raise RuleError(f"{where}: the header {name!r} belongs to the connection and cannot be set")
        if _NOT_IN_VALUES.search(value) or value != value.strip(" \t") or not _fits(value, HEADER_VALUE_BYTES_MAX):
            raise RuleError(
                f"{where}: the value of {name!r} has control characters, spaces around it, or over "
                f"{HEADER_VALUE_BYTES_MAX} bytes"
            )
        if _IDENTITY in value:
            raise RuleError(f"{where}: {name!r} asks for a workload identity token, which this server does not mint")


def is_header_value(value: str) -> bool:
    """Whether a header may have it."""
    clean = not _NOT_IN_VALUES.search(value) and value == value.strip(" \t")
    return clean and _fits(value, HEADER_VALUE_BYTES_MAX)


def _fits(text: str, bytes_max: int) -> bool:
    try:
        return len(text.encode()) <= bytes_max
    except UnicodeEncodeError:
        return False


def _check_proxy(proxy: EgressProxy) -> None:
    host, colon, port = proxy.address.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise RuleError("egressProxy address must be host:port, for example proxy.example.com:1080")
    check_proxy_host(host)
    if proxy.password and not proxy.username:
        raise RuleError("egressProxy password is only valid together with username")
    for what, text in (("username", proxy.username), ("password", proxy.password)):
        if not _fits(text, PROXY_WORD_BYTES_MAX):
            raise RuleError(f"egressProxy {what} is over {PROXY_WORD_BYTES_MAX} bytes")
    if proxy.tls is not None:
        if proxy.tls.server_name:
            network_rules.name_pattern(proxy.tls.server_name, "egressProxy tls serverName")
        if not _fits(proxy.tls.ca_cert, PROXY_CA_BYTES_MAX):
            raise RuleError(f"egressProxy tls caCert is over {PROXY_CA_BYTES_MAX} bytes")


def check_proxy_host(host: str) -> None:
    """Raises RuleError unless it is a name, or an address that may be reached."""
    address = network_rules.ipv4(host)
    if address is None:
        if network_rules.name_pattern(host, "egressProxy address").startswith("*"):
            raise RuleError("egressProxy address must be host:port, for example proxy.example.com:1080")
    elif not network_rules.is_open(address):
        raise RuleError(f"egressProxy address {host} is in a private or internal range")


# --- asked ---


def headers_of(name: str, headers: Mapping[str, dict[str, str]]) -> dict[str, str]:
    """What requests to a host (in normal form) are given: the exact rule's, else the longest wildcard's. Not merged."""
    for pattern in _patterns(name):
        if (found := headers.get(pattern)) is not None:
            return found
    return {}


def _patterns(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield f"*.{name}"


def secrets_in(policy: NetworkPolicy) -> set[str]:
    """The names of the team's secrets that values refer to."""
    values = (value for headers in policy.headers.values() for value in headers.values())
    return {name.lower() for value in values for name in _SECRET.findall(value)}


def filled(headers: Headers, secrets: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """With the secrets themselves, by their names. One that is no more is "": the service refuses the request then."""
    return {
        host: {
            name: _SECRET.sub(lambda match: secrets.get(match[1].lower(), ""), value) for name, value in given.items()
        }
        for host, given in headers.items()
    }


# --- hidden ---


def hidden(policy: NetworkPolicy) -> NetworkPolicy:
    """As it may be shown. References to secrets are none themselves."""
    if not policy.headers and policy.proxy is None:
        return policy
    headers = {
        host: {name: value if _SECRET.fullmatch(value) else HIDDEN for name, value in given.items()}
        for host, given in policy.headers.items()
    }
    proxy = policy.proxy
    if proxy is not None:
        tls = (
            None if proxy.tls is None else ProxyTls(server_name=proxy.tls.server_name, ca_cert=_veil(proxy.tls.ca_cert))
        )
        proxy = msgspec.structs.replace(proxy, password=_veil(proxy.password), tls=tls)
    return msgspec.structs.replace(policy, headers=headers, proxy=proxy)


def _veil(text: str) -> str:
    return HIDDEN if text else ""


def revealed(policy: NetworkPolicy, before: NetworkPolicy) -> NetworkPolicy:
    """What is HIDDEN in a policy is what `before` has there. Raises RuleError where it has nothing."""
    headers = {
        host: {name: _value(value, before.headers.get(host, {}).get(name)) for name, value in given.items()}
        for host, given in policy.headers.items()
    }
    proxy = policy.proxy
    if proxy is not None:
        same = before.proxy if before.proxy is not None and before.proxy.address == proxy.address else None
        proxy = msgspec.structs.replace(proxy, password=_value(proxy.password, same.password if same else None))
        if proxy.tls is not None:
            kept = same.tls.ca_cert if same is not None and same.tls is not None else None
            tls = msgspec.structs.replace(proxy.tls, ca_cert=_value(proxy.tls.ca_cert, kept))
            proxy = msgspec.structs.replace(proxy, tls=tls)
    return msgspec.structs.replace(policy, headers=headers, proxy=proxy)


def _value(given: str, kept: str | None) -> str:
    if given != HIDDEN:
        return given
    if kept is None:
        raise RuleError(f"{HIDDEN} stands for a value that was there before, and there was none")
    return kept
