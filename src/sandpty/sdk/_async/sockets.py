"""WebSockets of the native dialect, and what their ends mean."""

from __future__ import annotations

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from sandpty.sdk import errors
from sandpty.sdk._concurrency import AsyncSocket, async_open_socket
from sandpty.wire.errors import SandptyError


async def async_connect_socket(
    address: str, headers: dict[str, str], *, direct: bool, patient: bool = False
) -> AsyncSocket:
    """As `async_open_socket`. Raises what the server refuses it with, server_unreachable."""
    try:
        return await async_open_socket(address, headers, direct=direct, patient=patient)
    except InvalidStatus as error:
        raise errors.from_response(error.response.status_code, bytes(error.response.body or b"")) from error
    except (OSError, WebSocketException) as error:
        raise errors.unreachable(address.partition("/v1/")[0], error) from error


def closed_socket(address: str, error: ConnectionClosed) -> SandptyError:
    """Why a WebSocket at that address was closed: the server's reason, or server_unreachable."""
    received = error.rcvd
    if received is not None and received.code >= 4000:
        return errors.from_close(received.code, received.reason)
    return errors.unreachable(address.partition("/v1/")[0], error)
