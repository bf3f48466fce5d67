"""The supervisor proper: `python -m sandpty.supervisor.main`, started and restarted by `sandpty.supervisor.watch`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import pwd
import signal
import sys
from pathlib import Path

import uvloop

from sandpty import __version__, config
from sandpty.agent import agent_binary
from sandpty.config import DataDir
from sandpty.isolation.background import Background
from sandpty.isolation.choice import choose
from sandpty.isolation.driver import Driver, TierRefusedError
from sandpty.supervisor import certificates
from sandpty.supervisor import log as supervisor_log
from sandpty.supervisor.adopt import adopt_all, refuse_beside_others
from sandpty.supervisor.deadlines import Deadlines
from sandpty.supervisor.ended import Ended
from sandpty.supervisor.events import Events
from sandpty.supervisor.images import Images
from sandpty.supervisor.journal import Journal
from sandpty.supervisor.key_file import KeyFile
from sandpty.supervisor.layers import Layers
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.pool import Pool
from sandpty.supervisor.room import Room
from sandpty.supervisor.service import Service, Verb
from sandpty.supervisor.sockets import SocketService
from sandpty.supervisor.state import ID_LENGTH
from sandpty.supervisor.team_secrets import TeamSecrets
from sandpty.supervisor.template_builds import Building
from sandpty.supervisor.template_records import TemplateRecords
from sandpty.supervisor.template_verbs import template_verbs
from sandpty.supervisor.usage import Usages
from sandpty.supervisor.volume_service import VolumeService
from sandpty.templates import collecting, quick, stacks
from sandpty.templates.catalog import Catalog
from sandpty.templates.names import HOST_USR
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import SUPERVISOR_PROTOCOL_VERSION, Host

log = logging.getLogger(__name__)
SOCKET_PATH_BYTES_MAX = 107  # sun_path
EXIT_ENDED = 0  # asked to end: the watcher ends too
EXIT_NOT_STARTED = 70  # EX_SOFTWARE: failed before it served
EXIT_REFUSED = 78  # EX_CONFIG: starting again would not help


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sandpty-supervisor", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--isolation", choices=["auto", "crun", "runc", "runsc", "process"], default="auto")
    parser.add_argument("--server-uid", type=int, required=True)
    parser.add_argument("--pool", type=int, default=config.POOL_SIZE, help="warm sandboxes kept per template")
    parser.add_argument("--templates-dir", type=Path)
    parser.add_argument("--no-base-build", action="store_true", help="never build `base` in the background")
    parser.add_argument("--lock-fd", type=int, default=-1, help="the data directory's lock, held while we live")
    parser.add_argument("--ready-fd", type=int, default=-1, help="where to write one line once ready, or why not")
    return parser.parse_args(argv)


def check_path(data: DataDir) -> None:
    """Raises TierRefusedError when the agents' sockets would have names that the kernel refuses."""
    longest = data.agents / f"i{'x' * ID_LENGTH}.sock"
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
        raise TierRefusedError(f"the data directory's path is too long for unix sockets: {data.root}")


def make_directories(data: DataDir, server_uid: int) -> None:
    """<data> 0711 root; <data>/run and run/agents 0750, open to the server's group; the rest 0700."""
    data.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    for directory in (data.run, data.agents):
        directory.mkdir(mode=0o750, exist_ok=True)
    for directory in (data.sandboxes, data.root / "trash"):
        directory.mkdir(mode=0o700, exist_ok=True)
    data.builds.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        data.root.chmod(0o711)
        os.chown(data.builds, server_uid, _group_of(server_uid))
        for directory in (data.run, data.agents):
            os.chown(directory, 0, _group_of(server_uid))
            directory.chmod(0o750)


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid  # an account that exists as a number only


def tell_ready(options: argparse.Namespace, line: str) -> None:
    """Say once to who started us that we serve, or in one line why we do not."""
    fd, options.ready_fd = options.ready_fd, -1
    if fd >= 0:
        with contextlib.suppress(OSError):  # the watcher died: who serves goes on
            os.write(fd, (" ".join(line.split()) + "\n").encode("utf-8", "replace"))
        os.close(fd)


async def run(options: argparse.Namespace, data: DataDir) -> None:
    """Serve until told to end. Raises TierRefusedError when the isolation does not hold."""
    async with Background() as background:
        driver = choose(options.isolation, data, agent_binary(), background)
        refuse_beside_others(data, driver)
        try:
            await driver.open()
            await _serve(options, driver, data, background)
        finally:
            await driver.close(sandboxes_left=any(data.sandboxes.iterdir()))


async def _catalog(driver: Driver, data: DataDir, templates: Path) -> Catalog:
    """Of what is there already; held, so that no other supervisor removes it."""
    catalog = Catalog(await asyncio.to_thread(quick.ready, templates, isolated=driver.isolated))
    if driver.isolated:
        for ready in filter(None, (stacks.ready(templates, name) for name in stacks.STACKS)):
            catalog.add(ready)
            collecting.hold(templates, ready)
        collecting.hold(templates, catalog.resolve(HOST_USR))
        collecting.register(templates, data)
    return catalog


def _host(driver: Driver, facts: dict[str, str]) -> Host:
    return Host(
        version=SUPERVISOR_PROTOCOL_VERSION,
        tier=driver.name,
        isolated=driver.isolated,
        runtime=facts.get("runtime", driver.name),
        facts={"sandpty": __version__, **facts},
        pid=os.getpid(),
    )


def _remembering(data: DataDir, events: Events) -> dict[str, Verb]:
    """Write down what becomes of sandboxes; the verbs that tell of it."""
    journal, ended = Journal(data.root), Ended(data.root)
    events.listeners += [journal.record, ended.record]
    return {"history": journal.verb, "ended": ended.verb}


def _secrets(data: DataDir, driver: Driver, sandboxes: Sandboxes) -> TeamSecrets:
    """Before sandboxes are adopted: their policies may refer to some."""
    secrets = TeamSecrets(data.secrets)
    secrets.load()
    secrets.changed = sandboxes.policies.secret_changed
    if driver.outward is not None:
        driver.outward.secrets_of = secrets.values
    return secrets


async def _serve(options: argparse.Namespace, driver: Driver, data: DataDir, background: Background) -> None:
    templates = options.templates_dir or data.templates
    catalog = await _catalog(driver, data, templates)
    events = Events()
    remembering = _remembering(data, events)
    records = TemplateRecords(data.template_records, catalog)
    records.load()
    images = Images(data, events, background, isolated=driver.isolated)
    sandboxes = Sandboxes(
        data,
        driver,
        catalog,
        records,
        events=events,
        background=background,
        server_uid=options.server_uid,
        images=images,
    )
    secrets = _secrets(data, driver, sandboxes)
    pool = Pool(sandboxes, catalog, background, options.pool)
    # First what is there already: the canary must not take a slot that a living sandbox has.
    await adopt_all(data, driver, sandboxes, pool)
    sandboxes.snapshots.load()
    records.released += [sandboxes.snapshots.collect, images.collect, pool.wake.set]
    images.collect()
    sandboxes.volumes.load()
    host = _host(driver, await driver.probe(catalog.default.layers))
    volumes = VolumeService(sandboxes, catalog, background)
    service = Service(
        sandboxes,
        pool,
        events=events,
        background=background,
        host=host,
        server_uid=options.server_uid,
        keys=KeyFile(data),
        more={
            "usage": Usages(sandboxes, driver).verb,
            **remembering,
            "certificate": certificates.verb(data),
            "layer": Layers(sandboxes.snapshots).verb,
            **template_verbs(records),
            **volumes.table(),
            **images.verbs,
            **secrets.table(),
        },
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, service.ending.set)
    async with SocketService(data, sandboxes, driver, background, server_uid=options.server_uid):
        server = await service.serve(data)
        room = Room(data.root, sandboxes, driver, background)
        loops = [background.spawn(each.run(), "loop") for each in (Deadlines(sandboxes, background), room)]
        filling = background.spawn(pool.run(), "pool")
        if driver.isolated and not options.no_base_build:
            loops.append(background.spawn(Building(templates, catalog, pool).run(), "templates"))
        tell_ready(options, "ready")
        log.info("serving tier=%s pid=%d pool=%d", driver.name, os.getpid(), options.pool)
        await service.ending.wait()
        log.info(
            "ending, %s", "all sandboxes killed" if service.kill_all else f"{len(sandboxes.list())} sandboxes live on"
        )
    server.close()
    data.supervisor_socket.unlink(missing_ok=True)
    for task in [*loops, filling]:
        task.cancel()
    await asyncio.wait([*loops, filling])
    await pool.drain()
    await asyncio.gather(volumes.close(), images.close())
    service.end_events()
    await background.settle(config.STOP_TIMEOUT_S)


def main() -> None:
    """Exit status 0: asked to end; 78: refused, with the reason in the log and on --ready-fd."""
    options = arguments()
    for fd in (options.lock_fd, options.ready_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)  # no agent may hold them
    data = DataDir(options.data_dir.resolve())
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    make_directories(data, options.server_uid)
    supervisor_log.configure(data.supervisor_log)
    log.info("supervisor %s starting, pid %d", __version__, os.getpid())
    try:
        check_path(data)
        uvloop.run(run(options, data))  # a tenth of a millisecond less for each of the four hops of a create
    except (TierRefusedError, SandptyError) as error:
        log.error("refused: %s", error)
        tell_ready(options, f"refused: {error}")
        passes = isinstance(error, SandptyError) and error.reason.name == "no_space"
        sys.exit(EXIT_NOT_STARTED if passes else EXIT_REFUSED)
    except Exception:
        log.exception("supervisor failed")
        sys.exit(EXIT_NOT_STARTED)
    for path in (data.supervisor_pid, data.root / "supervisor-watch.pid"):
        path.unlink(missing_ok=True)  # the watcher may be gone
    log.info("ended")
    sys.exit(EXIT_ENDED)


if __name__ == "__main__":
    main()
