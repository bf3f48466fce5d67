"""The one table of errors: reason -> what each dialect says. Dialects look up, they do not decide.

A class answers "what can I do about it", a reason "what exactly", a hint "which knob".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """How one reason looks on every surface.

    connect: Connect-RPC code (E2B's process and filesystem services); http: status of control-plane and native REST
    answers; ws_close: WebSocket close code (4000 + the HTTP status); exit_status: of our CLI; hint: what to do.
    """

    name: str
    connect: str
    http: int
    exit_status: int = 1
    hint: str = ""

    @property
    def ws_close(self) -> int:
        return 4000 + self.http


def _table(*reasons: Reason) -> dict[str, Reason]:
    return {reason.name: reason for reason in reasons}


REASONS: dict[str, Reason] = _table(
    # the caller must send something else
    Reason("bad_request", "invalid_argument", 400, 2, "check the request against docs/reference/protocol.md"),
    Reason("bad_frame", "invalid_argument", 400, 2, "check the frame against docs/reference/agent-protocol.md"),
    Reason("bad_argument", "invalid_argument", 400, 2),
    Reason("bad_cwd", "invalid_argument", 400, 2, "choose a directory that exists in the sandbox"),
    Reason("bad_window_size", "invalid_argument", 400, 2, "cols and rows go from 1 to 10000"),
    Reason("bad_timeout", "invalid_argument", 400, 2, "give seconds from now, 0 or more"),
    Reason("no_such_user", "unauthenticated", 401, 2, "name a user of the sandbox's /etc/passwd"),
    Reason("start_failed", "invalid_argument", 400, 127, "the program must exist in the sandbox and be executable"),
    Reason("too_large", "resource_exhausted", 413, 2, "send less in one request"),
    Reason("unsupported", "unimplemented", 501, 2),
    # paths in a guest
    Reason("bad_path", "invalid_argument", 400, 2, "give an absolute path of at most 4095 bytes"),
    Reason("not_a_directory", "invalid_argument", 400, 1),
    Reason("is_a_directory", "invalid_argument", 400, 1),
    Reason("not_a_file", "invalid_argument", 400, 1, "FIFOs, sockets and block devices have no content to transfer"),
    Reason("symlink_loop", "failed_precondition", 400, 1),
    Reason("network_file_system", "invalid_argument", 400, 1, "changes made elsewhere cannot be watched there"),
    Reason("permission_denied", "permission_denied", 403, 77, "act as a user of the sandbox who may"),
    Reason("no_such_file", "not_found", 404, 1),
    Reason("no_such_watcher", "not_found", 404, 1),
    Reason("file_exists", "already_exists", 409, 1),
    Reason("not_empty", "failed_precondition", 409, 1, "remove it recursively"),
    Reason("file_error", "internal", 500, 1, "the message is what the sandbox's kernel said"),
    # who asks
    Reason("unauthenticated", "unauthenticated", 401, 77, 'run `eval "$(sandpty env)"` to use this server\'s key'),
    Reason("read_only", "permission_denied", 403, 77, "attach read-write"),
    Reason("forbidden", "permission_denied", 403, 77),
    # not there
    Reason("no_such_sandbox", "not_found", 404, 1, "`sandpty ls` shows the sandboxes that exist"),
    Reason("no_such_process", "not_found", 404, 1),
    Reason("no_such_template", "not_found", 404, 1, "`base` always exists"),
    Reason("no_such_snapshot", "not_found", 404, 1),
    Reason("no_such_volume", "not_found", 404, 1, "`sandpty volumes ls` shows the volumes that exist"),
    Reason("no_such_secret", "not_found", 404, 1),
    Reason("no_such_authority", "not_found", 404, 1, "`sandpty ca --domain NAME` makes one"),
    Reason("no_such_image", "not_found", 404, 1, "check the image's name and tag"),
    Reason("no_such_platform", "not_found", 404, 1, "name one that the image has, such as linux/amd64"),
    # images
    Reason("bad_image", "failed_precondition", 400, 1, "rebuild or push the image; the message says what is wrong"),
    Reason("registry_denied", "permission_denied", 403, 77, "give credentials that the registry takes for this image"),
    Reason("registry_forbidden", "permission_denied", 403, 77, "the operator can name the registry in registries.conf"),
    Reason("registry_failed", "unavailable", 502, 69, "see that the registry can be reached from this machine"),
    # there, but not in that state
    Reason("conflict", "aborted", 409, 1),
    Reason("volume_in_use", "failed_precondition", 409, 1, "end the sandboxes that mount it, paused ones too"),
    Reason("already_paused", "aborted", 409, 1),
    Reason("sandbox_paused", "unavailable", 409, 1, "resume the sandbox first"),
    Reason("not_a_pty", "internal", 409, 1, "only a process started with a PTY has a window size"),
    Reason("not_a_pipe", "internal", 409, 1, "a PTY takes pty input, a command takes stdin"),
    Reason("stdin_closed", "internal", 409, 1, "start the process with stdin open"),
    Reason("exited", "internal", 409, 1, "the process has ended"),
    Reason("sandbox_ended", "unavailable", 502, 1, "the sandbox was killed or reached its end of life"),
    Reason(
        "not_ready", "failed_precondition", 500, 1, "the template's start and ready commands must end or serve in time"
    ),
    Reason("build_failed", "failed_precondition", 400, 1),
    Reason("port_closed", "unavailable", 502, 1, "start a service on that port in the sandbox"),
    # later, or with other settings
    Reason("server_unreachable", "unavailable", 503, 69, "`sandpty serve` starts one; --url or SANDPTY_URL names it"),
    Reason("timeout", "deadline_exceeded", 408, 124, "raise the timeout; 0 means none"),
    Reason("output_lost", "data_loss", 410, 1, "the log no longer holds these bytes; attach from a later offset"),
    Reason("events_lost", "data_loss", 410, 1, "list the directory again, and ask for events more often"),
    Reason("limit", "resource_exhausted", 429, 1),
    Reason("no_space", "resource_exhausted", 507, 1, "free space in the data directory"),
    Reason(
        "supervisor_down",
        "unavailable",
        503,
        69,
        "run `sandpty serve` again: it starts the supervisor; sandboxes live on",
    ),
    Reason("agent_unreachable", "unavailable", 503, 69),
    Reason("runtime_failed", "unavailable", 503, 69, "`sandpty doctor` tells what the isolation runtime needs"),
    # ours
    Reason("agent_misbehaved", "internal", 502, 70, "the sandbox's agent broke the protocol and was cut off"),
    Reason("internal", "internal", 500, 70, "the log holds the incident id"),
)


class SandptyError(Exception):
    """An error that may cross the wire: a reason from the table and a message for a person, which is never empty."""

    def __init__(self, reason: str, message: str) -> None:
        message = message or reason.replace("_", " ")  # others' words, such as an agent's, may be none
        super().__init__(message)
        self.reason = REASONS[reason]
        self.message = message
