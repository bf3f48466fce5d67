"""The map of DESIGN: who may import whom, no cycles, modules and functions of a size one can read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
MODULE_LINES_MOST = 450
FUNCTION_LINES_MOST = 70
GUEST_PROGRAM = "sandpty.interpreter"
# What is done from a machine that only talks to a server. Terminals and signals are not: those need POSIX.
CLIENT_COMMANDS = ("main", "sandboxes", "looking", "pausing", "cp", "copying", "env", "configuration")
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty", "uvloop"}

# A package -> the packages of ours it may import, itself aside. `sandpty` is the package's own __init__ (the version).
ALLOWED: dict[str, set[str]] = {
    "wire": set(),
    "config": {"data_dir"},
    "data_dir": set(),
    "descriptors": set(),
    "disk_room": {"config"},
    "agent": set(),
    "terminal": {"wire", "config"},
    "sdk": {"wire"},
    "certificates": {"wire", "config"},
    "isolation": {"wire", "config", "descriptors", "disk_room", "agent"},
    "interpreter": set(),
    "templates": {"wire", "config", "agent", "isolation", "interpreter"},
    "images": {"wire", "config", "disk_room", "templates"},
    "supervisor": {"wire", "config", "disk_room", "agent", "isolation", "templates", "certificates", "images"},
    "server": {"wire", "config", "descriptors", "disk_room", "terminal"},
    "egress": {"wire", "config"},
    "cli": {"wire", "config", "sdk"},
}
# Modules of the CLI that start or look at the other programs, and what they need for it.
ALLOWED_BESIDES: dict[str, set[str]] = {
    "sandpty.cli.ca": {"certificates"},
    "sandpty.cli.serving_tls": {"certificates"},
    "sandpty.cli.starting": {"server", "supervisor"},
    "sandpty.cli.templates": {"templates", "images"},
    "sandpty.cli.template_import": {"images"},
    "sandpty.cli.examination": {"templates", "agent", "supervisor"},
    "sandpty.cli.keys": {"supervisor"},
    "sandpty.egress.main": {"server"},  # gives up root as the server does
    "sandpty.egress.authority": {"certificates"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((SOURCE / "sandpty").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Dotted names that are imported; `lazy` includes those inside functions and under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Only the program that runs in guests, under another name, imports relatively.
            module = f"{GUEST_PROGRAM}.{node.module}".removesuffix(".None") if node.level else node.module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif lazy or not (_is_function(node) or _is_type_checking(node)):
            yield from imports(node, lazy=lazy)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def module_of(name: str) -> str | None:
    """The module of ours that a dotted name lies in."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def package_of(module: str) -> str:
    """`sandpty.server.app` -> server."""
    return module.split(".")[1] if "." in module else "sandpty"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "sandpty"])
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    """cli -> sdk -> wire; server -> terminal -> wire; supervisor -> isolation, templates -> wire."""
    package = package_of(module)
    assert package in ALLOWED, f"{package} has no place in the map of this test"
    allowed = ALLOWED[package] | ALLOWED_BESIDES.get(module, set()) | {package, "sandpty"}
    for name in imports(TREES[module], lazy=True):
        target = module_of(name)
        if target is not None:
            assert package_of(target) in allowed, f"{module} imports {target}"


def test_imports_are_absolute_except_in_the_guests_program() -> None:
    """And that one reaches nothing outside of itself: only its own directory is there where it runs."""
    for module, tree in TREES.items():
        levels = {node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if package_of(module) != "interpreter":
            assert levels <= {0}, module
        else:
            assert levels <= {0, 1}, module


def test_no_dialect_imports_another() -> None:
    """Each API is one package; what two of them share is the server's."""
    prefix = "sandpty.server.dialects."
    for module, tree in TREES.items():
        if not module.startswith(prefix):
            continue
        own = module.removeprefix(prefix).split(".")[0]
        for name in imports(tree, lazy=True):
            target = module_of(name) or ""
            if target.startswith(prefix):
                assert target.removeprefix(prefix).split(".")[0] == own, f"{module} imports {target}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """What is imported when a module is imported has no cycles."""
    edges = {
        module: {target for name in imports(tree, lazy=False) if (target := module_of(name)) and target != module}
        for module, tree in TREES.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for target in sorted(edges[module]):
            if not module.startswith(target + "."):  # a package is there, half made, while its modules are imported
                visit(target, (*path, module))
        done.add(module)

    for module in sorted(edges):
        visit(module, ())


def test_the_wire_does_no_io() -> None:
    """`sandpty.wire` is the pure part of the standard library, and msgspec in what the supervisor is asked."""
    forbidden = {"asyncio", "socket", "ssl", "select", "selectors", "subprocess", "threading", "httpx", "aiohttp"}
    for module, tree in TREES.items():
        if package_of(module) == "wire":
            used = {name.split(".")[0] for name in imports(tree, lazy=True)}
            assert not used & forbidden, f"{module} imports {used & forbidden}"
            assert "msgspec" not in used or module in {
                f"sandpty.wire.{name}" for name in ("verbs", "templates", "images", "network_policy", "secrets")
            }


def test_the_sdk_can_be_imported_where_there_is_no_posix() -> None:
    """No module that only POSIX has is imported by the SDK, nor by what a client commands; nor are the verbs."""
    todo, seen = [name for name in MODULES if package_of(name) == "sdk"], set()
    todo += [f"sandpty.cli.{name}" for name in CLIENT_COMMANDS]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        names = list(imports(TREES[module], lazy=False))
        assert not {name.split(".")[0] for name in names} & POSIX_ONLY, module
        todo += [target for name in names if (target := module_of(name))]
    assert "sandpty.wire.verbs" not in seen


@pytest.mark.parametrize("module", list(MODULES))
def test_a_module_is_short_enough_to_read(module: str) -> None:
    """Modules stay near 400 lines; a test because nobody notices a module growing."""
    assert len(MODULES[module].read_text().splitlines()) <= MODULE_LINES_MOST


@pytest.mark.parametrize("module", list(MODULES))
def test_a_function_is_short_enough_to_read(module: str) -> None:
    """Functions stay near 40 lines; signature and docstring do not count, code does."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= FUNCTION_LINES_MOST, f"{node.name} has {lines} lines"


def test_no_module_has_a_name_that_says_nothing() -> None:
    """A place for everything; `utils` is the place for what has none."""
    empty_names = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
    assert not {module for module in MODULES if module.rpartition(".")[2] in empty_names}
