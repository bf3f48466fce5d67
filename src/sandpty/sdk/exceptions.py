"""What the E2B-shaped part of the SDK raises besides SandptyError. Each says which knob to turn."""

from __future__ import annotations

from sandpty.wire.errors import SandptyError


class ProcessTimeoutError(SandptyError, TimeoutError):
    """The process reached its own `timeout` and was killed with all it had started."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            "timeout",
            f"the process was killed after its {timeout_s:g} s; give timeout= more when you start it, 0 for none",
        )


class CommandExitError(Exception):
    """A process ended with another status than 0. `exit_code` is 128 + the signal's number when a signal ended it."""

    def __init__(self, exit_code: int, stdout: str, stderr: str, error: str | None) -> None:
        super().__init__(f"exit status {exit_code}" + (f": {error}" if error else ""))
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr
        self.error = error
