"""Processes: started and carried (Python), started or run to their end (Node), listed, fed, signalled, waited for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import get_args

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import bad_request, json_response, of
from sandpty.server.dialects.hyperbrowser.numbering import Ledgers
from sandpty.server.dialects.hyperbrowser.process_status import JsonText, result, result_head, summary
from sandpty.server.dialects.hyperbrowser.process_stream import (
    EVENT_STREAM,
    EventStream,
    ProcessStream,
    as_base64,
    as_text,
    ascii_json,
)
from sandpty.server.dialects.hyperbrowser.requests import look, number, read_json, wait_for_end
from sandpty.server.dialects.hyperbrowser.starting import PROCESS, process_start, selector
from sandpty.server.dialects.hyperbrowser.tokens import authorized_sandbox
from sandpty.server.ends import still_runs, wait_for_the_end
from sandpty.terminal import attachment, control
from sandpty.terminal.attachment import Attachment
from sandpty.terminal.signals import signal_number
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Attach, Exit, From, Output, ProcessInfo, Selector, Start, StartFlags, Stream, Target
from sandpty.wire.verbs import Sandbox

_SIGKILL = 9
_STDIN = 1


class Processes:
    """The handlers of /processes and /exec."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ledgers = Ledgers()

    def _named(self, request: web.Request) -> tuple[Sandbox, Selector]:
        sandbox = authorized_sandbox(self._context, request)
        return sandbox, selector(PROCESS, request.match_info["process"])

    # --- start -----------------------------------------------------------------------------------------------------

    async def start(self, request: web.Request) -> web.StreamResponse:
        """With `Accept: text/event-stream` the answer is the process's output, from its first byte to its end."""
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.ProcessBody)
        if EVENT_STREAM in request.headers.get("Accept", ""):
            return await self._start_streaming(request, sandbox, process_start(body, sandbox, StartFlags.STDIN))
        start = process_start(body, sandbox, StartFlags.STDIN | StartFlags.REPLY_ONLY)
        await attachment.start_detached(sandbox.socket, start)
        return _answer(await look(sandbox, Selector.tagged(start.tag)))

    async def _start_streaming(self, request: web.Request, sandbox: Sandbox, start: Start) -> web.StreamResponse:
        async with await attachment.start(sandbox.socket, start) as attached:
            info = await look(sandbox, Selector.process(attached.info.process))
            out = EventStream(request)
            await out.open()
            await out.say("started", ascii_json(summary(info)))
            ledger = self._ledgers.of(sandbox.id, start.tag)
            stream = ProcessStream(out, attached, ledger, as_base64, first=1)
            if await self._carry(sandbox, attached, out, stream) is not None:
                info = await look(sandbox, Selector.process(info.process))
                head = {**result_head(info, truncated=False), "stdout": "", "stderr": "", "last_seq": stream.last}
                await out.say("done", ascii_json(head))
            return out.response

    async def exec(self, request: web.Request) -> web.StreamResponse:
        """The result when the command has ended; stdout is sent as it comes, so that no limit applies to it."""
        sandbox = authorized_sandbox(self._context, request)
        start = process_start(await read_json(request, models.ProcessBody), sandbox, StartFlags(0))
        async with await attachment.start(sandbox.socket, start) as attached:
            with self._context.registry.cutting(sandbox.id, attached.close):
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                await response.prepare(request)
                try:
                    async for piece in self._executed(sandbox, attached):
                        await response.write(piece)
                except SandptyError as error:  # half an answer is none
                    raise ConnectionResetError(error.message) from error
                await response.write_eof()
                return response

    async def _executed(self, sandbox: Sandbox, attached: Attachment) -> AsyncIterator[bytes]:
        errors = bytearray()
        out, err = JsonText(), JsonText()
        truncated = False
        yield b'{"result":{"stdout":"'
        while not isinstance(event := await attached.receive(), Exit):
            if not isinstance(event, Output):
                continue
            if event.stream != Stream.STDERR:
                yield out.piece(event.data)
            else:
                room = config.HYPERBROWSER_EXEC_STDERR_BYTES - len(errors)
                errors += event.data[:room]
                truncated = truncated or room < len(event.data)
            attached.acknowledge()
        info = await look(sandbox, Selector.process(attached.info.process))
        head = result_head(info, truncated=truncated)
        if truncated:
            head["error"] = f"stderr is over {config.HYPERBROWSER_EXEC_STDERR_BYTES} bytes and was cut"
        yield out.piece(b"", final=True) + b'","stderr":"' + err.piece(bytes(errors), final=True)
        yield b'",' + msgspec.json.encode(head)[1:] + b"}"

    # --- streams ---------------------------------------------------------------------------------------------------

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Output from event `from_seq` on, else from the oldest that is kept, to the process's end."""
        sandbox, which = self._named(request)
        first = number(request, "from_seq") or 0
        info = await look(sandbox, which)
        async with await self._attach(sandbox, info, first) as attached:
            ledger = self._ledgers.of(sandbox.id, which.tag)
            out = EventStream(request)
            await out.open()
            stream = ProcessStream(out, attached, ledger, as_text(), first)
            try:
                ended = await self._carry(sandbox, attached, out, stream)
            except BaseException:
                ledger.lose(stream.acknowledged)
                raise
            if ended is not None:
                info = await look(sandbox, which)
                await out.say_in_pieces("done", result(sandbox, info, last_seq=ledger.next_number - 1))
            return out.response

    async def _attach(self, sandbox: Sandbox, info: ProcessInfo, first: int) -> Attachment:
        """Raises output_lost when the events from `first` on are no longer kept."""
        ledger = self._ledgers.of(sandbox.id, info.tag)
        offset = info.start
        if first > 0:
            found = ledger.offset_of(first)
            if found is None or found < max(info.start, ledger.oldest_replayed(info.end)):
                raise SandptyError("output_lost", "these events are no longer kept")
            offset = found
        wanted = Attach(
            Selector.process(info.process),
            may_write=False,
            origin=From.OFFSET,
            value=offset,
            window=config.ATTACH_WINDOW_BYTES,
            stall_ms=int(config.HYPERBROWSER_REATTACH_S * 1000),
            keeps_place=True,
        )
        attached = await attachment.attach(sandbox.socket, wanted)
        again = await look(sandbox, Selector.process(info.process))
        if first > 0 and offset < again.start:  # a flood went past it while we looked
            attached.close()
            raise SandptyError("output_lost", "these events are no longer kept")
        return attached

    async def _carry(
        self, sandbox: Sandbox, attached: Attachment, out: EventStream, stream: ProcessStream
    ) -> Exit | None:
        """The process's end, or None once the client was told why there is none to come."""
        with self._context.registry.cutting(sandbox.id, attached.close):
            try:
                return await stream.carry()
            except SandptyError as error:
                if error.reason.name == "agent_unreachable":
                    await wait_for_the_end(self._context, sandbox)
                    if not still_runs(self._context, sandbox):
                        error = SandptyError("sandbox_ended", "Sandbox is not running")
                said = of(error)
                await out.say_error(said.message, said.code)
                return None

    # --- one process -----------------------------------------------------------------------------------------------

    async def get(self, request: web.Request) -> web.StreamResponse:
        return _answer(await look(*self._named(request)))

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """200 with its whole output once it has ended, 408 when it does not in time."""
        sandbox, which = self._named(request)
        body = await read_json(request, models.WaitBody)
        await look(sandbox, which)
        await wait_for_end(sandbox, which, body)
        info = await look(sandbox, which)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            await response.write(b'{"result":')
            async for piece in result(sandbox, info):
                await response.write(piece)
        except SandptyError as error:  # half an answer is none
            raise ConnectionResetError(error.message) from error
        await response.write(b"}")
        await response.write_eof()
        return response

    async def signal(self, request: web.Request) -> web.StreamResponse:
        """For the command and all it started in its group; KILL for its whole tree."""
        sandbox, which = self._named(request)
        body = await read_json(request, models.SignalBody)
        if body.signal in (None, ""):
            raise bad_request("signal is required")
        signal = signal_number(body.signal or "")
        await look(sandbox, which)
        await control.signal(sandbox.socket, which, signal, Target.TREE if signal == _SIGKILL else Target.GROUP)
        return _answer(await look(sandbox, which))

    async def kill(self, request: web.Request) -> web.StreamResponse:
        """Its whole tree is gone when this answers. What has ended is left as it is."""
        sandbox, which = self._named(request)
        if (await look(sandbox, which)).exit is None:
            with suppress(SandptyError):
                await control.signal(sandbox.socket, which, _SIGKILL, Target.TREE)
                await control.wait(sandbox.socket, which, config.STOP_TIMEOUT_S)
        return _answer(await look(sandbox, which))

    async def stdin(self, request: web.Request) -> web.StreamResponse:
        sandbox, which = self._named(request)
        body = await read_json(request, models.StdinBody)
        if (await look(sandbox, which)).exit is not None:
            raise SandptyError("exited", "the process has exited already")
        if body.data:
            await control.send_input(sandbox.socket, which, _STDIN, _stdin_bytes(body))
        if body.eof:
            await control.close_stdin(sandbox.socket, which)
        return json_response({"success": True})

    async def list(self, request: web.Request) -> web.StreamResponse:
        """Newest first. `status` (several with commas), `created_after`, `created_before` (ms), `limit`, `cursor`."""
        sandbox = authorized_sandbox(self._context, request)
        statuses = set(filter(None, request.query.get("status", "").split(",")))
        if not statuses <= set(get_args(models.ProcessStatus)):
            raise bad_request(f"status is one of {', '.join(get_args(models.ProcessStatus))}")
        limit = min(number(request, "limit") or config.LIST_PAGE_MAX, config.LIST_PAGE_MAX)
        before, after = number(request, "created_before"), number(request, "created_after")
        cursor = number(request, "cursor")
        found = [
            info
            for info in reversed(await control.list_processes(sandbox.socket))
            if info.tag.startswith(f"{PROCESS}_")
            and (cursor is None or info.process < cursor)
            and (before is None or info.started_ms <= before)
            and (after is None or info.started_ms >= after)
            and (not statuses or summary(info).status in statuses)
        ]
        page = found[:limit]
        more = str(page[-1].process) if len(found) > len(page) else None
        return json_response(models.ProcessList(data=[summary(info) for info in page], next_cursor=more))


def _answer(info: ProcessInfo) -> web.Response:
    return json_response({"process": summary(info)})


def _stdin_bytes(body: models.StdinBody) -> bytes:
    data = body.data or ""
    try:
        return base64.b64decode(data, validate=True) if body.encoding == "base64" else data.encode()
    except (binascii.Error, UnicodeError) as error:
        raise bad_request(f"data cannot be read: {error}") from error
