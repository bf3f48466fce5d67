"""AWS's registry (ECR): its password for a while, in exchange for an account's keys.

One request, GetAuthorizationToken, signed as AWS wants it (Signature Version 4, AWS General Reference, "Signing AWS API
requests"). The endpoint follows from the region; `AWS_ENDPOINT_URL_ECR`, which AWS's own tools know, names another one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp
import msgspec

from sandpty import config
from sandpty.server.builds.recipe import AwsKeys
from sandpty.wire.errors import SandptyError

ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL_ECR"
_TARGET = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
_KIND = "application/x-amz-json-1.1"
_BODY = b"{}"
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}")
_KEY_ID = re.compile(r"[A-Za-z0-9_]{1,128}")  # it stands in a header


class _Token(msgspec.Struct, rename="camel"):
    authorization_token: str


class _Answer(msgspec.Struct, rename="camel"):
    authorization_data: list[_Token]


class _Refusal(msgspec.Struct):
    kind: str = msgspec.field(name="__type", default="")
    message: str = ""


async def login(keys: AwsKeys) -> tuple[str, str]:
    """A name and a password for the registry. Raises SandptyError bad_argument, registry_denied, registry_failed."""
    if not _REGION.fullmatch(keys.region) or not _KEY_ID.fullmatch(keys.access_key_id):
        raise SandptyError("bad_argument", f"not a region of AWS, or not the id of a key: {keys.region[:40]!r}")
    end = "amazonaws.com.cn" if keys.region.startswith("cn-") else "amazonaws.com"
    url = os.environ.get(ENDPOINT_VARIABLE) or f"https://api.ecr.{keys.region}.{end}"
    headers = signed(keys, urlsplit(url).netloc, datetime.now(UTC))
    timeout = aiohttp.ClientTimeout(total=config.ECR_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(trust_env=True, timeout=timeout) as session,
            session.post(f"{url.rstrip('/')}/", data=_BODY, headers=headers, allow_redirects=False) as answer,
        ):
            said = await answer.content.read(config.ECR_ANSWER_BYTES)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise SandptyError("registry_failed", f"AWS cannot be asked for a password of {keys.region}") from error
    if answer.status != 200:
        raise SandptyError(
            "registry_denied", f"AWS gives no password for its registry: {_refusal(said, answer.status)}"
        )
    try:
        token = msgspec.json.decode(said, type=_Answer).authorization_data[0].authorization_token
        username, colon, password = base64.b64decode(token).decode().partition(":")
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        raise SandptyError("registry_failed", "AWS's answer holds no password") from error
    return username, password if colon else ""


def _refusal(said: bytes, status: int) -> str:
    try:
        refusal = msgspec.json.decode(said, type=_Refusal)
    except msgspec.MsgspecError:
        refusal = _Refusal()
    words = f"{refusal.kind.rpartition('#')[2]}: {refusal.message}" if refusal.kind else f"status {status}"
    return words[: config.ECR_REFUSAL_CHARACTERS]


def signed(keys: AwsKeys, host: str, at: datetime) -> dict[str, str]:
    """The headers of the request, the signature among them."""
    time, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    headers = {"content-type": _KIND, "host": host, "x-amz-date": time, "x-amz-target": _TARGET}
    names = ";".join(headers)  # in the order of the alphabet
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"POST\n/\n\n{lines}\n{names}\n{_sha256(_BODY)}"
    scope = f"{day}/{keys.region}/ecr/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{_sha256(request.encode())}"
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"Credential={keys.access_key_id}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    return {**headers, "authorization": f"AWS4-HMAC-SHA256 {credential}"}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
