"""E2B's and Hyperbrowser's Python SDKs and network policies.

Run as a program in the host's namespace of tests/component/fake_internet.py. Says `done` when every promise held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from e2b import ALL_TRAFFIC, AsyncSandbox, Sandbox, Secret
from e2b.exceptions import SandboxException, SecretException
from e2b.sandbox.commands.command_handle import CommandExitException
from hyperbrowser import Hyperbrowser
from hyperbrowser.models import CreateSandboxParams

HIDDEN = "<hidden>"
SITE, EVIL, RESOLVER = "203.0.113.10", "203.0.113.20", "203.0.113.53"


def raises(message: str, call: Callable[[], object]) -> SandboxException:
    """The SDK's error, whose text holds `message`."""
    with pytest.raises(SandboxException) as raised:
        call()
    assert message in str(raised.value)
    return raised.value


def fetched(sandbox: Sandbox, url: str) -> str:
    """What curl says, or `exit N`."""
    try:
        return sandbox.commands.run(f"curl -sk --connect-timeout 3 --max-time 8 {url}").stdout
    except CommandExitException as error:
        return f"exit {error.exit_code}"


def addresses() -> None:
    """The cases of E2B's own tests, with addresses of ours."""
    with Sandbox.create(network={"deny_out": [ALL_TRAFFIC], "allow_out": [SITE]}) as sandbox:
        assert "web" in fetched(sandbox, f"https://{SITE}")
        assert fetched(sandbox, f"https://{EVIL}").startswith("exit")
    with Sandbox.create(network={"deny_out": [EVIL]}) as sandbox:
        assert "web" in fetched(sandbox, f"https://{SITE}")
        assert fetched(sandbox, f"https://{EVIL}").startswith("exit")
    with Sandbox.create(network={"deny_out": lambda ctx: [ctx.all_traffic], "allow_out": [SITE, EVIL]}) as sandbox:
        assert all("web" in fetched(sandbox, f"http://{each}") for each in (SITE, EVIL))
    with Sandbox.create(allow_internet_access=False) as sandbox:
        assert fetched(sandbox, f"http://{SITE}").startswith("exit")
        assert sandbox.get_info().allow_internet_access is False


def names() -> None:
    """Domains and wildcards; info shows what was asked for."""
    network = {"deny_out": [ALL_TRAFFIC], "allow_out": ["good.test", "*.wild.test"], "dns_servers": [RESOLVER]}
    with Sandbox.create(network=network) as sandbox:
        assert fetched(sandbox, "http://good.test") == "web good.test"
        assert fetched(sandbox, "https://a.wild.test") == "web a.wild.test"
        for url in ("http://evil.test", f"http://{EVIL}", f"https://{SITE}", f"-H 'Host: evil.test' http://{SITE}"):
            assert fetched(sandbox, url).startswith("exit"), url
        shown = sandbox.get_info().network
        assert shown is not None
        assert shown["allow_out"] == network["allow_out"]
        assert shown["deny_out"] == [ALL_TRAFFIC]
        assert shown["dns_servers"] == [RESOLVER]


def updates() -> None:
    """update_network replaces everything, on the instance and by id."""
    with Sandbox.create() as sandbox:
        assert "web" in fetched(sandbox, f"http://{EVIL}")
        sandbox.update_network({"deny_out": [ALL_TRAFFIC], "allow_out": ["good.test"]})
        assert fetched(sandbox, "http://good.test") == "web good.test"
        assert fetched(sandbox, f"http://{EVIL}").startswith("exit")
        Sandbox.update_network(sandbox.sandbox_id, {"allow_internet_access": False})
        assert fetched(sandbox, "http://good.test").startswith("exit")
        assert sandbox.get_info().allow_internet_access is False
        sandbox.update_network({})
        assert "web" in fetched(sandbox, f"http://{EVIL}")
        raises("invalid denied CIDR", lambda: sandbox.update_network({"deny_out": ["evil.test"]}))
        raises("host:port", lambda: sandbox.update_network({"egress_proxy": {"address": "proxy.test"}}))


def refusals() -> None:
    """What cannot be held is an error with E2B's words and status."""
    assert raises("'ALL_TRAFFIC'", lambda: Sandbox.create(network={"allow_out": ["good.test"]})).status_code == 400
    raises("not a valid CIDR", lambda: Sandbox.create(network={"allow_out": ["a b"], "deny_out": [ALL_TRAFFIC]}))
    for headers in ({"X-A": "b\r\nX-C: d"}, {"X A": "b"}, {"Content-Length": "0"}):
        network = {"rules": {"good.test": [{"transform": {"headers": headers}}]}}
        assert raises("good.test", lambda: Sandbox.create(network=network)).status_code == 400  # noqa: B023
    proxy = {"address": "127.0.0.1:1080"}
    assert raises("internal range", lambda: Sandbox.create(network={"egress_proxy": proxy})).status_code == 400
    tokens = {"aws": {"audience": "a", "token_type": "JWT-SVID"}}
    assert raises("identity provider", lambda: Sandbox.create(iam={"tokens": tokens})).status_code == 501
    transform = {"transform": lambda ctx: {"headers": {"Authorization": f"Bearer {ctx.iam.tokens['aws']}"}}}
    with Sandbox.create(timeout=60) as sandbox:
        update = {"rules": {"good.test": [transform]}}
        assert raises("identity provider", lambda: sandbox.update_network(update)).status_code == 501


def transforms() -> None:
    """Headers added to what every usual client asks over HTTPS, in the guest's own trust; shown without values."""
    rules = {"good.test": [{"transform": {"headers": {"X-Key": "t0p"}}}, {"transform": {"headers": {"X-Two": "2"}}}]}
    network = {"rules": rules, "allow_out": lambda ctx: list(ctx.rules), "deny_out": [ALL_TRAFFIC]}
    with Sandbox.create(network=network) as sandbox:
        curl = "curl -s --max-time 20"
        for command in (f"{curl} https://good.test/head", f"{curl} http://good.test/head"):
            said = sandbox.commands.run(command).stdout
            assert "X-Key: t0p" in said, said
            assert "X-Two: 2" in said, said
        python = "import urllib.request as u; print(u.urlopen('https://good.test/head').read().decode())"
        assert "X-Key: t0p" in sandbox.commands.run(f'python3 -c "{python}"').stdout
        variables = sandbox.commands.run("cat $NODE_EXTRA_CA_CERTS; test $SSL_CERT_FILE = $REQUESTS_CA_BUNDLE").stdout
        assert "BEGIN CERTIFICATE" in variables
        shown = sandbox.get_info().network
        assert shown is not None
        assert shown["rules"] == {"good.test": [{"transform": {"headers": {"X-Key": HIDDEN, "X-Two": HIDDEN}}}]}
        fork = sandbox.fork()[0]
        assert "X-Key: t0p" in fork.commands.run(f"{curl} https://good.test/head").stdout
        fork.kill()
        sandbox.update_network({})
        assert "X-Key" not in sandbox.commands.run(f"{curl} http://good.test/head").stdout
        sandbox.update_network({"rules": {"*.wild.test": [{"transform": lambda _: {"headers": {"X-Late": "yes"}}}]}})
        assert "X-Late: yes" in sandbox.commands.run(f"{curl} https://a.wild.test/head").stdout


def stored_secrets() -> None:
    """A placeholder is the secret's current value on the way out; nothing reads a value back."""
    made = Secret.create("Api-Key", "one", metadata={"team": "a"})
    assert (made.name, made.version, made.metadata) == ("api-key", 1, {"team": "a"})
    headers = {"X-Key": f"Bearer {Secret.fill('api-key')}"}
    with Sandbox.create(network={"rules": {"good.test": [{"transform": {"headers": headers}}]}}) as sandbox:
        head = "http://good.test/head"
        assert "X-Key: Bearer one" in fetched(sandbox, head)
        assert Secret.update("api-key", "two").version == 2
        assert "X-Key: Bearer two" in fetched(sandbox, head)
        assert Secret.get_info(made.secret_id).metadata == {"team": "a"}
        assert [each.name for each in Secret.list(limit=1).next_items()] == ["api-key"]
        assert Secret.destroy("api-key")
        assert "two" not in fetched(sandbox, head)
    assert not Secret.exists("api-key")
    assert not Secret.destroy("api-key")
    unknown = {"good.test": [{"transform": {"headers": {"X-Key": Secret.fill("nobody")}}}]}
    assert raises("no secret 'nobody'", lambda: Sandbox.create(network={"rules": unknown})).status_code == 400
    with pytest.raises(SecretException):
        Secret.create("sec_mine", "x")


def forks() -> None:
    """A fork has its source's policy; another key's sandbox is not there."""
    with Sandbox.create(network={"deny_out": [EVIL]}) as sandbox:
        fork = sandbox.fork()[0]
        assert fetched(fork, f"http://{EVIL}").startswith("exit")
        assert "web" in fetched(fork, f"http://{SITE}")
        fork.kill()
    raises("", lambda: Sandbox.update_network("i00000000000000000000", {}))


def hyperbrowser() -> None:
    """Hyperbrowser's SDK: the same policies; an update changes what it names and leaves the rest."""
    client = Hyperbrowser()
    params = {"image_name": "base", "allow_internet_access": False, "allow_out": ["good.test"]}
    sandbox = client.sandboxes.create(CreateSandboxParams(**params))
    try:
        assert sandbox.network.allow_internet_access is False
        assert sandbox.network.allow_out == ["good.test"]
        assert "web good.test" in sandbox.exec("curl -s http://good.test").stdout
        assert sandbox.exec(f"curl -s --max-time 8 http://{EVIL}").exit_code != 0
        sandbox.update_network({"allow_out": [EVIL]})
        assert sandbox.network.allow_internet_access is False
        assert "web" in sandbox.exec(f"curl -s http://{EVIL}").stdout
        assert sandbox.exec("curl -s --max-time 8 http://good.test").exit_code != 0
        sandbox.clear_network()
        assert "web" in sandbox.exec(f"curl -s http://{SITE}").stdout
    finally:
        sandbox.stop()


async def asynchronous() -> None:
    """The same through the asynchronous SDK."""
    async with await AsyncSandbox.create(network={"deny_out": [ALL_TRAFFIC], "allow_out": ["good.test"]}) as sandbox:
        assert (await sandbox.commands.run("curl -s http://good.test")).stdout == "web good.test"
        await sandbox.update_network({"deny_out": [SITE]})
        assert (await sandbox.commands.run(f"curl -s --max-time 8 http://{SITE} || echo cut")).stdout == "cut\n"
        assert "web" in (await sandbox.commands.run(f"curl -s http://{EVIL}")).stdout


if __name__ == "__main__":
    for check in (addresses, names, updates, refusals, transforms, stored_secrets, forks, hyperbrowser):
        check()
    asyncio.run(asynchronous())
    print("done")
