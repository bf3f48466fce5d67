"""The program in sandboxes of the template `code-interpreter-v1` that serves `run_code`, told in one place: the
supervisor starts it in warm sandboxes, the server where a request finds that nothing listens."""

from __future__ import annotations

from sandpty.wire.types import Start, StartFlags

PROGRAM = ("/usr/local/bin/sandpty-interpreter",)
PORT = 49999  # fixed in E2B's code interpreter SDKs
ENVIRONMENT_HEADER = b"Sandpty-Environment"  # the sandbox's, on every request: base64 of a JSON object
TAG = "sandpty:interpreter"  # dialects do not list it among what clients started
USER = "user"


def interpreter_start(argv: tuple[str, ...], env: dict[str, str]) -> Start:
    """The START of it; nobody attaches."""
    return Start(argv=argv, env=env, user=USER, tag=TAG, flags=StartFlags.REPLY_ONLY)
