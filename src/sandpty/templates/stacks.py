"""Which trees a template is stacked from, and how each is filled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sandpty.isolation.driver import Layer
from sandpty.templates import base, interpreter, packages
from sandpty.templates.catalog import Ready
from sandpty.templates.names import BASE, CODE_INTERPRETER
from sandpty.templates.progress import Show
from sandpty.templates.root import Root
from sandpty.templates.tree import Tree
from sandpty.wire.interpreter import PROGRAM

Fill = Callable[[Root, Path, Show], None]

# From the bottom to the top.
STACKS: dict[str, tuple[Tree, ...]] = {
    BASE: (base.TREE,),
    CODE_INTERPRETER: (base.TREE, packages.TREE, interpreter.TREE),
}
# By the tree's name; `base` has nothing below it and is made by `bootstrap`.
FILLERS: dict[str, Fill] = {packages.TREE.name: packages.install, interpreter.TREE.name: interpreter.install}
# What is started in a sandbox of the template before somebody asks for it, as the guest's user.
_STARTED = {CODE_INTERPRETER: PROGRAM}


def ready(templates: Path, name: str) -> Ready | None:
    """The template when every tree of it is complete; None while one is missing."""
    stack = STACKS[name]
    described = [tree.description(templates) for tree in stack]
    complete = [each for each in described if each is not None]
    if len(complete) < len(stack):
        return None
    *below, top = (tree.root(templates) for tree in stack)
    return Ready(
        name,
        (Layer(top, below=tuple(reversed(below))),),
        created_at=max(each.created_at for each in complete),
        size_bytes=sum(each.size_bytes for each in complete),
        started=_STARTED.get(name, ()),
    )
