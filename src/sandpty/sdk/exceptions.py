"""What the SDK raises. Each is a SandptyError, and says which knob to turn; most are also an error that Python knows.

`except FileNotFoundError`, `except PermissionError` and `except TimeoutError` catch what they say.
"""

from __future__ import annotations

from sandpty.wire.errors import SandptyError


class ProcessTimeoutError(SandptyError, TimeoutError):
    """The process reached its own `timeout` and was killed with all it had started."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            "timeout",
            f"the process was killed after its {timeout_s:g} s; give timeout= more when you start it, 0 for none",
        )


class RequestTimeoutError(SandptyError, TimeoutError):
    """The server was silent for longer than a request may take. What was asked for may have happened nevertheless."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(
            "timeout",
            f"{what}: no answer within {timeout_s:g} s; request_timeout= (of one call, or of all) allows more",
        )


class NoSuchFileError(SandptyError, FileNotFoundError):
    """Nothing is at that path, here in the sandbox."""


class FileThereError(SandptyError, FileExistsError):
    """Something is at that path, and was not to be."""


class DirectoryThereError(SandptyError, IsADirectoryError):
    """A directory is where a file was meant."""


class NoDirectoryError(SandptyError, NotADirectoryError):
    """No directory is where one was meant."""


class NotAllowedError(SandptyError, PermissionError):
    """Who acts may not: `user=` of the call says who that is, for example "root"."""


class ServerUnreachableError(SandptyError, ConnectionError):
    """No server answers at that address, or the connection broke."""


_CLASSES: dict[str, type[SandptyError]] = {
    "no_such_file": NoSuchFileError,
    "file_exists": FileThereError,
    "is_a_directory": DirectoryThereError,
    "not_a_directory": NoDirectoryError,
    "permission_denied": NotAllowedError,
    "server_unreachable": ServerUnreachableError,
}


def error_of(reason: str, message: str) -> SandptyError:
    """The exception for a reason of the one table."""
    return _CLASSES.get(reason, SandptyError)(reason, message)


class CommandExitError(Exception):
    """A process ended with another status than 0. `exit_code` is 128 + the signal's number when a signal ended it."""

    def __init__(self, exit_code: int, stdout: str, stderr: str, error: str | None) -> None:
        last_words = stderr.strip().rpartition("\n")[2]
        super().__init__((error or f"exit status {exit_code}") + (f": {last_words}" if last_words else ""))
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr
        self.error = error
