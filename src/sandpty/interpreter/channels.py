"""Jupyter's messaging protocol 5.3 with one kernel: signed messages over ZeroMQ sockets.

Source: the Jupyter client documentation, "Messaging in Jupyter". Only what running code needs: requests on the shell
and control channels, and what the kernel publishes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import zmq
import zmq.asyncio

_DELIMITER = b"<IDS|MSG>"
_VERSION = "5.3"


@dataclass(frozen=True)
class Message:
    """What a kernel said; `parent` is the id of the request that it belongs to."""

    kind: str
    parent: str
    content: dict[str, Any]


class Channels:
    """The sockets to one kernel. `close` them."""

    def __init__(self, context: zmq.asyncio.Context, connection: dict[str, Any]) -> None:
        self._key = connection["key"].encode()
        self._session = uuid.uuid4().hex
        self.shell = self._socket(context, zmq.DEALER, connection, "shell_port")
        self.control = self._socket(context, zmq.DEALER, connection, "control_port")
        self.published = self._socket(context, zmq.SUB, connection, "iopub_port")
        self.published.setsockopt(zmq.SUBSCRIBE, b"")

    def _socket(self, context: zmq.asyncio.Context, kind: int, connection: dict[str, Any], port: str) -> Any:
        socket = context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = 0  # nothing is dropped: a kernel that says too much is stopped
        socket.reconnect_ivl = 5  # ms: the kernel binds its side some time after we connect
        if kind == zmq.DEALER:
            socket.identity = self._session.encode()
        separator = "-" if connection["transport"] == "ipc" else ":"
        socket.connect(f"{connection['transport']}://{connection['ip']}{separator}{connection[port]}")
        return socket

    def close(self) -> None:
        for socket in (self.shell, self.control, self.published):
            socket.close()

    async def send(self, socket: Any, kind: str, content: dict[str, Any]) -> str:
        """Send a request; returns its id."""
        message_id = uuid.uuid4().hex
        header = {
            "msg_id": message_id,
            "session": self._session,
            "username": "user",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": kind,
            "version": _VERSION,
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        await socket.send_multipart([_DELIMITER, self._sign(parts), *parts])
        return message_id

    async def receive(self, socket: Any) -> Message | None:
        """The next message; None for one that is not what it should be."""
        frames = await socket.recv_multipart()
        try:
            start = frames.index(_DELIMITER)
            signature, header, parent, _, content = frames[start + 1 : start + 6]
        except ValueError:
            return None
        parts = frames[start + 2 : start + 6]
        if not hmac.compare_digest(signature, self._sign(parts)):
            return None
        try:
            parent_id = json.loads(parent).get("msg_id", "")
            return Message(json.loads(header)["msg_type"], parent_id, json.loads(content))
        except (ValueError, KeyError, AttributeError):
            return None

    def _sign(self, parts: list[bytes]) -> bytes:
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(part)
        return digest.hexdigest().encode()


def new_connection(transport: str, directory: str) -> dict[str, Any]:
    """What a connection file says: where the kernel shall bind. `ipc` needs a directory that only we can enter."""
    names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
    if transport == "ipc":
        ip, ports = os.path.join(directory, "k"), list(range(1, len(names) + 1))
    else:
        ip, ports = "127.0.0.1", _free_ports(len(names))
    return {
        "transport": transport,
        "ip": ip,
        **dict(zip(names, ports, strict=True)),
        "key": uuid.uuid4().hex,
        "signature_scheme": "hmac-sha256",
        "kernel_name": "",
    }


def _free_ports(count: int) -> list[int]:
    import socket

    opened = [socket.socket() for _ in range(count)]
    try:
        for each in opened:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in opened]
    finally:
        for each in opened:
            each.close()
