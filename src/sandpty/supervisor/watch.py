"""The watcher: a tiny root process that starts the supervisor, starts it again when it crashes, and reaps its orphans.

`python -m sandpty.supervisor.watch --data-dir D ...` daemonizes and returns once the supervisor serves (status 0). It
prints one line and returns 75 when a supervisor runs for this data directory already, 78 when the isolation was
refused, 1 else.

The sandboxes' agents become its children when the supervisor dies, and the mount namespace is its own: so both
outlive a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from sandpty import config
from sandpty.config import DataDir

STATUS_RUNNING_ALREADY = 75  # EX_TEMPFAIL
STATUS_REFUSED = 78  # EX_CONFIG
STATUS_NOT_STARTED = 70  # EX_SOFTWARE
RESTART_PAUSE_MIN_S = 0.05
RESTART_PAUSE_MAX_S = 10.0
LOOK_AGAIN_S = 0.05  # while another supervisor of this data directory starts or ends, or ours is to start again
STABLE_AFTER_S = 60.0  # a supervisor that ran this long starts again without a pause
# One that served is started again for ever. One that does not come to serve any more is given up after so many starts
# over at least so long: what passes (a package being replaced, a full disk) has passed by then.
FAILED_STARTS_MAX = 20
FAILED_STARTS_FOR_S = 300.0
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)
_MNT_DETACH = 2
_PR_SET_CHILD_SUBREAPER = 36


# --- for who starts it ------------------------------------------------------------------------------------------------


def start(
    data_dir: Path,
    isolation: str,
    server_uid: int,
    *,
    pool: int | None = None,
    templates_dir: Path | None = None,
    build_base: bool = True,
    timeout_s: float = config.SUPERVISOR_START_TIMEOUT_S,
) -> bool:
    """Start watcher and supervisor; True: started and serving, False: one was running for this data directory.

    Raises RuntimeError with the readable reason when the supervisor does not come up.
    """
    argv = [sys.executable, "-m", "sandpty.supervisor.watch", "--data-dir", str(data_dir), "--isolation", isolation]
    argv += ["--server-uid", str(server_uid)]
    argv += ["--pool", str(pool)] if pool is not None else []
    argv += ["--templates-dir", str(templates_dir)] if templates_dir is not None else []
    argv += [] if build_base else ["--no-base-build"]
    deadline = time.monotonic() + timeout_s
    while True:
        status, words = _run_to_end(argv, deadline - time.monotonic())
        if status == 0:
            return True
        if status != STATUS_RUNNING_ALREADY:
            raise RuntimeError(words or f"the supervisor's watcher ended with status {status}")
        if _serves(DataDir(data_dir.resolve()).supervisor_socket):
            return False
        if time.monotonic() > deadline:
            raise RuntimeError(f"a supervisor holds {data_dir} but does not answer")
        time.sleep(LOOK_AGAIN_S)  # it is starting or ending


def _run_to_end(argv: list[str], timeout_s: float) -> tuple[int, str]:
    """Exit status and the last line it said."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=max(1.0, timeout_s),
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError("the supervisor did not start in time") from error
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1].removeprefix("sandpty: ") if lines else ""


def _serves(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(LOOK_AGAIN_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


# --- the process ------------------------------------------------------------------------------------------------------


def _detach_into_session() -> bool:
    """Double fork; True in the daemon, False in the process that was started."""
    if os.fork():
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True


def _own_mounts() -> None:
    """A private mount namespace, so that no mount of ours is seen on the host.

    crun refuses a hybrid cgroup hierarchy with any controller on the v2 side, even one it does not use: hide it here.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    check(libc.unshare(_CLONE_NEWNS), "unshare")
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None), "mount --make-rprivate /")
    if os.path.ismount("/sys/fs/cgroup/unified"):
        check(libc.umount2(b"/sys/fs/cgroup/unified", _MNT_DETACH), "umount unified")
        # crun takes the empty place for a controller and leaves files there: not on the host's tmpfs.
        check(libc.mount(b"none", b"/sys/fs/cgroup/unified", b"tmpfs", 0, b"size=1m"), "mount over unified")


def _spawn(options: list[str], lock_fd: int, ready_fd: int) -> int:
    # Descriptor 3 is kept occupied: the OCI runtime passes it on to the agent, so nothing else may get that number.
    argv = [sys.executable, "-m", "sandpty.supervisor.main", *options]
    argv += ["--lock-fd", str(lock_fd), "--ready-fd", str(ready_fd)]
    passed = tuple(fd for fd in (3, lock_fd, ready_fd) if fd >= 0)
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=passed).pid


def _write_pid(path: Path, pid: int) -> None:
    """In one write over what is there: on a disk that is full there is no room for another file. Never raises."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, f"{pid:<15}\n".encode(), 0)
        finally:
            os.close(fd)
    except OSError as error:  # the supervisor is worth more than a word of where it is
        _say(f"{path.name} cannot be written: {error}")


class _Watcher:
    """`starter_fd`: where who started us waits for the supervisor's first line."""

    def __init__(self, data: DataDir, options: list[str], lock_fd: int, starter_fd: int) -> None:
        self._data = data
        self._options = options
        self._lock_fd = lock_fd
        self._starter_fd = starter_fd
        self._child = 0
        self._ending = False
        self._serving = False  # it has said so

    def _end(self, *_: object) -> None:
        self._ending = True
        if self._child:
            os.kill(self._child, signal.SIGTERM)

    def run(self) -> int:
        """Exit status 0: the supervisor was asked to end; else its own, or what it was given up with."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._end)
        pause_s = RESTART_PAUSE_MIN_S
        failed, failing_since = 0, 0.0
        served = False
        while True:
            began = time.monotonic()
            status = self._run_child()
            if status in (0, STATUS_REFUSED) or self._ending:
                return max(status, 0)
            served = served or self._serving
            if not served:  # its starter says why
                return STATUS_NOT_STARTED
            failed = 0 if self._serving else failed + 1
            failing_since = began if failed == 1 else failing_since
            failing_s = time.monotonic() - failing_since
            if failed >= FAILED_STARTS_MAX and failing_s >= FAILED_STARTS_FOR_S:
                _say(
                    f"the supervisor does not start ({failed} times in {failing_s:.0f} s, the last with status "
                    f"{status}) and is given up; sandboxes live on, `sandpty serve` tries again"
                )
                return STATUS_NOT_STARTED
            if time.monotonic() - began > STABLE_AFTER_S:
                pause_s = RESTART_PAUSE_MIN_S
            _say(f"supervisor ended with status {status}, again in {pause_s:g} s")
            self._rest(pause_s)
            if self._ending:
                return 0
            pause_s = min(pause_s * 2, RESTART_PAUSE_MAX_S)

    def _rest(self, pause_s: float) -> None:
        """So long, or until it is to end."""
        until = time.monotonic() + pause_s
        while not self._ending and (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, LOOK_AGAIN_S))

    def _run_child(self) -> int:
        """The supervisor's exit status; negative: the signal that ended it."""
        self._serving = False
        told, tell = os.pipe()
        self._child = _spawn(self._options, self._lock_fd, tell)
        os.close(tell)
        if self._ending:  # told so before there was a child to be told
            os.kill(self._child, signal.SIGTERM)
        listening = threading.Thread(target=self._listen, args=(told,), daemon=True)
        listening.start()
        _write_pid(self._data.supervisor_pid, self._child)
        while True:
            pid, status = os.waitpid(-1, 0)  # also reaps agents and whatever else lost its parent
            if pid == self._child:
                self._child = 0
                listening.join()
                return os.waitstatus_to_exitcode(status)

    def _listen(self, told: int) -> None:
        """To the line that it says once it serves, or why it does not."""
        with os.fdopen(told, "rb") as answer:
            line = answer.readline()
        self._serving = line == b"ready\n"
        if line and self._starter_fd >= 0:  # without a line the starter waits until all of us are gone
            with contextlib.suppress(OSError):  # it waits no more
                os.write(self._starter_fd, line)
            os.close(self._starter_fd)
            self._starter_fd = -1


def _say(words: str) -> None:
    print(f"watcher: {words}", file=sys.stderr, flush=True)


def _daemon(data: DataDir, options: list[str], isolation: str, lock_fd: int, starter_fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.umask(0o077)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(data.supervisor_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    if isolation != "process":
        _own_mounts()
    watch_pid = data.root / "supervisor-watch.pid"
    _write_pid(watch_pid, os.getpid())
    try:
        return _Watcher(data, options, lock_fd, starter_fd).run()
    finally:
        for path in (data.supervisor_pid, watch_pid):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _fail(message: str, status: int) -> int:
    print(f"sandpty: {message}", file=sys.stderr)
    return status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sandpty-supervisor-watch", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--isolation", choices=["auto", "crun", "runc", "runsc", "process"], default="auto")
    known, rest = parser.parse_known_args(argv)
    data = DataDir(known.data_dir.resolve())
    # Descriptor 3 must be a harmless placeholder before anything else is opened.
    placeholder = os.open(os.devnull, os.O_RDONLY)
    os.dup2(placeholder, 3, inheritable=True)
    data.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    # The lock is an open file description shared with the supervisor: it is free only once both are gone.
    lock = os.open(data.supervisor_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _fail(f"a supervisor is already running for {data.root}", STATUS_RUNNING_ALREADY)
    told, tell = os.pipe()
    options = ["--data-dir", str(data.root), "--isolation", known.isolation, *rest]
    if _detach_into_session():
        os.close(told)
        status = STATUS_NOT_STARTED
        try:
            status = _daemon(data, options, known.isolation, lock, tell)
        except OSError as error:
            _say(str(error))
        os._exit(status)
    os.close(tell)
    os.close(lock)
    with os.fdopen(told, encoding="utf-8", errors="replace") as answer:
        line = answer.readline().strip()
    if line == "ready":
        return 0
    if line.startswith("refused: "):
        return _fail(line.removeprefix("refused: "), STATUS_REFUSED)
    return _fail(f"the supervisor did not start: {_last_line(data.supervisor_log)}", 1)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it left no log"


if __name__ == "__main__":
    sys.exit(main())
