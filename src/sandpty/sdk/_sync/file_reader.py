# Generated from sdk/_async by scripts/generate-sync: change it there.
"""A file of the guest as it comes, across lost connections."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from sandpty.sdk._sync.client import Client
from sandpty.sdk._sync.patience import LOST, Patience
from sandpty.sdk.file_values import Progress
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.sdk._sync.streams import StreamedAnswer

# Offsets mean nothing in a compressed stream, and a proxy on the way might compress.
_PLAIN = {"Accept-Encoding": "identity"}


class FileReader:
    """Iterate over it: pieces of bytes, as they come. Unless it is read to its end, close it or enter it with `with`.

    `size` is the file's length in bytes, None when nobody knows (files of /proc); `mode` its permission bits;
    `position` the offset of the next byte. A connection that breaks is made again and the rest is asked for, if the
    file is still the same one (else `conflict`); `reconnect_timeout_s` bounds each break.
    """

    def __init__(
        self,
        client: Client,
        address: str,
        *,
        offset: int = 0,
        reconnect_timeout_s: float,
        on_progress: Progress | None = None,
    ) -> None:
        self._client = client
        self._address = address
        self._reconnect_timeout_s = reconnect_timeout_s
        self._on_progress = on_progress
        self._answer: StreamedAnswer | None = None
        self._pieces: Iterator[bytes]
        self._tag = ""
        self.position = offset
        self.size: int | None = None
        self.mode = 0

    def open(self) -> None:
        """Ask for it. What fails here is raised, not tried again. Raises no_such_file, is_a_directory, not_a_file."""
        answer = self._request()
        self.mode = int(answer.headers.get("X-Sandpty-Mode", "0"), 8)
        self._tag = answer.headers.get("ETag", "")
        length = answer.headers.get("Content-Length")
        self.size = int(length) + (self.position if answer.status == 206 else 0) if length else None

    def _request(self) -> StreamedAnswer:
        headers = dict(_PLAIN)
        if self._tag:
            headers["If-Match"] = self._tag
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
        answer = self._client.stream("GET", self._address, headers=headers)
        if self.position and answer.status != 206:
            answer.close()
            raise SandptyError("unsupported", "this file cannot be read from the middle: its length is not known")
        self._answer, self._pieces = answer, answer.pieces()
        return answer

    def __iter__(self) -> FileReader:
        return self

    def __next__(self) -> bytes:
        while self._answer is not None:
            try:
                piece = next(self._pieces, b"")
            except SandptyError as error:
                self._go_on(error)
                continue
            except BaseException:
                self.close()
                raise
            if not piece:
                break
            self.position += len(piece)
            if self._on_progress is not None:
                self._on_progress(self.position, self.size)
            return piece
        self.close()
        raise StopIteration

    def _go_on(self, cause: SandptyError) -> None:
        """From where it broke. Raises conflict when the file is another by now, what ends it, `cause` at last."""
        self.close()
        if not self._tag:
            raise cause
        patience = Patience(self._reconnect_timeout_s)
        while True:
            patience.pause(cause)
            try:
                if self.position == self.size:  # nothing was missing but the end
                    return
                self._request()
            except SandptyError as error:
                if error.reason.name in ("no_such_file", "conflict"):
                    raise SandptyError("conflict", "the file was changed while it was read; read it again") from error
                if error.reason.name not in LOST:
                    raise
                cause = error
                continue
            return

    def close(self) -> None:
        """Read no more. Safe to repeat."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
