"""`sandpty`: the group of commands, and how errors end: one readable line and an exit status from wire/errors.py."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from sandpty import __version__
from sandpty.wire.errors import SandptyError

UNSUPPORTED_EXIT_STATUS = 2
INTERNAL_EXIT_STATUS = 70
INTERRUPTED_EXIT_STATUS = 130
BROKEN_PIPE_EXIT_STATUS = 141
MISSING_EXIT_STATUS = 69  # as where no server is
# What the extra `server` brings: `pip install sandpty` alone is a client.
SERVER_PACKAGES = frozenset(("aiohttp", "asyncssh", "cryptography", "dns", "msgspec", "uvloop", "zstandard"))
POSIX_MODULES = frozenset(("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"))


# Name -> module below sandpty.cli and what it is called there, in the order of their use, not of the alphabet.
COMMANDS = {
    "serve": "serve:serve",
    "env": "env:env",
    "config": "configuration:config",
    "ls": "sandboxes:ls",
    "create": "sandboxes:create",
    "info": "looking:info",
    "kill": "sandboxes:kill",
    "shell": "shell:shell",
    "attach": "attach:attach",
    "exec": "execution:exec_",
    "cp": "cp:cp",
    "ssh": "ssh:ssh",
    "ssh-config": "ssh:ssh_config",
    "port": "port:port",
    "ps": "looking:ps",
    "logs": "looking:logs",
    "metrics": "looking:metrics",
    "pause": "pausing:pause",
    "resume": "pausing:resume",
    "snapshot": "pausing:snapshot",
    "snapshots": "pausing:snapshots",
    "fork": "pausing:fork",
    "volumes": "volumes:volumes",
    "keys": "keys:keys",
    "ca": "ca:ca",
    "template": "templates:template",
    "doctor": "doctor:doctor",
    "down": "down:down",
    "completion": "completion:completion",
}


# These act on the machine that they run on, as a server or beside one.
ON_THE_SERVERS_MACHINE = frozenset(("serve", "keys", "ca", "template", "doctor"))
THROUGH_THE_SERVER = (("template", "build"),)  # of those, what a client can do from anywhere


class CommandsOnDemand(click.Group):
    """Loads a command's module when it is called or shown: `sandpty exec` need not wait for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"sandpty.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        at_home = sys.platform == "linux" and hasattr(os, "geteuid")
        if name in ON_THE_SERVERS_MACHINE and not at_home and (name, *rest[:1]) not in THROUGH_THE_SERVER:
            raise SandptyError("unsupported", f"sandpty {name} works where a server runs, which needs Linux")
        return name, command, rest


@click.group(cls=CommandsOnDemand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Sandboxes whose interactive terminals never lose a byte, on this machine.

    \b
    Start here:
      sandpty serve                  the server (as root; `scripts/serve` sets up first)
      eval "$(sandpty env)"          point the E2B, Novita and Hyperbrowser SDKs at it
      sandpty shell                  a sandbox and a terminal in it; Enter ~ . detaches
      sandpty ls                     the sandboxes
      sandpty attach ID              the same terminal again, with what you missed
      sandpty down                   end everything

    \b
    Environment:
      SANDPTY_URL, SANDPTY_API_KEY   the server to talk to and its key (`sandpty env` sets both)
      SANDPTY_SERVER                 the named server to talk to (`sandpty config`)
      SANDPTY_DATA_DIR               the data directory (as root /var/lib/sandpty)
      SANDPTY_TEMPLATES_DIR          where templates are kept
      SANDPTY_DEBUG=1                show tracebacks
    """


def main() -> None:
    """The console script. Ends the process with the command's exit status."""
    status = run(lambda: cli.main(prog_name="sandpty", standalone_mode=False))
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        sys.stderr.flush()
    # Without Python's own tidying up, a tenth of what a short command takes: what had to be closed is closed.
    os._exit(status)


def run(command: Callable[[], Any]) -> int:
    """Run a command; turn what it raises into one line on stderr and an exit status."""
    try:
        outcome = command()
        sys.stdout.flush()
    except Exception as error:
        if os.environ.get("SANDPTY_DEBUG") and not isinstance(error, click.ClickException | click.Abort):
            raise
        return _end_with(error)
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_STATUS
    return outcome if isinstance(outcome, int) else 0


def _end_with(error: Exception) -> int:  # noqa: PLR0911 - one arm per kind of error
    """Say an error in one line; the exit status."""
    match error:
        case SandptyError():
            return _fail(error.message, error.reason.hint, error.reason.exit_status)
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return error.exit_code
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in SERVER_PACKAGES:
            message = f"this installation is a client's: {error.name} is not there"
            return _fail(message, "`pip install 'sandpty[server]'` makes it a server's", MISSING_EXIT_STATUS)
        case ModuleNotFoundError() if error.name in POSIX_MODULES:
            return _fail("this command needs a POSIX system", "on Windows: WSL", UNSUPPORTED_EXIT_STATUS)
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "sandpty"
            return _fail(error.format_message().rstrip("."), f"{path} --help shows what there is", error.exit_code)
        case click.ClickException():
            return _fail(error.format_message(), "", error.exit_code)
        case click.Abort():
            return INTERRUPTED_EXIT_STATUS
        case BrokenPipeError():
            # Whoever read our output has gone. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE_EXIT_STATUS
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return _fail(f"internal error: {what}", "SANDPTY_DEBUG=1 shows the traceback", INTERNAL_EXIT_STATUS)


def _fail(message: str, hint: str, status: int) -> int:
    from sandpty.cli.sandboxes import printable

    line = printable(" ".join(message.split()))  # it may quote a registry or a guest
    click.echo(f"sandpty: {line} ({hint})" if hint else f"sandpty: {line}", err=True)
    return status


if __name__ == "__main__":
    main()
