"""Where the server is and with which key, when the program does not say."""

from __future__ import annotations

import os
from urllib.parse import SplitResult, urlsplit

from sandpty.wire.errors import SandptyError

DEFAULT_URL = "http://127.0.0.1:3980"
LOCAL_HOST = "127.0.0.1"  # where forwarded ports listen


def server_from_environment(url: str | None, api_key: str | None) -> tuple[str, str]:
    """`url` and `api_key`, else SANDPTY_URL (or this machine's default port) and SANDPTY_API_KEY.

    Raises unauthenticated when there is no key.
    """
    key = api_key or os.environ.get("SANDPTY_API_KEY", "")
    if not key:
        raise SandptyError("unauthenticated", "no API key: give api_key=, or set SANDPTY_API_KEY")
    return url or os.environ.get("SANDPTY_URL") or DEFAULT_URL, key


def is_local(url: str) -> bool:
    """Whether it is this machine's own loopback, which no proxy can reach."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def proxy_of(url: str) -> SplitResult | None:
    """What this machine's settings (HTTPS_PROXY and the like) put between us and the server.

    Raises bad_argument for a proxy of a kind that we do not speak with.
    """
    if is_local(url):
        return None
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if found.scheme not in ("http", "https"):
        text = f"the environment names a proxy by {found.scheme}, {found.hostname}, and only HTTP proxies can be used: "
        raise SandptyError("bad_argument", f"{text}name one in {parts.scheme.upper()}_PROXY, or the server in NO_PROXY")
    return found
