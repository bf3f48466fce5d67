"""Hyperbrowser's numbers, cuts and tokens: the pure parts."""

from __future__ import annotations

import json
import time

import pytest

from sandpty import config
from sandpty.server.dialects.hyperbrowser.chunks import Cutter
from sandpty.server.dialects.hyperbrowser.numbering import Ledger, Ledgers
from sandpty.server.dialects.hyperbrowser.process_status import JsonText
from sandpty.server.dialects.hyperbrowser.transfers import FileClaims
from sandpty.server.runtime_tokens import RuntimeClaims, SignedTokens, expiry
from sandpty.wire.errors import SandptyError


def test_a_ledger_remembers_where_events_are() -> None:
    """By offset, also one in the middle of an event, and by number."""
    ledger = Ledger()
    assert [ledger.add(0, 10), ledger.add(10, 15), ledger.add(20, 30)] == [1, 2, 3]
    assert ledger.known(0) == ledger.known(9) == (1, 10)
    assert ledger.known(12) == (2, 15)
    assert ledger.known(15) is None
    assert ledger.known(30) is None
    assert [ledger.offset_of(number) for number in (1, 2, 3, 4, 99)] == [0, 10, 20, 30, 30]
    assert ledger.next_number == 4


def test_a_ledger_never_numbers_backwards() -> None:
    """What other streams have gone past as lost cannot be numbered any more."""
    ledger = Ledger()
    ledger.add(20, 30)
    with pytest.raises(SandptyError, match="lost"):
        ledger.add(10, 20)


def test_a_ledger_is_bounded_and_forgets_the_oldest() -> None:
    """Numbers go on; forgotten ones are None."""
    ledger = Ledger()
    for at in range(config.HYPERBROWSER_EVENTS_NUMBERED + 1):
        assert ledger.add(at, at + 1) == at + 1
    assert len(ledger.ends) <= config.HYPERBROWSER_EVENTS_NUMBERED
    assert ledger.offset_of(1) is None
    assert ledger.offset_of(ledger.first) == ledger.first - 1


def test_a_lost_stream_may_ask_for_more() -> None:
    """For a while, by what it may have had in its buffers; then the window is the usual one."""
    ledger = Ledger()
    end = 100 * 1024 * 1024
    assert ledger.oldest_replayed(end) == end - config.HYPERBROWSER_REPLAY_BYTES
    ledger.lose(end - 20 * 1024 * 1024)
    assert ledger.oldest_replayed(end) < end - 20 * 1024 * 1024
    ledger.lost_until = time.monotonic() - 1
    assert ledger.oldest_replayed(end) == end - config.HYPERBROWSER_REPLAY_BYTES


def test_only_the_ledgers_used_last_are_kept() -> None:
    """A process that nobody has read for long is numbered anew."""
    ledgers = Ledgers()
    first = ledgers.of("s", "0")
    assert ledgers.of("s", "0") is first
    for number in range(config.HYPERBROWSER_LEDGERS_KEPT):
        ledgers.of("s", str(number + 1))
    assert ledgers.of("s", "0") is not first


@pytest.mark.parametrize("at", range(1, 14))
def test_chunks_end_between_characters(at: int) -> None:
    """Wherever the program's writes are cut, each piece is text, and offsets add up."""
    data = "aé€😀zé".encode()
    cutter = Cutter(100)
    pieces = [cutter.cut(data[:at], 100 + at), cutter.cut(data[at:], 100 + len(data)), cutter.rest()]
    assert b"".join(piece for piece, _ in pieces) == data
    end = 100
    for piece, said in pieces:
        piece.decode()
        end += len(piece)
        assert not piece or said == end


def test_text_in_pieces_is_one_ascii_json_string() -> None:
    """Characters may be cut anywhere; what is no text becomes U+FFFD."""
    text = JsonText()
    data = 'é"\\\n\u2028'.encode() + b"\xff"
    said = b"".join(text.piece(data[at : at + 1]) for at in range(len(data))) + text.piece(b"", final=True)
    assert said.isascii()
    assert json.loads(b'"' + said + b'"') == 'é"\\\n\u2028\ufffd'


def test_a_token_says_what_it_was_made_to_say_until_it_expires() -> None:
    """Not with another secret, not as another kind, not later."""
    tokens = SignedTokens(b"secret")
    claims = RuntimeClaims(sub="i1", own="team", exp=expiry(60), key="k")
    token = tokens.sign(claims)
    assert tokens.read(token, RuntimeClaims) == claims
    assert SignedTokens(b"secret").read(token, RuntimeClaims) == claims
    for other in (SignedTokens(b"other"), tokens):
        with pytest.raises(SandptyError):
            other.read(token if other is not tokens else token + "x", RuntimeClaims)
    with pytest.raises(SandptyError, match="something else"):
        tokens.read(token, FileClaims)
    with pytest.raises(SandptyError, match="expired"):
        tokens.read(tokens.sign(RuntimeClaims(sub="i1", own="team", exp=expiry(-1))), RuntimeClaims)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "\udcff", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.!.!"])
def test_what_is_no_token_is_refused(token: str) -> None:
    """As any wrong one."""
    with pytest.raises(SandptyError, match="not one of this server's"):
        SignedTokens(b"secret").read(token, RuntimeClaims)
