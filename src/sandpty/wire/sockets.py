"""How the server asks the supervisor for sockets inside a sandbox's network namespace.

A second unix socket beside that of the verbs, SOCK_SEQPACKET, 0600: each message is one JSON object. The sockets
themselves come with the answer (SCM_RIGHTS), one for each kind that was asked for, in that order; a failure comes with
none. Answers come in the order of the requests.

request  {"id": "<sandbox>", "kinds": ["tcp4", ...]}                         sockets that are not connected yet
         {"id": "<sandbox>", "kinds": ["tcp4"], "address": "127.0.0.1", "port": 80}   one socket, bound (TCP: listening)
answer   {"address": "10.1.2.3"}                                              the guest's own address, "" without one
         {"reason": "no_such_sandbox", "message": "..."}                      a reason of `wire.errors`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

SocketKind = Literal["tcp4", "tcp6", "udp4", "udp6"]
KINDS: tuple[SocketKind, ...] = get_args(SocketKind)
MESSAGE_BYTES_MAX = 4096
SOCKETS_MAX = 8  # in one answer
_ID_BYTES_MAX = 64
_ADDRESS_BYTES_MAX = 64


@dataclass(frozen=True, slots=True)
class SocketRequest:
    """`address` and `port`: bind the one socket there; the supervisor may use ports that need privileges."""

    id: str
    kinds: tuple[SocketKind, ...]
    address: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class SocketAnswer:
    """`reason` is empty on success."""

    address: str = ""
    reason: str = ""
    message: str = ""


def pack_request(request: SocketRequest) -> bytes:
    fields: dict[str, Any] = {"id": request.id, "kinds": request.kinds}
    if request.address:
        fields |= {"address": request.address, "port": request.port}
    return json.dumps(fields).encode()


def parse_request(data: bytes) -> SocketRequest:
    """Raises ValueError for whatever `pack_request` does not make."""
    fields = _object(data)
    sandbox_id, kinds = fields.get("id"), fields.get("kinds")
    address, port = fields.get("address", ""), fields.get("port", 0)
    if not isinstance(sandbox_id, str) or not 0 < len(sandbox_id) <= _ID_BYTES_MAX:
        raise ValueError("`id` is no sandbox id")
    if not isinstance(kinds, list) or not 0 < len(kinds) <= SOCKETS_MAX or any(kind not in KINDS for kind in kinds):
        raise ValueError("`kinds` is no list of kinds of sockets")
    if not isinstance(address, str) or len(address) > _ADDRESS_BYTES_MAX:
        raise ValueError("`address` is no address")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError("`port` is no port")
    if address and len(kinds) != 1:
        raise ValueError("one socket can be bound at a time")
    return SocketRequest(sandbox_id, tuple(kinds), address, port)


def pack_answer(answer: SocketAnswer) -> bytes:
    if answer.reason:
        return json.dumps({"reason": answer.reason, "message": answer.message[:512]}).encode()
    return json.dumps({"address": answer.address}).encode()


def parse_answer(data: bytes) -> SocketAnswer:
    """Raises ValueError."""
    fields = _object(data)
    values = [fields.get(name, "") for name in ("address", "reason", "message")]
    if not all(isinstance(value, str) for value in values):
        raise ValueError("an answer's fields are texts")
    return SocketAnswer(*values)


def _object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return fields
