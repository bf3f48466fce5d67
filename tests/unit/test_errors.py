"""The one table of errors: complete, consistent, and nothing raised that is not in it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sandpty
from sandpty.server.dialects.e2b.connect import HTTP_STATUS
from sandpty.terminal.connection import agent_error
from sandpty.wire.errors import REASONS, Reason, SandptyError
from sandpty.wire.frames import AgentError, AgentErrorCode

SOURCE = Path(sandpty.__file__).parent


@pytest.mark.parametrize("reason", REASONS.values(), ids=lambda reason: reason.name)
def test_a_reason_has_what_every_surface_needs(reason: Reason) -> None:
    """A Connect code that exists, an HTTP error status, a private close code, an exit status that is not success."""
    assert reason.name.replace("_", "").isalpha()
    assert reason.name == reason.name.lower()
    assert reason.connect in HTTP_STATUS
    assert 400 <= reason.http <= 599
    assert reason.ws_close == 4000 + reason.http
    assert 4000 <= reason.ws_close <= 4999
    assert 1 <= reason.exit_status <= 125 or reason.exit_status == 127


def test_names_are_their_keys() -> None:
    """A reason is found under the name it carries."""
    assert all(name == reason.name for name, reason in REASONS.items())


@pytest.mark.parametrize("reason", ["unauthenticated", "supervisor_down", "server_unreachable", "start_failed"])
def test_what_a_person_can_mend_says_how(reason: str) -> None:
    """A hint names the knob."""
    assert REASONS[reason].hint


@pytest.mark.parametrize("code", AgentErrorCode)
def test_every_error_of_an_agent_has_a_reason(code: AgentErrorCode) -> None:
    """No ERROR frame is a mystery: each code of the protocol is a reason of the table."""
    error = agent_error(AgentError(code, "why"))
    assert error.reason.name in REASONS
    assert error.message == "why"
    if code is not AgentErrorCode.INTERNAL and code is not AgentErrorCode.PORT_CLOSED:
        assert error.reason.name != "internal"


def test_an_error_is_never_without_words() -> None:
    """Also when whoever said it, such as a hostile agent, said nothing: then the reason's name is better than none."""
    assert str(agent_error(AgentError(AgentErrorCode.LIMIT, ""))) == "limit"
    error = SandptyError("no_such_image", "")
    assert error.message == str(error) == "no such image"


def test_an_unknown_code_of_an_agent_is_internal() -> None:
    """A newer or hostile agent's code does not crash the lookup."""
    assert agent_error(AgentError(60_000, "?")).reason.name == "internal"


def test_an_agents_message_is_bounded_and_can_be_shown() -> None:
    """A megabyte of bytes that are no UTF-8 becomes 500 characters that JSON can carry."""
    raw = (b"\xff\xfe" * 500_000).decode("utf-8", "surrogateescape")
    message = agent_error(AgentError(AgentErrorCode.LIMIT, raw)).message
    assert len(message) <= 500
    message.encode()


def _raised_reasons() -> list[tuple[str, str]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            first = node.args[0]
            if name == "SandptyError" and isinstance(first, ast.Constant):
                found.append((str(path.relative_to(SOURCE)), str(first.value)))
    return found


def test_every_reason_that_the_code_names_is_in_the_table() -> None:
    """A misspelt reason would be a KeyError at the worst moment."""
    raised = _raised_reasons()
    assert len(raised) > 20
    assert [item for item in raised if item[1] not in REASONS] == []


def test_an_error_knows_its_reason_and_its_message() -> None:
    """What crosses the wire is on the exception."""
    error = SandptyError("limit", "64 is enough")
    assert (error.reason, error.message, str(error)) == (REASONS["limit"], "64 is enough", "64 is enough")
    with pytest.raises(KeyError):
        SandptyError("no_such_reason", "")
