"""Who may reach a sandbox's ports, and how its services are spoken to: kept in the sandbox's annotations."""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Any

import msgspec

from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

KEY = "ports"  # in the annotations
_HTTPS_PORTS_MAX = 64
_HOST_MAX = 255
_PORT_PLACE = "${PORT}"
_HOST = re.compile(r"[A-Za-z0-9._\-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?", re.ASCII)


class PortPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """`token`: who has none is refused ("": public). `mask_host`: the Host that services see; ${PORT} is the port.

    `https_ports`: services there speak TLS; their certificates are not checked.
    """

    token: str = ""
    mask_host: str = ""
    https_ports: tuple[int, ...] = ()

    def admits(self, token: str) -> bool:
        """Whether a request that carries `token` ("": none) may pass."""
        return not self.token or hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self.token.encode())

    def host_for(self, host: str, port: int) -> str:
        """What a service is told as its Host."""
        return self.mask_host.replace(_PORT_PLACE, str(port)) if self.mask_host else host

    def annotations(self) -> dict[str, Any]:
        """For `CreateSpec.extras`; empty for the default."""
        fields = msgspec.to_builtins(self)
        return {KEY: fields} if fields else {}


DEFAULT = PortPolicy()


def new_policy(*, public: bool = True, mask_host: str = "", https_ports: tuple[int, ...] = ()) -> PortPolicy:
    """For a new sandbox; not public makes a token. Raises bad_argument."""
    if mask_host and not (len(mask_host) <= _HOST_MAX and _HOST.fullmatch(mask_host.replace(_PORT_PLACE, "1"))):
        raise SandptyError("bad_argument", "maskRequestHost is no host name, with or without a port")
    if len(https_ports) > _HTTPS_PORTS_MAX or any(not 1 <= port <= 65535 for port in https_ports):
        raise SandptyError("bad_argument", f"httpsPorts holds up to {_HTTPS_PORTS_MAX} ports from 1 to 65535")
    return PortPolicy("" if public else secrets.token_hex(32), mask_host, https_ports)


def policy_of(sandbox: Sandbox) -> PortPolicy:
    kept = sandbox.annotations.get(KEY)
    return msgspec.convert(kept, PortPolicy) if kept else DEFAULT
