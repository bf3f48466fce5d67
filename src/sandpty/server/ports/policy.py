"""Who may reach a sandbox's ports, and how its services are spoken to: kept in the sandbox's annotations."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
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
    """`private`: only who has the traffic token comes in. `mask_host`: the Host that services see; ${PORT} is the port.

    `https_ports`: services there speak TLS; their certificates are not checked. `exposed`: only these ports can be
    reached (None: all), those that are true only with a token of the sandbox (exposure.py).
    """

    private: bool = False
    mask_host: str = ""
    https_ports: tuple[int, ...] = ()
    exposed: dict[int, bool] | None = None

    def host_for(self, host: str, port: int) -> str:
        """What a service is told as its Host."""
        return self.mask_host.replace(_PORT_PLACE, str(port)) if self.mask_host else host

    def annotations(self) -> dict[str, Any]:
        """For `CreateSpec.extras`; empty for the default."""
        fields = msgspec.to_builtins(self, str_keys=True)
        return {KEY: fields} if fields else {}

    @property
    def wants_tokens(self) -> frozenset[int]:
        """Ports whose requests carry a token of this server's, which is not the service's business."""
        return frozenset(port for port, wanted in (self.exposed or {}).items() if wanted)


DEFAULT = PortPolicy()


def new_policy(*, private: bool = False, mask_host: str = "", https_ports: Sequence[int] = ()) -> PortPolicy:
    """For a new sandbox. Raises bad_argument."""
    if mask_host and not (len(mask_host) <= _HOST_MAX and _HOST.fullmatch(mask_host.replace(_PORT_PLACE, "1"))):
        raise SandptyError("bad_argument", "maskRequestHost is no host name, with or without a port")
    if len(https_ports) > _HTTPS_PORTS_MAX or any(not 1 <= port <= 65535 for port in https_ports):
        raise SandptyError("bad_argument", f"httpsPorts holds up to {_HTTPS_PORTS_MAX} ports from 1 to 65535")
    return PortPolicy(private, mask_host, tuple(https_ports))


def policy_of(sandbox: Sandbox) -> PortPolicy:
    kept = sandbox.annotations.get(KEY)
    return msgspec.convert(kept, PortPolicy, str_keys=True) if kept else DEFAULT


def traffic_token(sandbox: Sandbox) -> str | None:
    """What opens a private sandbox's ports; None for a public one.

    Made from the access token, so that a fork has one of its own; it does not tell the access token.
    """
    if not policy_of(sandbox).private:
        return None
    return hmac.new(sandbox.annotations["token"].encode(), b"traffic", hashlib.sha256).hexdigest()


def admits(sandbox: Sandbox, token: str) -> bool:
    """Whether a request that carries `token` ("": none) may reach the sandbox's ports."""
    wanted = traffic_token(sandbox)
    return wanted is None or hmac.compare_digest(token.encode("utf-8", "surrogateescape"), wanted.encode())
