# Generated from sdk/_async by scripts/generate-sync: change it there.
"""Requests whose bodies are streams, or that go through a proxy: by httpx, which is loaded when the first is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from sandpty.sdk import errors
from sandpty.sdk._sync.http import CONNECT_TIMEOUT_S, Answer
from sandpty.sdk.exceptions import RequestTimeoutError
from sandpty.wire.errors import SandptyError


def _failure(url: str, what: str, timeout_s: float, error: httpx.HTTPError) -> SandptyError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return RequestTimeoutError(what, timeout_s)
    return errors.unreachable(url, error)


class StreamedAnswer:
    """An answer whose body comes. Read it to its end, or `close` it. `headers` are found in any case of letters."""

    def __init__(self, response: httpx.Response, url: str, what: str, timeout_s: float) -> None:
        self._response = response
        self._url = url
        self._what = what
        self._timeout_s = timeout_s
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Raises server_unreachable when it is cut off, RequestTimeoutError when it stalls."""
        try:
            for piece in self._response.iter_bytes():
                yield piece
        except httpx.HTTPError as error:
            raise _failure(self._url, self._what, self._timeout_s, error) from error

    def lines(self) -> Iterator[bytes]:
        """The same by lines, without their ends."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line
        if rest:
            yield rest

    def all(self) -> bytes:
        """The whole body, of what is small."""
        return b"".join([piece for piece in self.pieces()])

    def close(self) -> None:
        """Safe to repeat."""
        self._response.close()


class Streams:
    """One server's, at `url`. `close` it."""

    def __init__(self, url: str, headers: Mapping[str, str], *, direct: bool) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, trust_env=not direct)

    def close(self) -> None:
        self._http.close()

    def send(
        self, method: str, path: str, *, content: Any, headers: Mapping[str, str] | None, timeout_s: float
    ) -> StreamedAnswer:
        """`content`: None, bytes, or pieces. Raises the server's errors, server_unreachable, RequestTimeoutError."""
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        request = self._http.build_request(method, path, content=content, headers=headers, timeout=timeout)
        what = f"{method} {path.partition('?')[0]}"
        try:
            response = self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _failure(self._url, what, timeout_s, error) from error
        answer = StreamedAnswer(response, self._url, what, timeout_s)
        if answer.status >= 400:
            try:
                raise errors.from_response(answer.status, answer.all())
            finally:
                answer.close()
        return answer

    def ask(self, method: str, path: str, body: bytes = b"", *, kind: str = "", timeout_s: float) -> Answer:
        """As Http.ask, through the proxy that the environment names. Raises OSError (TimeoutError is one)."""
        headers = {"Content-Type": kind} if kind else {}
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        try:
            response = self._http.request(method, path, content=body, headers=headers, timeout=timeout)
        except httpx.ConnectTimeout as error:
            raise ConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except httpx.HTTPError as error:
            raise ConnectionError(str(error)) from error
        return Answer(response.status_code, response.content)
