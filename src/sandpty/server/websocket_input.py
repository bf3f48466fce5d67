"""A WebSocket whose messages can be taken the moment they are in.

aiohttp's own way is a queue, and a task that is woken to look into it: right for whoever has to wait, and a third of
what a key costs the server when nobody has to. Only the queue's entrance is ours: aiohttp cuts frames out, unmasks and
checks them. It has no hook for this; should a version of it pass this one by, all goes aiohttp's way, and
tests/component/test_websocket_input.py says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from aiohttp import WSMsgType, web
from aiohttp._websocket.reader import WebSocketDataQueue

Take: TypeAlias = Callable[[bytes], bool]


class TakingSocket(web.WebSocketResponse):
    """`take` is called with each binary message as it comes in; what it returns False for is left to `receive`.

    It is not called while an earlier message waits for `receive`: their order stays.
    """

    take: Take | None = None
    _queue: _Queue | None = None

    @property
    def _reader(self) -> WebSocketDataQueue | None:
        return self._queue

    @_reader.setter
    def _reader(self, made: WebSocketDataQueue | None) -> None:
        """aiohttp sets its queue once, at the upgrade, before anything is read from the connection."""
        self._queue = _Queue(made, self) if made is not None else None


class _Queue(WebSocketDataQueue):
    def __init__(self, like: WebSocketDataQueue, socket: TakingSocket) -> None:
        super().__init__(like._protocol, like._limit // 2, loop=asyncio.get_running_loop())  # it doubles the limit
        self._socket = socket

    def feed_data(self, data: Any, size: int) -> None:
        take = self._socket.take
        if take is not None and data.type is WSMsgType.BINARY and not self._buffer and take(data.data):
            return
        super().feed_data(data, size)
