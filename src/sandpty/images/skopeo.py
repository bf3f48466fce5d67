"""skopeo, run as an account without any right, for everything that talks to a registry or reads somebody's archive."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sandpty import config
from sandpty.wire.errors import SandptyError

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MESSAGE = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')
_PREFIX = re.compile(r'^(?:Error parsing image name "[^"]*": |initializing source \S+ )*')
_WORDS_MAX = 400  # of what skopeo says
# What its words mean, the surest first: with mirrors, one line tells of several attempts.
_MEANINGS = (
    ("no_space", r"no space left on device|disk quota exceeded|file too large"),
    ("limit", r"toomanyrequests|too many requests"),
    ("no_such_platform", r"no image found in (?:manifest list|image index)|choosing (?:an )?image"),
    ("no_such_image", r"manifest unknown|name unknown|name_unknown|manifest_unknown|repository \S+ not found"),
    ("registry_denied", r"unauthorized|authentication required|access .* denied|denied:|forbidden|invalid username"),
    (
        "no_such_image",
        r"404|no such file or directory|no image found|Tag .* not found|no descriptor found|not in archive",
    ),
    ("bad_image", r"digest did not match|digest mismatch|does not match|unsupported manifest|invalid (?:tar|manifest)"),
    ("bad_image", r"unexpected EOF$|unsupported media type|unknown media type|archive/tar|loading tar component"),
)


class Skopeo:
    """`work`: a directory of the account `uid`, for all it writes. Proxies of our own environment are its too."""

    def __init__(self, work: Path, uid: int, conf: str, auth: str) -> None:
        self._program = shutil.which("skopeo", path=_PATH)
        if self._program is None:
            raise SandptyError("unsupported", "skopeo is not installed (Debian: apt-get install skopeo)")
        self.work = work
        self._uid = uid
        self._auth = self._given("auth.json", auth)
        self._conf = self._given("registries.conf", conf)
        # Nothing of the host's own configuration but its certificates is to count.
        self._environment = {
            "PATH": _PATH,
            "HOME": str(work),
            "TMPDIR": str(work),
            "XDG_RUNTIME_DIR": str(work),
            **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
        }

    def _given(self, name: str, text: str) -> Path:
        path = self.work / name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with open(fd, "w", encoding="utf-8") as file:
            os.fchown(fd, self._uid, self._uid)
            file.write(text)
        return path

    def raw_manifest(self, name: str) -> bytes:
        """Of `docker://...`: a manifest or an index, as the registry has it. Raises SandptyError."""
        output = self.work / "raw"
        argv = ["inspect", "--raw", "--authfile", str(self._auth), name]
        deadline = time.monotonic() + config.IMAGE_INSPECT_TIMEOUT_S

        def waited() -> None:
            if time.monotonic() > deadline:
                raise SandptyError("registry_failed", "the registry does not answer")

        self._run(argv, output, config.IMAGE_MANIFEST_BYTES, waited)
        return output.read_bytes()

    def copy(self, source: str, target: Path, waited: Callable[[], None], options: Sequence[str] = ()) -> None:
        """All of an image into `target`, as `dir:`. `waited` is called now and then. Raises SandptyError."""
        argv = [*options, "copy", "--src-authfile", str(self._auth), source, f"dir:{target}"]
        self._run(argv, self.work / "copied", config.IMAGE_BLOBS_BYTES, waited)

    def _run(self, argv: Sequence[str], output: Path, file_bytes_max: int, waited: Callable[[], None]) -> None:
        limits = ["prlimit", "--core=0", f"--fsize={file_bytes_max}"]
        rights = ["setpriv", f"--reuid={self._uid}", f"--regid={self._uid}", "--clear-groups", "--no-new-privs"]
        rights += ["--inh-caps=-all", "--bounding-set=-all", "--pdeathsig=KILL"]
        words = output.with_suffix(".words")
        with open(output, "wb") as out, open(words, "wb") as err:
            process = subprocess.Popen(
                [*limits, *rights, str(self._program), "--insecure-policy", f"--registries-conf={self._conf}", *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd="/",
                env=self._environment,
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(config.IMAGE_PROGRESS_S)
                    waited()
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if process.returncode != 0:
            with open(words, "rb") as said:
                said.seek(max(0, words.stat().st_size - 64 * 1024))
                raise meaning(said.read().decode("utf-8", "replace"))


def meaning(said: str) -> SandptyError:
    """What a failed skopeo wants to say."""
    found = _MESSAGE.findall(said)
    words = found[-1].replace('\\"', '"') if found else (said.strip().splitlines() or ["skopeo says nothing"])[-1]
    reason = next((name for name, told in _MEANINGS if re.search(told, words, re.IGNORECASE)), "registry_failed")
    words = _PREFIX.sub("", words)
    short = words if len(words) <= _WORDS_MAX else f"{words[: _WORDS_MAX // 2]} ... {words[-_WORDS_MAX // 2 :]}"
    return SandptyError(reason, " ".join(short.split()))
