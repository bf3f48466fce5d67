"""One conversation with the supervisor from a command: blocking, one question after the other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from sandpty.config import DataDir
from sandpty.wire import verbs
from sandpty.wire.errors import REASONS, SandptyError
from sandpty.wire.templates import EVERYBODY, Template

ANSWER_TIMEOUT_S = 60.0  # ending a sandbox under full load


class _Sandboxes(msgspec.Struct, frozen=True):
    sandboxes: list[verbs.Sandbox]


class _Templates(msgspec.Struct, frozen=True):
    templates: list[Template]


class SupervisorLink:
    """A context manager around the supervisor's socket.

    Entering raises FileNotFoundError or ConnectionRefusedError when no supervisor runs, PermissionError when it is not
    ours to ask.
    """

    def __init__(self, path: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reader = verbs.MessageReader()
        self._waiting: list[bytes] = []
        self._last_id = 0

    def __enter__(self) -> SupervisorLink:
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.connect(str(self._path))
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def host(self) -> verbs.Host:
        """What holds here."""
        return msgspec.json.decode(self._ask("hello"), type=verbs.Host)

    def sandboxes(self) -> list[verbs.Sandbox]:
        """All of them, whoever owns them."""
        return msgspec.json.decode(self._ask("list"), type=_Sandboxes).sandboxes

    def templates(self) -> list[Template]:
        """Of all teams, and ours."""
        return msgspec.json.decode(self._ask("templates", {"owner": None}), type=_Templates).templates

    def template(self, name: str, owner: str = EVERYBODY) -> Template:
        """By ID, or by a name as its owner means it. Raises no_such_template."""
        return msgspec.json.decode(self._ask("template", {"reference": name, "owner": owner}), type=Template)

    def template_or_none(self, name: str) -> Template | None:
        """One that may be changed; None: the name is free. Raises conflict for one of ours."""
        try:
            found = self.template(name)
        except SandptyError as error:
            if error.reason.name != "no_such_template":
                raise
            return None
        if not found.builds:
            raise SandptyError("conflict", f"{name} is a template that sandpty brings: choose another --name")
        return found

    def save_template(self, template: Template) -> Template:
        """Raises bad_argument, conflict, limit."""
        return msgspec.json.decode(self._ask("save_template", msgspec.to_builtins(template)), type=Template)

    def delete_template(self, template_id: str) -> None:
        self._ask("delete_template", {"id": template_id})

    def kill(self, sandbox_id: str) -> None:
        """Returns once it is gone; one that is gone already is fine."""
        try:
            self._ask("kill", {"id": sandbox_id})
        except SandptyError as error:
            if error.reason.name != "no_such_sandbox":
                raise

    def reload_keys(self) -> None:
        """keys.json was changed: what is revoked counts no more."""
        self._ask("reload_keys")

    def annotate(self, sandbox_id: str, annotations: dict[str, Any]) -> None:
        """Replace what the server remembers of a sandbox."""
        self._ask("annotate", {"id": sandbox_id, "annotations": annotations})

    def shutdown(self) -> None:
        """End the supervisor, and what sandboxes there still are."""
        with contextlib.suppress(EOFError, ConnectionError):  # it may be gone before it has answered
            self._ask("shutdown", {"kill": True})

    def _ask(self, verb: str, args: dict[str, Any] | None = None) -> msgspec.Raw:
        self._last_id += 1
        request = verbs.Request(id=self._last_id, verb=verb, args=msgspec.Raw(msgspec.json.encode(args or {})))
        self._socket.sendall(verbs.pack(request))
        while True:
            message = msgspec.json.decode(self._next(), type=verbs.Message)
            if message.id != self._last_id:
                continue  # an event
            if message.error is not None:
                reason = message.error.reason if message.error.reason in REASONS else "internal"
                raise SandptyError(reason, message.error.message)
            return message.ok

    def _next(self) -> bytes:
        while not self._waiting:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError("the supervisor closed the connection")
            self._waiting = self._reader.feed(data)
        return self._waiting.pop(0)


@contextlib.contextmanager
def connected(data: DataDir) -> Iterator[SupervisorLink]:
    """For commands that are nothing without it. Raises supervisor_down, forbidden."""
    try:
        with SupervisorLink(data.supervisor_socket) as link:
            yield link
    except PermissionError:
        raise SandptyError("forbidden", "only who runs the supervisor (root) may ask it") from None
    except (FileNotFoundError, ConnectionError, EOFError) as error:
        raise SandptyError("supervisor_down", f"no supervisor answers for {data.root}") from error
