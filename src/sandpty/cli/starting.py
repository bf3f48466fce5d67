"""The steps of `sandpty serve`, in order; what is said at the start and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from sandpty import __version__
from sandpty.cli import serving_tls
from sandpty.cli.serve import is_loopback
from sandpty.cli.serving_tls import TlsOptions
from sandpty.cli.supervisor_link import SupervisorLink
from sandpty.config import DataDir
from sandpty.server import privileges, ssh_identity
from sandpty.server.app import open_listener
from sandpty.server.app import serve as serve_requests
from sandpty.server.privileges import Account, PrivilegeError
from sandpty.server.settings import Settings
from sandpty.supervisor import watch
from sandpty.supervisor.key_file import KeyFile, new_key
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError

LINK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for on the command line."""

    data: DataDir
    given_data_dir: bool
    host: str
    port: int
    isolation: str
    pool: int
    templates_dir: Path
    domain: str | None
    tls: TlsOptions | None
    ssh: tuple[str, int] | None
    ssh_agents: bool
    log_level: str
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Listeners:
    """Opened while we are root, beside the one that is always there."""

    tls: socket.socket | None
    ssh: socket.socket | None


def run(plan: Plan) -> None:
    """Serve until a signal. Raises SandptyError for whatever is in the way."""
    logging.basicConfig(level=plan.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    make_data_dir(plan.data)
    with server_lock(plan.data):
        key = read_or_create_key(plan.data)
        runtime_secret = read_or_create_runtime_secret(plan.data)
        KeyFile(plan.data).ensure_first(key)
        check_port(plan.host, plan.port)
        serving_tls.choose(plan.data, plan.tls, plan.domain)
        listeners = Listeners(tls=open_tls(plan), ssh=open_ssh(plan))
        ssh_host_key = read_or_create_ssh_host_key(plan.data) if plan.ssh else ""
        account = privileges.server_account()
        host = start_supervisor(plan, account)
        prepare_info(plan.data, account)
        privileges.preimport(ssh=plan.ssh is not None)
        if os.geteuid() == 0:
            os.chdir("/")  # where we were started may soon be out of bounds
            try:
                privileges.drop_to(account)
            except PrivilegeError as error:
                raise SandptyError("forbidden", str(error)) from error
        settings = Settings(
            data_dir=plan.data,
            api_key=key,
            host=plan.host,
            port=plan.port,
            domain=serving_tls.public_domain(plan.domain, listeners.tls),
            runtime_secret=runtime_secret,
            ssh_host_key=ssh_host_key,
            ssh_agents=plan.ssh_agents,
        )
        _serve(plan, settings, host, account, listeners)


# --- the data directory ----------------------------------------------------------------------------------------------


def make_data_dir(data: DataDir) -> None:
    """Only `run/` in it is open to the server's account; 0711 lets it pass."""
    try:
        data.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            data.root.chmod(0o711)
    except OSError as error:
        message = f"the data directory {data.root} cannot be used: {error.strerror}"
        raise SandptyError("bad_argument", message) from error


@contextmanager
def server_lock(data: DataDir) -> Iterator[None]:
    """One server per data directory; the lock goes with the process. Raises conflict."""
    try:
        descriptor = os.open(data.server_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"the data directory {data.root} cannot be used: {error.strerror}"
        raise SandptyError("bad_argument", message) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            message = f"a server runs with the data directory {data.root} already"
            raise SandptyError("conflict", message + (f", as process {holder}" if holder else "")) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read_or_create_key(data: DataDir) -> str:
    """The API key, made at the first start: `e2b_` and 40 hex digits, in a file for its owner only."""
    return _read_or_create(data.api_key, "API key", new_key)


def read_or_create_runtime_secret(data: DataDir) -> bytes:
    """What runtime tokens are signed with: it outlives the server, and so do they."""
    return _read_or_create(data.runtime_secret, "runtime secret", lambda: secrets.token_hex(32)).encode()


def read_or_create_ssh_host_key(data: DataDir) -> str:
    """By which clients know this server again."""
    return _read_or_create(data.ssh_host_key, "SSH host key", ssh_identity.new_host_key)


def _read_or_create(path: Path, what: str, make: Callable[[], str]) -> str:
    try:
        if text := path.read_text().strip():
            return text
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise SandptyError("bad_argument", f"the {what} {path} cannot be read: {error}") from error
    text = make()
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SandptyError("no_space", f"the {what} cannot be written: {error.strerror}") from error
    return text


def prepare_info(data: DataDir, account: Account) -> None:
    """The file in which the server, root no more by then, says where it listens."""
    data.server_info.unlink(missing_ok=True)
    descriptor = os.open(data.server_info, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(descriptor, 0o644)  # whatever the umask was
        if os.geteuid() == 0:
            os.fchown(descriptor, account.uid, account.gid)
    finally:
        os.close(descriptor)


# --- what must be there first ----------------------------------------------------------------------------------------


def check_port(host: str, port: int) -> None:
    """Say that a port is taken before anything was started for it. Raises SandptyError."""
    try:
        open_listener(host, port).close()
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


def open_tls(plan: Plan) -> socket.socket | None:
    """Its listener, opened while we are root: the usual port is below 1024. Raises SandptyError."""
    if plan.tls is None:
        return None
    try:
        return open_listener(plan.host, plan.tls.port)
    except OSError as error:
        raise _cannot_listen(plan.host, plan.tls.port, error) from error


def open_ssh(plan: Plan) -> socket.socket | None:
    """Its listener; port 22 needs root as well. Raises SandptyError."""
    if plan.ssh is None:
        return None
    host, port = plan.ssh
    try:
        return open_listener(host, port)
    except OSError as error:
        raise _cannot_listen(host, port, error, "--ssh-port") from error


def _cannot_listen(host: str, port: int, error: OSError, option: str = "--port") -> SandptyError:
    if error.errno == errno.EADDRINUSE:
        return SandptyError(
            "conflict", f"port {port} of {host} is in use; choose another with {option} (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return SandptyError("forbidden", f"port {port} needs root while listening; choose one above 1023 with {option}")
    what = (error.strerror or str(error)).lower()
    return SandptyError("bad_argument", f"cannot listen on {host} port {port}: {what}")


def start_supervisor(plan: Plan, account: Account) -> verbs.Host:
    """Start it, or find the one that runs. Raises runtime_failed with what the isolation lacks, conflict."""
    try:
        started = watch.start(
            plan.data.root, plan.isolation, account.uid, pool=plan.pool, templates_dir=plan.templates_dir
        )
    except RuntimeError as error:
        raise SandptyError("runtime_failed", str(error)) from error
    try:
        with SupervisorLink(plan.data.supervisor_socket, LINK_TIMEOUT_S) as link:
            host = link.host()
            with contextlib.suppress(SandptyError):  # one of a version without teams
                link.reload_keys()
    except (OSError, EOFError) as error:
        raise SandptyError("supervisor_down", f"the supervisor does not answer: {error}") from error
    if not started and plan.isolation not in ("auto", host.tier):
        message = (
            f"a supervisor with isolation {host.tier} runs for {plan.data.root} already;"
            f" end it with `sandpty down` to start one with {plan.isolation}"
        )
        raise SandptyError("conflict", message)
    addresses = [plan.host] if plan.ssh is None else [plan.host, plan.ssh[0]]
    if not host.isolated and not all(is_loopback(address) for address in addresses):
        raise SandptyError("bad_argument", f"isolation {host.tier} isolates nothing, so it serves on loopback only")
    return host


# --- serving ---------------------------------------------------------------------------------------------------------


def _serve(plan: Plan, settings: Settings, host: verbs.Host, account: Account, listeners: Listeners) -> None:
    def listening(url: str) -> None:
        _say_started(plan, url, host, account)
        if listeners.tls is not None:
            _say_tls(plan, settings)
        if listeners.ssh is not None:
            _say_ssh(plan, listeners.ssh)

    try:
        _run_until_signal(settings, listeners, listening)
    except OSError as error:
        raise _cannot_listen(plan.host, plan.port, error) from error
    _say_stopped(plan)


def _run_until_signal(settings: Settings, listeners: Listeners, listening: Callable[[str], None]) -> None:
    import uvloop

    async def main() -> None:
        work = serve_requests(settings, tls_listener=listeners.tls, ssh_listener=listeners.ssh, listening=listening)
        serving = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    uvloop.run(main())


def _data_dir_option(plan: Plan) -> str:
    return f" --data-dir {shlex.quote(str(plan.data.root))}" if plan.given_data_dir else ""


def _say_started(plan: Plan, url: str, host: verbs.Host, account: Account) -> None:
    if plan.as_json:
        said = {"url": url, "version": __version__, "tier": host.tier, "isolated": host.isolated}
        click.echo(json.dumps({**said, "data_dir": str(plan.data.root), "account": account.name, "pid": os.getpid()}))
        return
    option = _data_dir_option(plan)
    click.echo(f"sandpty {__version__} on {url}")
    click.echo(f"  isolation  {_tier(host)}")
    click.echo(f"  data       {plan.data.root}")
    click.echo(f"  account    {account.name}, no capabilities")
    click.echo(f'  SDKs       eval "$(sandpty env{option})"')
    click.echo(f"  stop       Ctrl-C stops this server, sandboxes live on; sandpty down{option} ends all")
    if not is_loopback(plan.host):
        click.echo(
            f"sandpty: warning: listening on {plan.host}, beyond this machine and without TLS; the API key is all that"
            " protects it",
            err=True,
        )
    if not host.isolated:
        click.echo("sandpty: warning: NO ISOLATION: guests are processes of this machine's user", err=True)


def _say_tls(plan: Plan, settings: Settings) -> None:
    if plan.as_json:
        return
    click.echo(f"  TLS        https://{settings.domain}, sandboxes' ports at https://PORT-ID.{settings.domain}")
    if plan.tls is not None and plan.tls.cert is None:
        click.echo(f"             by an authority of this machine: sandpty ca{_data_dir_option(plan)} makes it trusted")


def _say_ssh(plan: Plan, listener: socket.socket) -> None:
    if plan.as_json:
        return
    host, port = listener.getsockname()[:2]
    click.echo(f"  SSH        ssh -p {port} ID@{host}, the password an API key; sandpty ssh{_data_dir_option(plan)} ID")
    if not is_loopback(host):
        click.echo(f"sandpty: warning: SSH listens on {host}, beyond this machine", err=True)


def _tier(host: verbs.Host) -> str:
    return f"{host.tier} ({host.runtime})" if host.isolated else f"{host.tier}: NONE, for development only"


def _say_stopped(plan: Plan) -> None:
    if plan.as_json:
        return
    try:
        with SupervisorLink(plan.data.supervisor_socket, LINK_TIMEOUT_S) as link:
            count = len(link.sandboxes())
    except (OSError, EOFError, SandptyError):
        click.echo("sandpty: stopped")
        return
    lives = "1 sandbox lives" if count == 1 else f"{count} sandboxes live"
    if count:
        click.echo(f"sandpty: stopped; {lives} on until the deadline; sandpty down{_data_dir_option(plan)} ends all")
    else:
        click.echo(f"sandpty: stopped; the supervisor waits; sandpty down{_data_dir_option(plan)} ends it")
