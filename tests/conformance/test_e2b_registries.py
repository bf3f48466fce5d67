"""Templates from images of registries that ask who wants them: by a password, by a key of Google's or AWS's."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import BuildException, Sandbox, Template

from tests.conformance.aws_stand_in import KEY_ID, aws_giving
from tests.conformance.conftest import VENDOR_JS
from tests.oci_images import Image, tiny_layer
from tests.registry_fixture import Registry, running_registry
from tests.server_fixture import RunningServer, running_server

PASSWORD = "open sesame"
ACCOUNT = {"type": "service_account"}
# The password of each, by bcrypt: PASSWORD, and ACCOUNT as JSON.
HTPASSWD = """\
ali:$2b$04$I2hz4WRjuXqUA4L7UHYLyeJ4aWa7h.GZ81bYOEXA0HZh/GGj3UpFm
AWS:$2b$04$I2hz4WRjuXqUA4L7UHYLyeJ4aWa7h.GZ81bYOEXA0HZh/GGj3UpFm
_json_key:$2b$04$I2hz4WRjuXqUA4L7UHYLyeiJLHJvISjFP.LsDhBFDSwXbLb6p.ZuC
"""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry in which nobody finds anything without a password."""
    passwords = tmp_path_factory.mktemp("registry") / "htpasswd"
    passwords.write_text(HTPASSWD)
    with running_registry({"htpasswd": {"realm": "r", "path": str(passwords)}}) as registry:
        registry.push(Image([tiny_layer()], {"Env": ["PATH=/bin"]}), "team/tool", credentials=f"ali:{PASSWORD}")
        yield registry


@pytest.fixture(scope="module")
def server(private: Registry) -> Iterator[RunningServer]:
    """One of its own, which asks a stand-in of AWS."""
    with pytest.MonkeyPatch.context() as patch, aws_giving(PASSWORD) as url:
        patch.setenv("AWS_ENDPOINT_URL_ECR", url)
        with running_server("--pool", "0") as running:
            conf = f'[[registry]]\nlocation = "{private.host}"\ninsecure = true\n'
            (running.data_dir / "registries.conf").write_text(conf)
            yield running


def test_who_may_have_an_image_gets_a_template_of_it(private: Registry, tmp_path: Path) -> None:
    """And who may not is told so, as is whose keys AWS does not know."""
    image = f"{private.host}/team/tool"
    (tmp_path / "account.json").write_text(json.dumps(ACCOUNT))
    aws = {"secret_access_key": "s", "region": "eu-central-1"}
    for number, base in enumerate(
        (
            Template().from_image(image, username="ali", password=PASSWORD),
            Template(file_context_path=tmp_path).from_gcp_registry(image, "account.json"),
            Template().from_aws_registry(image, access_key_id=KEY_ID, **aws),
        )
    ):
        Template.build(base.run_cmd(f"echo {number} > built"), f"private-{number}")
        with Sandbox.create(f"private-{number}") as sandbox:
            assert sandbox.commands.run("cat built").stdout == f"{number}\n"
    for base, words in (
        (Template().from_image(image, username="ali", password="wrong"), "credentials"),
        (Template().from_aws_registry(image, access_key_id="AKIDOTHER", **aws), "UnrecognizedClientException: The to"),
        (Template().from_aws_registry(image, access_key_id=KEY_ID, secret_access_key="s", region="a/b"), "not a regio"),
    ):
        with pytest.raises(BuildException, match=words):
            Template.build(base, "private-not")


def test_the_javascript_sdk_says_who_asks(private: Registry) -> None:
    """By the keys of two clouds."""
    script = Path(__file__).parent / "js" / "registries.mjs"
    with tempfile.TemporaryDirectory(prefix="checks-", dir=VENDOR_JS) as directory:
        copied = Path(directory) / script.name  # Node looks for the SDK upwards from the script
        copied.write_bytes(script.read_bytes())
        (Path(directory) / "account.json").write_text(json.dumps(ACCOUNT))
        argv = ["node", str(copied), f"{private.host}/team/tool", KEY_ID]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
