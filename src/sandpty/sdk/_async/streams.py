"""Requests whose bodies are streams, or that go through a proxy: by httpx, which is loaded when the first is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from sandpty.sdk import errors
from sandpty.sdk._async.http import CONNECT_TIMEOUT_S, Answer
from sandpty.sdk.exceptions import RequestTimeoutError
from sandpty.wire.errors import SandptyError


def _failure(url: str, what: str, timeout_s: float, error: httpx.HTTPError) -> SandptyError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return RequestTimeoutError(what, timeout_s)
    return errors.unreachable(url, error)


class AsyncStreamedAnswer:
    """An answer whose body comes. Read it to its end, or `close` it. `headers` are found in any case of letters."""

    def __init__(self, response: httpx.Response, url: str, what: str, timeout_s: float) -> None:
        self._response = response
        self._url = url
        self._what = what
        self._timeout_s = timeout_s
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises server_unreachable when it is cut off, RequestTimeoutError when it stalls."""
        try:
            async for piece in self._response.aiter_bytes():
                yield piece
        except httpx.HTTPError as error:
            raise _failure(self._url, self._what, self._timeout_s, error) from error

    async def lines(self) -> AsyncIterator[bytes]:
        """The same by lines, without their ends."""
        rest = b""
        async for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line
        if rest:
            yield rest

    async def all(self) -> bytes:
        """The whole body, of what is small."""
        return b"".join([piece async for piece in self.pieces()])

    async def close(self) -> None:
        """Safe to repeat."""
        await self._response.aclose()


class AsyncStreams:
    """One server's, at `url`. `close` it."""

    def __init__(self, url: str, headers: Mapping[str, str], *, direct: bool) -> None:
        self._url = url
        self._http = httpx.AsyncClient(base_url=url, headers=headers, trust_env=not direct)

    async def close(self) -> None:
        await self._http.aclose()

    async def send(
        self, method: str, path: str, *, content: Any, headers: Mapping[str, str] | None, timeout_s: float
    ) -> AsyncStreamedAnswer:
        """`content`: None, bytes, or pieces. Raises the server's errors, server_unreachable, RequestTimeoutError."""
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        request = self._http.build_request(method, path, content=content, headers=headers, timeout=timeout)
        what = f"{method} {path.partition('?')[0]}"
        try:
            response = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _failure(self._url, what, timeout_s, error) from error
        answer = AsyncStreamedAnswer(response, self._url, what, timeout_s)
        if answer.status >= 400:
            try:
                raise errors.from_response(answer.status, await answer.all())
            finally:
                await answer.close()
        return answer

    async def ask(self, method: str, path: str, body: bytes = b"", *, kind: str = "", timeout_s: float) -> Answer:
        """As AsyncHttp.ask, through the proxy that the environment names. Raises OSError (TimeoutError is one)."""
        headers = {"Content-Type": kind} if kind else {}
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        try:
            response = await self._http.request(method, path, content=body, headers=headers, timeout=timeout)
        except httpx.ConnectTimeout as error:
            raise ConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except httpx.HTTPError as error:
            raise ConnectionError(str(error)) from error
        return Answer(response.status_code, response.content)
