"""E2B's and Novita's unmodified JavaScript SDKs: every check of js/*.mjs named here, each in a Node of its own."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import VENDOR_JS

JS = Path(__file__).parent / "js"
CHECKS = [
    (file, name)
    for file in ("checks.mjs", "lifecycle.mjs", "novita.mjs", "templates.mjs")
    for name in re.findall(r"^  (?:async )?'([^']+)'", (JS / file).read_text(encoding="utf-8"), re.M)
]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Path]:
    """The checks below the SDKs, because Node looks for packages upwards from the script."""
    assert (VENDOR_JS / "node_modules" / "e2b").is_dir(), "scripts/setup --test installs the SDKs"
    with tempfile.TemporaryDirectory(prefix="checks-", dir=VENDOR_JS) as directory:
        for file in {file for file, _ in CHECKS}:
            (Path(directory) / file).write_bytes((JS / file).read_bytes())
        yield Path(directory)


@pytest.mark.parametrize(("file", "name"), CHECKS)
def test_javascript(scripts: Path, file: str, name: str) -> None:
    """The check does not throw."""
    argv = ["node", str(scripts / file), name]
    own = {**os.environ, "TMPDIR": str(scripts)}  # what checks and SDKs leave there goes with it
    done = subprocess.run(argv, env=own, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
