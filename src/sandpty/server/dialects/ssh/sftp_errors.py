"""What is wrong, in SFTP's words."""

from __future__ import annotations

from collections.abc import Callable

import asyncssh

from sandpty.wire.errors import SandptyError

_ERRORS: dict[str, Callable[[str], asyncssh.SFTPError]] = {
    "no_such_file": asyncssh.SFTPNoSuchFile,
    "permission_denied": asyncssh.SFTPPermissionDenied,
    "read_only": asyncssh.SFTPPermissionDenied,
    "file_exists": asyncssh.SFTPFileAlreadyExists,
    "not_empty": asyncssh.SFTPDirNotEmpty,
    "not_a_directory": asyncssh.SFTPNotADirectory,
    "is_a_directory": asyncssh.SFTPFileIsADirectory,
    "no_space": asyncssh.SFTPNoSpaceOnFilesystem,
    "symlink_loop": asyncssh.SFTPLinkLoop,
    "bad_path": asyncssh.SFTPInvalidFilename,
    "unsupported": asyncssh.SFTPOpUnsupported,
}
# What is not about a path, and which the SFTP of today's clients has one word for: Failure.
SAID_ALOUD = frozenset(("no_space", "limit", "timeout", "sandbox_ended", "sandbox_paused", "agent_unreachable"))


def as_sftp(error: SandptyError) -> asyncssh.SFTPError:
    """The nearest of its errors, with our words."""
    return _ERRORS.get(error.reason.name, asyncssh.SFTPFailure)(error.message)
