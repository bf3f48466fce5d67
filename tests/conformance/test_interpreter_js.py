"""E2B's unmodified JavaScript code interpreter SDK runs code in our sandboxes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from tests.conformance.conftest import VENDOR_JS

SCRIPT = Path(__file__).parent / "js" / "interpreter.mjs"


def test_every_check_of_the_script_holds(sdk_env: dict[str, str]) -> None:
    """Runs, callbacks, charts, contexts, environments, languages and timeouts; they share one sandbox."""
    assert (VENDOR_JS / "node_modules" / "@e2b").is_dir(), "scripts/setup --test installs the SDKs"
    # Below the SDKs, because Node looks for packages upwards from the script.
    with tempfile.TemporaryDirectory(prefix="checks-", dir=VENDOR_JS) as directory:
        script = Path(directory) / SCRIPT.name
        script.write_bytes(SCRIPT.read_bytes())
        done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == re.findall(r"^  async '([^']+)'", SCRIPT.read_text(encoding="utf-8"), re.M)
