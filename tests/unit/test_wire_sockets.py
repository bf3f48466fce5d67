"""What server and supervisor say to each other about sockets inside sandboxes."""

from __future__ import annotations

import json

import pytest

from sandpty.wire import sockets
from sandpty.wire.sockets import SocketAnswer, SocketRequest


@pytest.mark.parametrize(
    "request_",
    [
        SocketRequest("i" + "0" * 20, ("tcp4",)),
        SocketRequest("i" + "0" * 20, ("tcp4", "tcp6", "udp4", "udp6")),
        SocketRequest("i" + "0" * 20, ("tcp6",), "::1", 65535),
    ],
)
def test_a_request_arrives_as_it_was_meant(request_: SocketRequest) -> None:
    """Packed and parsed it is the same."""
    assert sockets.parse_request(sockets.pack_request(request_)) == request_


@pytest.mark.parametrize("answer", [SocketAnswer("10.1.2.3"), SocketAnswer(), SocketAnswer("", "conflict", "in use")])
def test_an_answer_arrives_as_it_was_meant(answer: SocketAnswer) -> None:
    """Packed and parsed it is the same."""
    assert sockets.parse_answer(sockets.pack_answer(answer)) == answer


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id": "", "kinds": ["tcp4"]},
        {"id": 7, "kinds": ["tcp4"]},
        {"id": "i" * 65, "kinds": ["tcp4"]},
        {"id": "i", "kinds": []},
        {"id": "i", "kinds": "tcp4"},
        {"id": "i", "kinds": ["raw"]},
        {"id": "i", "kinds": [["tcp4"]]},
        {"id": "i", "kinds": ["tcp4"] * 9},
        {"id": "i", "kinds": ["tcp4"], "address": 1},
        {"id": "i", "kinds": ["tcp4"], "address": "1" * 65},
        {"id": "i", "kinds": ["tcp4"], "address": "127.0.0.1", "port": -1},
        {"id": "i", "kinds": ["tcp4"], "address": "127.0.0.1", "port": 65536},
        {"id": "i", "kinds": ["tcp4"], "address": "127.0.0.1", "port": True},
        {"id": "i", "kinds": ["tcp4", "tcp6"], "address": "127.0.0.1", "port": 80},
    ],
)
def test_what_is_out_of_bounds_is_refused(fields: dict[str, object]) -> None:
    """The supervisor believes nobody."""
    with pytest.raises(ValueError, match=r"`|one socket"):
        sockets.parse_request(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"null", b"[1]", b"\xff", b'{"address": 1}', b'{"reason": []}'])
def test_an_answer_of_another_shape_is_refused(data: bytes) -> None:
    """Nor does the server."""
    with pytest.raises(ValueError, match=r".+"):
        sockets.parse_answer(data)
