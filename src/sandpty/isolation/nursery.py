"""A tiny process that makes user and network namespaces and hands them over as file descriptors.

Making a user namespace needs a process that enters it, so somebody must fork; this one has no memory worth copying. It runs
as a script, with the standard library alone: `python -I -S nursery.py` with a SOCK_SEQPACKET socket as stdin.

Request: u32 base, u32 count. Answer: b"+" with the two descriptors (user, network), or b"-" and a message.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_REQUEST = struct.Struct("<II")
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


def _be_born(control: socket.socket, ready: int, mapped: int) -> None:
    """In the child: enter both namespaces (the network one owned by the user one) and send them."""
    _unshare(_CLONE_NEWUSER)
    os.write(ready, b"u")
    if os.read(mapped, 1) != b"m":
        return
    _unshare(_CLONE_NEWNET)
    _loopback_up()
    for name, value in _SYSCTLS.items():
        try:
            with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
                file.write(value)
        except FileNotFoundError:
            pass  # a kernel without IPv6
    user = os.open("/proc/self/ns/user", os.O_RDONLY)
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    socket.send_fds(control, [b"+"], [user, network])


def _make(control: socket.socket, base: int, count: int) -> None:
    ready_read, ready_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready_read)
        os.close(mapped_write)
        try:
            _be_born(control, ready_write, mapped_read)
        except OSError as error:
            control.send(f"-{error}".encode())
        os._exit(0)
    os.close(ready_write)
    os.close(mapped_read)
    try:
        if os.read(ready_read, 1) == b"u":
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                    file.write(f"0 {base} {count}\n")
            os.write(mapped_write, b"m")
    except OSError as error:
        control.send(f"-{error}".encode())
    finally:
        os.close(ready_read)
        os.close(mapped_write)
        os.waitpid(child, 0)


def main() -> None:
    with socket.socket(fileno=0) as control:
        while request := control.recv(_REQUEST.size):
            _make(control, *_REQUEST.unpack(request))


if __name__ == "__main__":
    main()
