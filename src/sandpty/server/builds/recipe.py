"""What a template is built from, whichever dialect said it, and what each step makes of the one before. Pure."""

from __future__ import annotations

import hashlib
import posixpath
import re
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from sandpty import config
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import USER
from sandpty.wire.templates import Defaults, Files

StepKind = Literal["run", "copy", "env", "workdir", "user"]
BASE_STEP, FINAL_STEP = "base", "finalize"  # the names of what comes before the first step and after the last
_LAYER_VERSION = 1  # another way of running steps makes other layers
_HASH = re.compile("[0-9a-f]{64}")
_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?")
_GLOB = frozenset("*?[{")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # what `$PATH` means where nobody has set it


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """Of an account of AWS, which gives a password for its registry in exchange."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str


@dataclass(frozen=True, slots=True)
class Base:
    """What a build starts from: a template (as its team calls it) or an image, which may need an account.

    refusal: why the image cannot be had with the account that was given; the build fails when it comes to that.
    """

    template: str = ""
    image: str = ""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    aws: AwsKeys | None = None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step. args: run: line, user?; copy: source, target, owner?, mode?; env: name, value, ...; workdir: path;
    user: name. files: the hash of the files that a copy needs. force: whatever is kept of it is not used."""

    kind: StepKind
    args: tuple[str, ...]
    files: str = ""
    force: bool = False

    @property
    def text(self) -> str:
        """In one line, for people."""
        line = " ".join((self.kind.upper(), *(arg for arg in self.args if arg))).replace("\n", " ")
        return line if len(line) <= config.BUILD_STEP_SHOWN else line[: config.BUILD_STEP_SHOWN] + "…"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that is asked for."""

    base: Base
    steps: tuple[Step, ...] = ()
    start_cmd: str = ""
    ready_cmd: str = ""
    force: bool = False


def check(recipe: Recipe) -> None:
    """Raises bad_argument, limit."""
    if bool(recipe.base.template) == bool(recipe.base.image):
        raise SandptyError("bad_argument", "a build starts from a template or from an image: name one of them")
    if len(recipe.steps) > config.BUILD_STEPS_MAX:
        raise SandptyError("limit", f"a build has {config.BUILD_STEPS_MAX} steps at most")
    for step in recipe.steps:
        _check_step(step)
    for line in (recipe.start_cmd, recipe.ready_cmd, *(arg for step in recipe.steps for arg in step.args)):
        if "\0" in line:
            raise SandptyError("bad_argument", "a step holds a NUL character")


def _check_step(step: Step) -> None:
    least = {"run": 1, "copy": 2, "env": 2, "workdir": 1, "user": 1}[step.kind]
    if len(step.args) < least or not step.args[0]:
        raise SandptyError("bad_argument", f"{step.kind.upper()} needs {least} argument(s)")
    if step.kind == "copy" and _HASH.fullmatch(step.files) is None:
        raise SandptyError("bad_argument", "COPY needs the hash of its files: 64 hexadecimal digits")
    if step.kind == "env" and (len(step.args) % 2 or not all(map(_NAME.fullmatch, step.args[::2]))):
        raise SandptyError("bad_argument", "ENV needs names of variables and their values")


def is_hash(text: str) -> bool:
    """Whether files can be known by it."""
    return _HASH.fullmatch(text) is not None


# --- what steps make of the situation ---


@dataclass(frozen=True, slots=True)
class Situation:
    """Between two steps: the files so far, and what the next command starts with. make: tells makes of one of our
    templates apart, of which a newer one has the same name."""

    files: Files
    defaults: Defaults
    make: str = ""

    def after(self, step: Step) -> Situation:
        """What the next command starts with, after this step. Raises bad_argument."""
        match step.kind:
            case "env":
                return self.with_env(step)
            case "workdir":
                return self.with_workdir(self.workdir(step))
            case "user":
                return self.with_user(user_name(step))
        return self

    def with_env(self, step: Step) -> Situation:
        """Later values may use earlier ones."""
        env = dict(self.defaults.env)
        for name, value in zip(step.args[::2], step.args[1::2], strict=True):
            env[name] = expanded(value, env)
        return self._with(env=env)

    def with_workdir(self, path: str) -> Situation:
        return self._with(workdir=path)

    def with_user(self, user: str) -> Situation:
        return self._with(user=user)

    def with_files(self, files: Files) -> Situation:
        return replace(self, files=files, make="")

    def _with(self, **changed: object) -> Situation:
        return replace(self, defaults=msgspec.structs.replace(self.defaults, **changed))

    @property
    def directory(self) -> str:
        """Where commands run, also those of another user: it is the template's user whose home is meant."""
        user = self.defaults.user or USER
        home = "/root" if user == "root" else f"/home/{user}"
        path = self.defaults.workdir or "~"
        return home + path[1:] if path.startswith("~") else path

    def workdir(self, step: Step) -> str:
        """Where a workdir step leads: below the one before, if it does not begin at the root. "" is the home."""
        path = expanded(step.args[0], self.defaults.env)
        if path in ("~", ".") and not self.defaults.workdir:
            return ""
        return posixpath.normpath(posixpath.join(self.defaults.workdir or "~", path))


def expanded(value: str, env: dict[str, str]) -> str:
    """With `$NAME`, `${NAME}`, `${NAME:-x}` and `${NAME:+x}` replaced, as in a Dockerfile; `\\$` is a dollar."""

    def one(match: re.Match[str]) -> str:
        escaped, bare, braced, kind, other = match.groups()
        if escaped is not None:
            return escaped if escaped == "$" else f"\\{escaped}"
        name = bare or braced
        known = env.get(name, PATH if name == "PATH" else "")
        if kind == "-":
            return known or other
        if kind == "+":
            return other if known else ""
        return known

    return _VARIABLE.sub(one, value)


def user_name(step: Step) -> str:
    """The account of a user step; a group after a colon is not used. Raises bad_argument."""
    name = step.args[0].partition(":")[0]
    if _USER.fullmatch(name) is None:
        raise SandptyError("bad_argument", f"not the name of a user: {name[:64]!r}")
    return name


def copied_source(source: str) -> tuple[str, bool]:
    """Where in the uploaded archive a copy's source is, and whether it is a directory whose contents are meant: of a
    pattern the part before its first wild card. Raises bad_argument for what is not below the context."""
    parts = source.split("/")
    plain = next((parts[:number] for number, part in enumerate(parts) if _GLOB & set(part)), None)
    path = posixpath.normpath("/".join(parts if plain is None else plain) or ".")
    if path.startswith(("/", "../")) or path == "..":
        raise SandptyError("bad_argument", f"COPY takes files from below the build's directory, not {source[:128]!r}")
    return path, plain is not None or path == "."


def layer_key(situation: Situation, step: Step) -> str:
    """What decides the layer that a step leaves: the files below it (which are made once), the step, what its command
    starts with, what it copies."""
    told = (
        _LAYER_VERSION,
        (situation.files.kind, situation.files.id, situation.make),
        (step.kind, step.args, step.files),
        (situation.defaults.user, situation.defaults.workdir, sorted(situation.defaults.env.items())),
    )
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()
