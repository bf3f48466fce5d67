"""Pure parts of SSH: user names, public keys as lines, certificates, what ssh's configuration can say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from unittest.mock import Mock

import asyncssh
import pytest
from asyncssh.encryption import get_encryption
from asyncssh.misc import map_handler_name

from sandpty import config
from sandpty.cli import ssh_access
from sandpty.cli.ssh import split
from sandpty.config import DataDir
from sandpty.server.dialects.ssh import roles
from sandpty.server.dialects.ssh.gateway import Client
from sandpty.server.dialects.ssh.login import Login, parse
from sandpty.server.dialects.ssh.roles import Kind, Role
from sandpty.server.dialects.ssh.sealing import Gcm
from sandpty.server.dialects.ssh.transport import Channel
from sandpty.server.settings import Settings
from sandpty.server.ssh_identity import SshIdentity, new_host_key
from sandpty.supervisor import ssh_keys
from sandpty.wire.errors import SandptyError


def test_a_user_name_says_which_terminal_and_as_whom() -> None:
    """An ID and words, in any order."""
    assert parse("i1") == Login("i1")
    assert parse("i1+new+user=root") == Login("i1", new=True, user="root")
    assert parse("i1+ro+42") == Login("i1", 42, read_only=True)
    assert parse("i1+ro").joins
    assert not parse("i1+user=me").joins


@pytest.mark.parametrize("name", ["", "+new", "i1+", "i1+what", "i1+new+42", "i1+ro+new", "i1+-1", "i1+" + "9" * 20])
def test_any_other_user_name_is_refused_in_words(name: str) -> None:
    """Never an exception of another kind."""
    with pytest.raises(SandptyError) as refused:
        parse(name)
    assert refused.value.reason.name == "bad_argument"


def test_a_public_key_is_one_line_of_a_known_type(tmp_path: Path) -> None:
    """Its fingerprint is ssh-keygen's; private keys and other files are refused."""
    for kind in ("ed25519", "rsa", "ecdsa"):
        key = tmp_path / kind
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "who knows", "-f", str(key)], check=True)
        line = ssh_keys.checked(f"# a comment\n{key.with_suffix('.pub').read_text()}\n")
        told = subprocess.check_output(["ssh-keygen", "-l", "-f", str(key.with_suffix(".pub"))], text=True)
        assert told.split()[1] == ssh_keys.fingerprint(line)
        assert ssh_keys.comment(line) == "who knows"
        assert line == f"{ssh_keys.without_comment(line)} who knows"
        with pytest.raises(SandptyError, match="private key"):
            ssh_keys.checked(key.read_text())
    for text in (
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-dss AAAAB3NzaC1kc3M=",
        line + "\n" + line,
        "ssh-rsa " + "A" * 20_000,
    ):
        with pytest.raises(SandptyError):
            ssh_keys.checked(text)


def test_a_certificate_is_for_its_api_key_alone_and_for_a_while(tmp_path: Path) -> None:
    """OpenSSH reads it; the authority is the API key's own, and the same after a restart."""
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    host_key = new_host_key()
    one, again = (SshIdentity(host_key, b"secret", "127.0.0.1", 22) for _ in range(2))
    assert one.authority("k1") == again.authority("k1") != one.authority("k2")
    assert one.authority("k1") != SshIdentity(host_key, b"other", "127.0.0.1", 22).authority("k1")
    made = one.certificate("k1", key.with_suffix(".pub").read_text())
    (tmp_path / "cert.pub").write_text(made.text)
    (tmp_path / "ca.pub").write_text(one.authority("k1"))
    told, ca = (
        subprocess.check_output(["ssh-keygen", mode, "-f", str(tmp_path / name)], text=True)
        for mode, name in (("-L", "cert.pub"), ("-l", "ca.pub"))
    )
    assert ca.split()[1] in told
    assert "user certificate" in told
    assert "permit-agent-forwarding" in told
    assert "permit-X11-forwarding" not in told
    for text in ("", "nonsense", key.read_text(), "\udcff"):
        with pytest.raises(SandptyError):
            one.certificate("k1", text)
    with pytest.raises(SandptyError, match="host key"):
        SshIdentity("nonsense", b"secret", "127.0.0.1", 22)
    assert config.SSH_CERTIFICATE_S > 2 * ssh_access.RENEW_BEFORE_S


@pytest.mark.parametrize("bits", [128, 256])
def test_packets_are_sealed_as_asyncssh_seals_them(bits: int) -> None:
    """In any mixture of short and long way; what was changed on its way is not opened, and costs no packet."""
    key, nonce = os.urandom(bits // 8), os.urandom(4) + b"\xff" * 8
    made = [get_encryption(f"aes{bits}-gcm@openssh.com".encode(), key, nonce) for _ in range(3)]
    sender, receiver, theirs = Gcm.instead_of(made[0]), Gcm.instead_of(made[1]), made[2]
    assert isinstance(sender, Gcm)
    assert isinstance(receiver, Gcm)
    for size in (*range(40), 40_000, 1, 1):
        payload = os.urandom(size)
        wire = sender.seal(payload[:9], payload[9:])
        packet = receiver.opened(wire)
        assert packet is not None
        assert packet[1 : -packet[0]] == payload
        assert packet[0] >= 4
        assert len(packet) % 16 == 0
        assert theirs.decrypt_packet(0, wire[:16], wire[16:-16], 4, wire[-16:]) == packet
        changed = (bytes([*wire[:at], wire[at] ^ 1, *wire[at + 1 :]]) for at in (0, 4, len(wire) - 17, len(wire) - 1))
        for bad in (wire[:-1], wire + b"x", *changed, b"", bytes(4), bytes(20)):
            assert receiver.opened(bad) is None
        receiver.passed()
        header = len(packet).to_bytes(4, "big")
        long_way = b"".join(sender.encrypt_packet(0, header, packet))
        assert theirs.decrypt_packet(0, long_way[:16], long_way[16:-16], 4, long_way[-16:]) == packet
        assert receiver.decrypt_packet(0, long_way[:16], long_way[16:-16], 4, long_way[-16:]) == packet
    assert Gcm.instead_of(None) is None


def test_ssh_options_come_before_the_id() -> None:
    """Those with a value take the next word along."""
    assert split(("-L", "1:h:2", "-vN", "-oA=b", "i1", "-l", "ls")) == (
        ["-L", "1:h:2", "-vN", "-oA=b"],
        "i1",
        ["-l", "ls"],
    )
    assert split(("-NL", "1:h:2", "--", "i1")) == (["-NL", "1:h:2"], "i1", [])
    with pytest.raises(SandptyError):
        split(("-p", "22"))


def test_the_include_line_is_written_once_at_the_top(tmp_path: Path) -> None:
    """Through a symbolic link, with what was there before; what cannot be quoted is refused."""
    real, link, what = tmp_path / "real", tmp_path / "link", tmp_path / "a b%" / "config"
    real.write_bytes(b"# \xff\nHost x\n")
    link.symlink_to(real)
    assert ssh_access.include(link, what)
    assert not ssh_access.include(link, what)
    assert link.is_symlink()
    lines = real.read_bytes().splitlines()
    assert lines == [f'Include "{tmp_path}/a b%%/config"'.encode(), b"# \xff", b"Host x"]
    assert real.stat().st_mode & 0o777 == 0o600
    assert ssh_access.include(tmp_path / "new" / "config", what)
    for bad in ('a"b', "a\nb", "a\\b"):
        with pytest.raises(SandptyError):
            ssh_access.quoted(bad)


def test_the_table_of_roles_knows_all_that_asyncssh_understands() -> None:
    """So that a new version's new requests are thought about; what is not known is nobody's."""
    for kind, of, suffix in (
        (Kind.CHANNEL, asyncssh.SSHServerConnection, "_open"),
        (Kind.GLOBAL_REQUEST, asyncssh.SSHServerConnection, "_global_request"),
        (Kind.SESSION_REQUEST, asyncssh.SSHServerChannel, "_request"),
    ):
        understood = {name for name in dir(of) if name.startswith("_process_") and name.endswith(suffix)}
        known = {f"_process_{map_handler_name(name)}{suffix}" for name in roles.names(kind)}
        assert understood - known - {"_process_channel_open", "_process_global_request", "_process_request"} == set()
        assert not roles.may(Role.WRITER, kind, "x")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_operator_says_whether_agents_are_taken(tmp_path: Path, allowed: bool) -> None:
    """`sandpty serve --no-ssh-agents`."""
    settings = Settings(DataDir(tmp_path), "key", ssh_agents=allowed)
    client = Client(Mock(context=Mock(settings=settings)))
    client.connection, client.principal = Mock(), Mock()
    client.begin_auth("i1")
    channel = Mock(spec=Channel)
    client.session_requested().connection_made(channel)
    assert channel.agent_requested() == allowed


def test_a_viewer_may_only_what_shows_something() -> None:
    """Everything that reaches into a sandbox, or lets it reach out, is a writer's."""
    viewers = {
        (kind, name)
        for kind in Kind
        for name in roles.names(kind)
        if roles.may(Role.VIEWER, kind, name) and "keepalive" not in name and "hostkeys" not in name
    }
    assert viewers == {
        (Kind.CHANNEL, "session"),
        *((Kind.SESSION_REQUEST, name) for name in ("pty-req", "env", "shell", "exec", "subsystem")),
    }
    for deed in roles.names(Kind.DEED):
        roles.check(Role.WRITER, deed)
        with pytest.raises(SandptyError):
            roles.check(Role.VIEWER, deed)
    nobody = {name for kind in Kind for name in roles.names(kind) if not roles.may(Role.WRITER, kind, name)}
    assert nobody == {"tun@openssh.com", "x11-req"}
