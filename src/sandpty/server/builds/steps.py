"""How each kind of step is done in a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from sandpty import config
from sandpty.server.builds.log import Lines
from sandpty.server.builds.recipe import Situation, Step, copied_source, user_name
from sandpty.server.builds.uploads import Uploads
from sandpty.server.builds.workshop import Workshop
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import USER
from sandpty.wire.frames import Exit
from sandpty.wire.template_commands import command_line

MADE = 100  # exit code of our own scripts: something was changed (0: it was as it should be)

# With nothing but a shell: images have all kinds of tools, and some have few.
_HOME = 'while IFS=: read -r name _ _ _ _ dir _; do [ "$name" != "$1" ] || home=$dir; done </etc/passwd; '
_MAKE_USER = (
    'while IFS=: read -r name _ id _; do [ "$name" != "$1" ] || exit 0; done </etc/passwd; '
    'useradd -m -s /bin/bash "$1" 2>/dev/null || adduser -D -s /bin/bash "$1" 2>/dev/null || { '
    'id=1000; while grep -q "^[^:]*:[^:]*:$id:" /etc/passwd /etc/group; do id=$((id + 1)); done; '
    'echo "$1:x:$id:$id::/home/$1:/bin/bash" >>/etc/passwd && echo "$1:x:$id:" >>/etc/group && '
    'mkdir -p "/home/$1" && chown "$id:$id" "/home/$1"; } && exit 100'
)
# $1: whose it is to be, $2: the directory.
_MAKE_DIRECTORY = (
    _HOME + 'case $2 in "~") d=$home ;; "~/"*) d=$home/${2#"~/"} ;; *) d=$2 ;; esac; '
    '[ -d "$d" ] && exit 0; mkdir -p -- "$d" && chown "$1:" "$d" && exit 100'
)
# $1: user, $2: where it works, $3: source in the archive, $4: 1 for a directory's contents, $5: target, $6: owner,
# $7: mode, $8: how tar is to unpack. What is unpacked lies beside nothing else until it is copied, by the guest's root.
_COPY = (
    "set -e; unpacked=$(mktemp -d /tmp/.copy-XXXXXXXX); trap 'rm -rf \"$unpacked\"' EXIT; "
    'tar -x $8 -o -p -f - -C "$unpacked"; ' + _HOME + 'case $2 in ""|"~") work=$home ;; '
    '"~/"*) work=$home/${2#"~/"} ;; *) work=$2 ;; esac; '
    'case $5 in /*) to=$5 ;; "~") to=$home ;; "~/"*) to=$home/${5#"~/"} ;; *) to=$work/$5 ;; esac; from=$unpacked/$3; '
    'if [ ! -e "$from" ] && [ ! -L "$from" ]; then echo "nothing to copy: $3"; exit 1; fi; '
    'if [ "$4" = 1 ] || { [ -d "$from" ] && [ ! -L "$from" ]; }; then '
    'chown -R -h "$6" "$from"; [ -z "$7" ] || chmod -R "$7" "$from"; '
    '[ -d "$to" ] || { mkdir -p -- "$to"; chown "$6" "$to"; }; '
    'find "$from" -mindepth 1 -maxdepth 1 -exec sh -c \'cp -a -- "$@" "$0"\' "$to/" {} +; '
    'else chown -h "$6" "$from"; [ -z "$7" ] || [ -L "$from" ] || chmod "$7" "$from"; '
    'case $to in */) parent=$to ;; *) parent=$(dirname "$to") ;; esac; '
    '[ -d "$parent" ] || { mkdir -p -- "$parent"; chown "$6" "$parent"; }; cp -a -- "$from" "$to"; fi'
)


class StepError(Exception):
    """A step failed; the message says how, for a person."""


class Steps:
    """Of one build. `changed`: whether the last one did something to the files."""

    def __init__(self, workshop: Workshop, uploads: Uploads, team: str) -> None:
        self._workshop = workshop
        self._uploads = uploads
        self._team = team
        self.changed = False
        self._ways: dict[str, Callable[[Situation, Step, Lines], Awaitable[None]]] = {
            "run": self._run,
            "copy": self._copy,
            "env": self._env,
            "workdir": self._workdir,
            "user": self._user,
        }

    async def do(self, situation: Situation, step: Step, lines: Lines) -> Situation:
        """Returns what comes after it. Raises StepError, SandptyError."""
        self.changed = False
        after = situation.after(step)
        await self._ways[step.kind](situation, step, lines)
        return after

    async def _env(self, situation: Situation, step: Step, lines: Lines) -> None:
        """Nothing is done: it is in what comes after."""

    async def _run(self, situation: Situation, step: Step, lines: Lines) -> None:
        line, user = (*step.args, "")[:2]
        try:
            status = await self._workshop.run(situation, command_line(line, situation.defaults), lines, user=user)
        except SandptyError as error:
            if error.reason.name != "no_such_user":
                raise
            # E2B's words, for which its clients look.
            how = f"unauthenticated: invalid username: '{user or situation.defaults.user}'"
            raise StepError(f"failed to run command '{line}': command failed: {how}") from error
        _check(status, lines)
        self.changed = True

    async def _workdir(self, situation: Situation, step: Step, lines: Lines) -> None:
        path = situation.workdir(step)
        if path not in ("", "/"):
            await self._script(situation, _MAKE_DIRECTORY, lines, situation.defaults.user or USER, path)

    async def _user(self, situation: Situation, step: Step, lines: Lines) -> None:
        user = user_name(step)
        if user not in ("root", situation.defaults.user or USER):
            await self._script(situation, _MAKE_USER, lines, user)

    async def _copy(self, situation: Situation, step: Step, lines: Lines) -> None:
        source, contents = copied_source(step.args[0])
        archive = self._uploads.find(self._team, step.files)
        if archive is None:
            raise StepError("its files were not uploaded")
        user = situation.defaults.user or USER
        owner, mode = (*step.args[2:4], "", "")[:2]
        if owner and ":" not in owner:
            owner = f"{owner}:"
        unpack = "-z" if _is_compressed(archive) else ""
        script = (user, situation.defaults.workdir, source, "1" if contents else "", step.args[1])
        await self._script(situation, _COPY, lines, *script, owner or f"{user}:", mode, unpack, stdin=_pieces(archive))
        self.changed = True

    async def _script(
        self, situation: Situation, script: str, lines: Lines, *args: str, stdin: AsyncIterator[bytes] | None = None
    ) -> None:
        """A script of ours, by the guest's root."""
        argv = ("/bin/sh", "-c", script, "step", *args)
        anywhere = situation.with_workdir("/")
        status = await self._workshop.run(anywhere, argv, lines, user="root", stdin=stdin)
        self.changed = status.value == MADE and not status.signalled
        if not self.changed:
            _check(status, lines)


def _check(status: Exit, lines: Lines) -> None:
    """Raises StepError unless it has ended well."""
    if status.value == 0 and not status.signalled:
        return
    how = f"signal {status.value} ended it" if status.signalled else f"exit code {status.value}"
    said = "\n".join(lines.tail)
    raise StepError(f"{how}; its last output:\n{said}" if said else f"{how}; it said nothing")


def _is_compressed(archive: Path) -> bool:
    with open(archive, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


async def _pieces(archive: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(archive.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, config.INPUT_CHUNK_BYTES):
            yield piece


def explain(error: Exception) -> str:
    """Why a step failed, for a person."""
    if isinstance(error, SandptyError):
        hint = f" ({error.reason.hint})" if error.reason.hint else ""
        return f"{error.message}{hint}"
    return str(error)
