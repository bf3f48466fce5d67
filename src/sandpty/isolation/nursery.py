"""A tiny process that makes what needs a fork: namespaces, and launchers of the OCI runtime.

Making a user namespace needs a process that enters it, and joining control groups takes milliseconds per group: so
launchers are forked and put into their groups long before they become (exec) the runtime. This program has no memory
worth copying. It runs as a script, with the standard library alone: `python -I -S nursery.py` with a SOCK_SEQPACKET
socket as stdin.

| request | answer |
|---|---|
| `n` u32 inside, u32 outside, u32 count | `+` with two descriptors: user and network namespace |
| `u` the same | `+` with one descriptor: a user namespace that only shifts owners |
| `l` three times u32 0 | `+` and the launcher's pid in decimal, with one descriptor: a socket to it |

or `-` and a message. A launcher waits for one message: the argument vector, separated by NUL, with the descriptor
that the program shall have as 3. It ends when its socket is closed instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_REQUEST = struct.Struct("<cIII")
_ARGUMENT_BYTES = 64 * 1024
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_libc = ctypes.CDLL(None, use_errno=True)

# What the guest finds in its network namespace. It has no right to change these.
_SYSCTLS = {
    "ipv4/ping_group_range": "0 65535",  # ping without raw sockets
    "ipv4/ip_unprivileged_port_start": "0",
    "ipv6/conf/default/disable_ipv6": "1",  # eth0 is IPv4 only; ::1 stays
}


def _unshare(kind: int) -> None:
    if _libc.unshare(kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _be_born(control: socket.socket, ready: int, mapped: int, network: bool) -> None:
    """In the child: enter the namespaces (the network one owned by the user one) and send them."""
    _unshare(_CLONE_NEWUSER)
    os.write(ready, b"u")
    if os.read(mapped, 1) != b"m":
        return
    user = os.open("/proc/self/ns/user", os.O_RDONLY)
    if not network:
        socket.send_fds(control, [b"+"], [user])
        return
    _unshare(_CLONE_NEWNET)
    _loopback_up()
    for name, value in _SYSCTLS.items():
        try:
            with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
                file.write(value)
        except FileNotFoundError:
            pass  # a kernel without IPv6
    net = os.open("/proc/self/ns/net", os.O_RDONLY)
    socket.send_fds(control, [b"+"], [user, net])


def _make(control: socket.socket, ids: str, network: bool) -> None:
    ready_read, ready_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready_read)
        os.close(mapped_write)
        try:
            _be_born(control, ready_write, mapped_read, network)
        except OSError as error:
            control.send(f"-{error}".encode())
        os._exit(0)
    os.close(ready_write)
    os.close(mapped_read)
    try:
        if os.read(ready_read, 1) == b"u":
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                    file.write(ids)
            os.write(mapped_write, b"m")
    finally:
        os.close(ready_read)
        os.close(mapped_write)
        with contextlib.suppress(ChildProcessError):  # reaped by the kernel, see main
            os.waitpid(child, 0)


def _become(order: socket.socket) -> None:
    """In a launcher: wait for the order, then be that program."""
    os.setsid()
    message, fds, _, _ = socket.recv_fds(order, _ARGUMENT_BYTES, 1)
    if not message or len(fds) != 1:
        return
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.set_inheritable(fds[0], False)
    os.dup2(fds[0], 3)
    os.set_inheritable(3, True)  # it may have been 3 already
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    argv = message.split(b"\0")
    os.execve(argv[0], argv, _ENVIRONMENT)


def _launcher(control: socket.socket) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            ours.close()
            try:
                _become(theirs)
            finally:
                os._exit(127)
        socket.send_fds(control, [f"+{child}".encode()], [ours.fileno()])


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a child ended
    with socket.socket(fileno=0) as control:
        while request := control.recv(_REQUEST.size):
            kind, inside, outside, count = _REQUEST.unpack(request)
            try:
                if kind in (b"n", b"u"):
                    _make(control, f"{inside} {outside} {count}\n", kind == b"n")
                else:
                    _launcher(control)
            except OSError as error:
                control.send(f"-{error}".encode())


if __name__ == "__main__":
    main()
