"""Build hook: compiles the agent into src/sandpty/agent/ for wheels and editable installs.

The wheel is py3-none-any: it carries the agent for every architecture as package data, and picks at run time. An
editable install is for this machine alone: compiling zig's C library for another takes a minute.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHES = ("x86_64", "aarch64")


class AgentBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Makes agent-x86_64 and agent-aarch64 (editable: this machine's) with `zig cc` of the ziglang wheel alone."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files, also for editable builds (`version` is then "editable")."""
        root = Path(self.root)
        out_dir = root / "src" / "sandpty" / "agent"
        build = _load(root / "agent" / "build.py")
        arches = (build.machine_arch(),) if version == "editable" else ARCHES
        build.build(out_dir, arches)
        for arch in arches:
            binary = out_dir / f"agent-{arch}"
            if not binary.is_file():
                raise FileNotFoundError(f"agent/build.py made no {binary}")
        build_data["pure_python"] = True
        build_data["tag"] = "py3-none-any"


def _load(path: Path) -> ModuleType:
    # agent/ is no package: it holds C sources, and this one script that compiles them.
    spec = importlib.util.spec_from_file_location("sandpty_agent_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
