"""A supervisor for tests of the server alone: speaks the verbs, isolates nothing, starts nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from sandpty.wire import verbs
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import EndReason, Failure, Host, Limits, Message, Request, Sandbox


class FakeSupervisor:
    """Answers at `path`. A test adds sandboxes with the sockets of its fake agents."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self.sandboxes: dict[str, Sandbox] = {}
        self._owner = owner
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.asked: list[str] = []  # verbs, in order
        self.after: dict[str, list[Callable[[], None]]] = {}  # verb -> what happens once it was answered
        self.failing: dict[str, str] = {}  # verb -> reason it is refused with

    def add(self, sandbox_id: str, socket: Path, **annotations: Any) -> Sandbox:
        """A running sandbox, told to the server at once."""
        sandbox = Sandbox(
            id=sandbox_id,
            template="base",
            state="running",
            tier="fake",
            started_at=time.time(),
            end_at=time.time() + 3600,
            on_timeout="kill",
            limits=Limits(),
            internet=False,
            owner=self._owner,
            annotations={"token": f"token-{sandbox_id}", **annotations},
            socket=str(socket),
            boot_id="",
        )
        self.sandboxes[sandbox_id] = sandbox
        self._tell("changed", sandbox)
        return sandbox

    def end(self, sandbox_id: str, reason: EndReason = "agent_exited") -> None:
        self._tell("ended", msgspec.structs.replace(self.sandboxes.pop(sandbox_id), ended=reason))

    def _tell(self, event: str, sandbox: Sandbox) -> None:
        for writer in self._writers:
            writer.write(verbs.pack(Message(event=event, sandbox=sandbox)))

    def _answer(self, request: Request) -> Any:
        self.asked.append(request.verb)
        for work in self.after.pop(request.verb, ()):  # is on the wire together with the answer
            asyncio.get_running_loop().call_soon(work)
        args = msgspec.json.decode(request.args)
        match request.verb:
            case "hello":
                return Host(version=1, tier="fake", isolated=False, runtime="none", facts={}, pid=0)
            case "list":
                return {"sandboxes": list(self.sandboxes.values())}
            case "create":
                return self.add("icreated", Path("/nonexistent"))
            case "templates" | "ended":
                return {request.verb: []}
            case "kill":
                self.end(args["id"], "killed")
            case "pause" | "annotate" | "set_memory" | "network":
                before = self.sandboxes[args["id"]]
                fields = {
                    "pause": {"state": "paused"},
                    "annotate": {"annotations": args.get("annotations")},
                    "set_memory": {"limits": Limits(memory_mb=args.get("memory_mb", 0))},
                    "network": {"network": msgspec.convert(args.get("policy", {}), NetworkPolicy)},
                }[request.verb]
                sandbox = self.sandboxes[args["id"]] = msgspec.structs.replace(before, **fields)
                self._tell("changed", sandbox)
                return sandbox
        return {}

    def _message(self, request: Request) -> Message:
        if reason := self.failing.get(request.verb):
            return Message(id=request.id, error=Failure(reason, f"no {request.verb} today"))
        return Message(id=request.id, ok=msgspec.Raw(msgspec.json.encode(self._answer(request))))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        messages = verbs.MessageReader()
        try:
            while data := await reader.read(65536):
                for body in messages.feed(data):
                    request = msgspec.json.decode(body, type=Request)
                    writer.write(verbs.pack(self._message(request)))
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def hang_up(self) -> None:
        """Cut every connection, as a supervisor that dies does."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def __aenter__(self) -> FakeSupervisor:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()
