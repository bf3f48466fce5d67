"""`sandbox.files`: the guest's files, as E2B's SDK has them, as streams where they are big."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, overload
from urllib.parse import quote

from sandpty.sdk import errors
from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.file_reader import AsyncFileReader
from sandpty.sdk._async.http import Answer
from sandpty.sdk._async.patience import RECONNECT_TIMEOUT_S
from sandpty.sdk._async.watch import AsyncWatchHandle
from sandpty.sdk._awaiting import AsyncCallback, async_pieces
from sandpty.sdk.file_values import EntryInfo, Progress, WriteEntry, entry_of, octal, query_of
from sandpty.wire.errors import SandptyError

_HAS_TYPE = {"Content-Type": "application/octet-stream"}


class AsyncFiles:
    """Files of one sandbox. Paths are absolute, or below the user's home, also with `~`.

    In every method `user` says who acts (None: `user`): the guest's kernel decides what they may, and what is made is
    theirs. `request_timeout`: how many seconds the server may say nothing, however long the whole takes. All raise
    NoSuchFileError, NotAllowedError, NoDirectoryError, DirectoryThereError and FileThereError as Python's own file
    functions do, and SandptyError: no_such_user, bad_path, no_space, sandbox_ended.
    """

    def __init__(self, client: AsyncClient, sandbox_id: str) -> None:
        self._client = client
        self._root = f"/v1/sandboxes/{quote(sandbox_id, safe='')}/files"

    # --- content -----------------------------------------------------------------------------------------------------

    @overload
    async def read(
        self,
        path: str,
        format: Literal["text"] = "text",
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> str: ...

    @overload
    async def read(
        self,
        path: str,
        format: Literal["bytes"],
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> bytes: ...

    @overload
    async def read(
        self,
        path: str,
        format: Literal["stream"],
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        offset: int = 0,
        reconnect_timeout: float = RECONNECT_TIMEOUT_S,
        on_progress: Progress | None = None,
    ) -> AsyncFileReader: ...

    async def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        offset: int = 0,
        reconnect_timeout: float = RECONNECT_TIMEOUT_S,
        on_progress: Progress | None = None,
    ) -> str | bytes | AsyncFileReader:
        """A file's content: as text (UTF-8), as bytes, or as a stream of pieces of bytes, for files of any size.

        A connection that breaks is made again and reading goes on where it was, for `reconnect_timeout` seconds; a file
        that was changed meanwhile raises conflict. `offset`: where to begin. `on_progress(bytes so far, bytes in all or
        None)` is called for each piece. Raises bad_argument when text is wanted and the file holds none.
        """
        reader = AsyncFileReader(
            self._client.within(request_timeout),
            f"{self._root}/content?{query_of(path, user=user)}",
            offset=offset,
            reconnect_timeout_s=reconnect_timeout,
            on_progress=on_progress,
        )
        await reader.open()
        if format == "stream":
            return reader
        content = b"".join([piece async for piece in reader])
        if format == "bytes":
            return content
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise SandptyError("bad_argument", f'{path!r} is no UTF-8 text: read it with format="bytes"') from error

    async def write(
        self,
        path: str,
        data: Any,
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        append: bool = False,
        mode: int | None = None,
        owner: str | None = None,
        parents: bool = True,
        metadata: Mapping[str, str] | None = None,
        on_progress: Progress | None = None,
    ) -> EntryInfo:
        """Write a file: `data` is text, bytes, a file object, or an iterable of bytes, which are sent as they come.

        What was there is replaced, or kept with `append`; missing directories are made (`parents`). `mode` is exact
        (set-id bits take a `change` afterwards), else the umask's. `owner` (a name, or "UID:GID") takes `user="root"`.
        `metadata` replaces the file's own. Content is written in place: when the connection breaks what had arrived
        stays. Raises no_space.
        """
        query = query_of(
            path,
            user=user,
            append=append,
            mode=octal(mode),
            owner=owner,
            parents=parents,
            metadata=None if metadata is None else json.dumps(dict(metadata)),
        )
        answer = await self._client.within(request_timeout).stream(
            "PUT", f"{self._root}/content?{query}", content=_counted(data, on_progress), headers=_HAS_TYPE
        )
        try:
            return entry_of(self._said(await answer.all()))
        finally:
            await answer.close()

    async def write_files(
        self,
        files: Sequence[WriteEntry],
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> list[EntryInfo]:
        """Write several, one after the other: `[{"path": ..., "data": ...}]`. Those before an error stay."""
        return [
            await self.write(each["path"], each["data"], user, request_timeout, metadata=metadata) for each in files
        ]

    # --- looking -----------------------------------------------------------------------------------------------------

    async def list(
        self, path: str, depth: int = 1, user: str | None = None, request_timeout: float | None = None
    ) -> list[EntryInfo]:
        """What is in a directory, `depth` levels deep, a directory before what is in it, names in order of their bytes.

        Raises limit when there are more than 100,000.
        """
        return [entry async for entry in self.scan(path, depth, user, request_timeout)]

    async def scan(
        self, path: str, depth: int = 1, user: str | None = None, request_timeout: float | None = None
    ) -> AsyncIterator[EntryInfo]:
        """The same, one entry after the other as they come."""
        client = self._client.within(request_timeout)
        answer = await client.stream("GET", f"{self._root}/list?{query_of(path, depth=depth, user=user)}")
        try:
            async for line in answer.lines():
                said = json.loads(line)
                if "error" in said:
                    raise errors.from_member(said["error"])
                yield entry_of(said)
        except (ValueError, KeyError) as error:
            raise errors.unreachable(self._client.url, error) from error
        finally:
            await answer.close()

    async def exists(self, path: str, user: str | None = None, request_timeout: float | None = None) -> bool:
        """Whether something is there; a symlink that leads nowhere is something."""
        try:
            await self.get_info(path, user, request_timeout)
        except SandptyError as error:
            if error.reason.name in ("no_such_file", "not_a_directory"):
                return False
            raise
        return True

    async def get_info(
        self, path: str, user: str | None = None, request_timeout: float | None = None, *, follow: bool = False
    ) -> EntryInfo:
        """One entry: of a symlink itself, or with `follow` of what it leads to."""
        query = query_of(path, user=user, follow=follow)
        return entry_of(await self._ask("GET", f"/stat?{query}", request_timeout))

    # --- changing ----------------------------------------------------------------------------------------------------

    async def make_dir(
        self,
        path: str,
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        mode: int | None = None,
        owner: str | None = None,
    ) -> bool:
        """Make a directory, and those above it; False when it is there. Raises FileThereError for something else."""
        query = query_of(path, user=user, parents=True, mode=octal(mode), owner=owner)
        return (await self._answer("PUT", f"/directory?{query}", request_timeout)).status == 201

    async def make_symlink(
        self, path: str, target: str, user: str | None = None, request_timeout: float | None = None
    ) -> EntryInfo:
        """Make a symlink at `path` that holds `target`, as it is written. Raises FileThereError."""
        query = query_of(path, text=target, user=user)
        return entry_of(await self._ask("PUT", f"/symlink?{query}", request_timeout))

    async def rename(
        self,
        old_path: str,
        new_path: str,
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        overwrite: bool = True,
    ) -> EntryInfo:
        """Move a file or a directory, also to another file system; directories above `new_path` are made."""
        query = query_of(old_path, to=new_path, user=user, overwrite=overwrite, parents=True)
        return entry_of(await self._ask("POST", f"/move?{query}", request_timeout))

    async def copy(
        self,
        path: str,
        new_path: str,
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        overwrite: bool = True,
    ) -> EntryInfo:
        """Copy a file, or a directory with all in it, within the sandbox: modes, times, owners and symlinks too."""
        query = query_of(path, to=new_path, user=user, recursive=True, overwrite=overwrite, parents=True)
        return entry_of(await self._ask("POST", f"/copy?{query}", request_timeout))

    async def change(
        self,
        path: str,
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        mode: int | None = None,
        owner: str | None = None,
        modified_ns: int | None = None,
        recursive: bool = False,
    ) -> EntryInfo:
        """Give it another mode, owner (a name, or "UID:GID"), time of its last change. What is None stays."""
        query = query_of(path, user=user, mode=octal(mode), owner=owner, modified_ns=modified_ns, recursive=recursive)
        return entry_of(await self._ask("POST", f"/change?{query}", request_timeout))

    async def remove(self, path: str, user: str | None = None, request_timeout: float | None = None) -> None:
        """Remove a file, or a directory with all in it; a symlink, not what it leads to. Not there is fine."""
        query = query_of(path, user=user, recursive=True)
        try:
            await self._answer("DELETE", f"?{query}", request_timeout)
        except SandptyError as error:
            if error.reason.name not in ("no_such_file", "not_a_directory"):
                raise

    # --- watching ----------------------------------------------------------------------------------------------------

    async def watch_dir(
        self,
        path: str,
        on_event: AsyncCallback | None = None,
        on_exit: AsyncCallback | None = None,
        *,
        user: str | None = None,
        request_timeout: float | None = None,
        timeout: float | None = None,
        recursive: bool = False,
        include_entry: bool = False,
        allow_network_mounts: bool = False,
    ) -> AsyncWatchHandle:
        """Watch a directory. `on_event(FilesystemEvent)` is called in the background; without it, iterate or ask.

        `on_exit(error or None)` is told the end. `timeout`: the seconds after which the watch ends by itself, 0 or None
        for never. Lost connections are made again; what may have been missed is an OVERFLOW event. Raises limit when
        the sandbox has too many watches, network_file_system.
        """
        query = query_of(
            path, user=user, recursive=recursive, entries=include_entry, network_file_systems=allow_network_mounts
        )
        address = f"{self._root}/watch?{query}"
        handle = AsyncWatchHandle(self._client.within(request_timeout), address, timeout_s=timeout or None)
        await handle.open()
        if on_event is not None or on_exit is not None:
            handle.listen(on_event, on_exit)
        return handle

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _answer(self, method: str, rest: str, request_timeout: float | None) -> Answer:
        return await self._client.within(request_timeout).exchange(method, self._root + rest)

    async def _ask(self, method: str, rest: str, request_timeout: float | None) -> Mapping[str, Any]:
        return self._said((await self._answer(method, rest, request_timeout)).body)

    def _said(self, body: bytes) -> Mapping[str, Any]:
        try:
            said: Mapping[str, Any] = json.loads(body)
        except ValueError as error:
            raise errors.unreachable(self._client.url, error) from error
        return said


async def _counted(data: Any, on_progress: Progress | None) -> AsyncIterator[bytes]:
    """The pieces of an upload, counted as they are taken."""
    count, whole = 0, _size_of(data)
    async for piece in async_pieces(data):
        yield piece
        count += len(piece)
        if on_progress is not None:
            on_progress(count, whole)


def _size_of(data: Any) -> int | None:
    """In bytes, when that can be known before it is read."""
    if isinstance(data, str):
        return len(data.encode())
    if isinstance(data, bytes | bytearray | memoryview):
        return memoryview(data).nbytes
    try:
        at = data.tell()
        end = data.seek(0, 2)
        data.seek(at)
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return int(end - at)
