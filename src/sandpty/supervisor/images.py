"""Images that templates are made from: imported by a program of its own, kept while something refers to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import Any

import msgspec

from sandpty import config
from sandpty.config import DataDir
from sandpty.images import collecting, store, telling
from sandpty.images.telling import Done, Failed, Going, Order
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Layer
from sandpty.supervisor.events import Events
from sandpty.templates.catalog import Ready
from sandpty.wire.errors import SandptyError
from sandpty.wire.images import Image, ImportArgs

log = logging.getLogger(__name__)
_LINE_BYTES = 1024 * 1024  # of what the program says: a progress of 256 layers takes 40 KB
_END_TIMEOUT_S = 10.0
_POLITE = ("nice", "-n", "10")  # terminals come first


class CancelArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str


class Images:
    """The verbs of wire/images.py, and where sandboxes find the trees."""

    def __init__(self, data: DataDir, events: Events, background: Background, *, isolated: bool) -> None:
        self._data = data
        self._events = events
        self._background = background
        self._isolated = isolated
        self._held: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._imports: dict[str, asyncio.Task[Image]] = {}
        self._number = 0
        self._turn = asyncio.Semaphore(config.IMPORTS_IN_PARALLEL)
        self._collecting: asyncio.Task[None] | None = None

    # --- for sandboxes ---

    def ready(self, image_id: str) -> Ready:
        """What sandboxes of this image are made from. Raises no_such_template."""
        try:
            self._hold(image_id)
            image = store.find(self._data.images, image_id)
        except SandptyError:
            image = None
        if image is None:
            raise SandptyError("no_such_template", f"image {image_id[:64]!r} is not here")
        layers = (Layer(store.root(self._data.images, image_id)),)
        return Ready(image_id, layers, created_at=image.created_at, size_bytes=image.size_bytes)

    def _hold(self, image_id: str) -> None:
        """For a while: until what is made from it has been written down. Raises no_such_image."""
        fd, timer = self._held.pop(image_id, (-1, None))
        if timer is not None:
            timer.cancel()
        else:
            fd = store.hold(self._data.images, image_id)
        later = asyncio.get_running_loop().call_later(config.IMAGE_HELD_S, self._let_go, image_id)
        self._held[image_id] = (fd, later)

    def _let_go(self, image_id: str) -> None:
        os.close(self._held.pop(image_id)[0])

    # --- verbs ---

    @property
    def verbs(self) -> dict[str, Any]:
        """By name."""
        return {"import_image": self._import, "cancel_import": self._cancel, "images": self._list}

    async def _list(self, raw: msgspec.Raw) -> dict[str, list[Image]]:
        return {"images": await asyncio.to_thread(store.listed, self._data.images)}

    async def _cancel(self, raw: msgspec.Raw) -> dict[str, Any]:
        task = self._imports.get(msgspec.json.decode(raw, type=CancelArgs).token)
        if task is not None:
            task.cancel()
        return {}

    async def _import(self, raw: msgspec.Raw) -> Image:
        args = msgspec.json.decode(raw, type=ImportArgs)
        if not self._isolated:
            raise SandptyError("unsupported", "images are for sandboxes with a root of their own")
        if len(self._imports) >= config.IMPORTS_MAX:
            raise SandptyError("limit", f"{config.IMPORTS_MAX} imports are under way or waiting")
        self._number += 1
        token = args.token or f"#{self._number}"
        if token in self._imports:
            raise SandptyError("conflict", "an import with this token is under way")
        task = self._background.spawn(self._imported(args), f"import of {args.reference[:64]}", expected=True)
        self._imports[token] = task
        try:
            return await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise SandptyError("conflict", "the import was cancelled") from None
        finally:
            del self._imports[token]

    async def _imported(self, args: ImportArgs) -> Image:
        order = Order(
            images=str(self._data.images),
            source=args.reference,
            platform=args.platform,
            username=args.username,
            password=args.password,
            operator=False,
            registries=str(self._data.registries),
            registry_auth=str(self._data.registry_auth),
        )
        async with self._turn:
            await asyncio.to_thread(self._make_room)
            log.info("importing image %r", args.reference[:200])
            try:
                async with asyncio.timeout(config.IMAGE_IMPORT_S):
                    image = await self._run(order, args.token)
            except TimeoutError:
                raise SandptyError("timeout", f"not imported within {config.IMAGE_IMPORT_S:.0f} s") from None
            log.info("image %r is here as %s", args.reference[:200], image.id)
            return image

    def _make_room(self) -> None:
        """Raises limit while images take too much, also without those that nothing refers to."""
        for unneeded_go in (True, False):
            size = sum(image.size_bytes for image in store.listed(self._data.images))
            if size < config.IMAGES_BYTES_MAX:
                return
            if unneeded_go:
                collecting.collect(self._data, unused_s=0)
        raise SandptyError("limit", f"images take more than {config.IMAGES_BYTES_MAX} bytes: remove templates")

    async def _run(self, order: Order, token: str) -> Image:
        process = await asyncio.create_subprocess_exec(
            *_POLITE,
            *telling.argv(sys.executable),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LINE_BYTES,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            return await self._follow(process, token)
        finally:
            await _end(process)

    async def _follow(self, process: asyncio.subprocess.Process, token: str) -> Image:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            match msgspec.json.decode(line, type=telling.Said):
                case Going(progress):
                    if token:
                        self._events.publish_import(msgspec.structs.replace(progress, token=token))
                case Failed(reason, message):
                    raise SandptyError(reason, message)
                case Done(image):
                    self._hold(image.id)
                    return image
        raise SandptyError("internal", "the import ended without a word")

    async def close(self) -> None:
        """Give up the imports that are under way: they may take hours. They leave nothing."""
        tasks = list(self._imports.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what nobody needs ---

    def collect(self) -> None:
        """Remove, soon, what nothing refers to and is old."""
        if self._collecting is None or self._collecting.done():
            self._collecting = self._background.spawn(self._collect(), "collecting images")

    async def _collect(self) -> None:
        try:
            for image in await asyncio.to_thread(collecting.collect, self._data):
                log.info("image %s (%s) was removed: nothing refers to it", image.id, image.reference)
        except (OSError, ValueError) as error:
            log.warning("images cannot be collected: %s", error)


async def _end(process: asyncio.subprocess.Process) -> None:
    """It cleans up after itself when its stdin ends."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
