"""What the SDK shows: both flavours alike, every part documented, the two kinds of timeouts told apart."""

from __future__ import annotations

import inspect
import pydoc
from typing import Any

import pytest

import sandpty
from sandpty import sdk

PUBLIC = {name: getattr(sandpty, name) for name in sdk.__all__}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
PAIRS = sorted(name for name in CLASSES if name.startswith("Async"))
TIMED = ["AsyncSandbox", "AsyncPty", "AsyncCommands", "AsyncFiles"]  # shaped as E2B's, whose calls take request_timeout
LOCAL = {"close"}  # asks the server nothing


def members(class_: type) -> dict[str, Any]:
    """Its public methods and properties, those it inherited from ours too."""
    found = {}
    for each in reversed(class_.__mro__):
        if each.__module__.startswith("sandpty"):
            found |= {name: value for name, value in vars(each).items() if not name.startswith("_")}
    return {
        name: inspect.unwrap(getattr(value, "__func__", value))
        for name, value in found.items()
        if callable(value) or isinstance(value, classmethod | property)
    }


def parameters(method: Any) -> list[str]:
    """Names and kinds, as a caller sees them."""
    if isinstance(method, property):
        return []
    return [f"{each.kind.name} {each.name}={each.default}" for each in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize("name", PAIRS)
def test_both_flavours_are_alike(name: str) -> None:
    """The same members with the same parameters: who knows one knows the other."""
    ours, other = members(CLASSES[name]), members(CLASSES[name.removeprefix("Async")])
    assert set(ours) == set(other)
    for member, method in ours.items():
        if not (inspect.isclass(method) or isinstance(method, type)):
            assert parameters(method) == parameters(other[member]), member


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_everything_is_documented(name: str) -> None:
    """A class, and each method and property of it."""
    class_ = CLASSES[name]
    assert inspect.getdoc(class_)
    bare = {
        member for member, value in members(class_).items() if not inspect.getdoc(value) and not inspect.isclass(value)
    }
    assert not bare - {"close", "open"}, name


@pytest.mark.parametrize("name", ["sandpty", "sandpty.sdk", *(f"sandpty.{name}" for name in sorted(CLASSES))])
def test_pydoc_shows_it(name: str) -> None:
    """With its first sentence, and nothing of how it is made."""
    text = pydoc.plain(pydoc.render_doc(name))
    assert len(text.splitlines()) > 5
    assert (inspect.getdoc(pydoc.locate(name)) or "").splitlines()[0] in text


@pytest.mark.parametrize("name", TIMED)
def test_every_call_says_how_long_the_server_may_be_silent(name: str) -> None:
    """`request_timeout` is that, everywhere; `timeout` is how long what is started may live, and nowhere else."""
    for member, method in members(CLASSES[name]).items():
        if inspect.iscoroutinefunction(method) and member not in LOCAL | {"stop"}:
            assert "request_timeout" in inspect.signature(method).parameters, member
    starts = {"create", "connect", "set_timeout", "resume", "run", "watch_dir"}
    for member, method in members(CLASSES[name]).items():
        if "timeout" in (() if isinstance(method, property) else inspect.signature(method).parameters):
            assert member in starts


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_what_is_opened_is_a_context_manager(name: str) -> None:
    """Everything that has to be closed can be left with `with`."""
    class_ = CLASSES[name]
    if {"close", "stop", "disconnect"} & set(members(class_)):
        asynchronous = any(map(inspect.iscoroutinefunction, members(class_).values()))
        assert hasattr(class_, "__aexit__" if asynchronous else "__exit__")
