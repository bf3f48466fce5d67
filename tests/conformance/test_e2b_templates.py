"""Templates built by E2B's unmodified Python SDK, from `Template()` to a sandbox that was made from one."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from e2b import (
    AsyncSandbox,
    AsyncTemplate,
    BuildException,
    Sandbox,
    SandboxException,
    Template,
    wait_for_file,
    wait_for_port,
    wait_for_process,
    wait_for_url,
)

from tests.conformance.build_files import REGISTRY_PORT, write_context, write_deb, write_registry, write_wheel
from tests.conformance.conftest import VENDOR_JS
from tests.waiting import until_sync

WAIT_S = 30.0


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is copied."""
    return write_context(tmp_path_factory.mktemp("context"))


class Said:
    """Everything that a build's logger was told."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def __call__(self, entry: Any) -> None:
        self.entries.append(entry)

    @property
    def text(self) -> str:
        return "\n".join(entry.message for entry in self.entries)


def output(sandbox: Sandbox, line: str) -> list[str]:
    """The lines that a command prints."""
    return sandbox.commands.run(line).stdout.splitlines()


def of_every_kind(context: Path) -> Any:
    """Steps of every kind that the SDK knows."""
    return (
        Template(file_context_path=context)
        .from_base_image()
        .set_envs({"GREETING": "hello", "TWICE": "$GREETING $GREETING", "PATH": "/opt/tools:$PATH"})
        .copy("app", "app")
        .copy(["one.txt", "two.txt"], "/srv/texts/", user="root", mode=0o640)
        .copy("*.txt", "globbed")
        .copy_items([{"src": "one.txt", "dest": "/srv/renamed", "mode": 0o600}])
        .make_dir(["/home/user/new/deep", "/home/user/other"], mode=0o750)
        .make_symlink("/srv/renamed", "shortcut")
        .rename("app/run.sh", "app/start.sh")
        .remove("app/data", recursive=True, force=True)
        .run_cmd(["echo $TWICE > said", "id -un >> said", "pwd >> said"])
        .run_cmd("install -D -m 755 app/start.sh /opt/tools/greet", user="root")
        .run_cmd("greet >> said")
        .run_cmd("git init -q origin && cd origin && git -c user.name=t -c user.email=t@t commit -q --allow-empty -m x")
        .git_clone("file:///home/user/origin", "cloned")
        .set_workdir("/app")
        .run_cmd("touch mine")
        .set_user("worker")
        .set_workdir("below")
        .run_cmd("id -un > who")
    )


EXPECTED = """\
worker
hello hello user /home/user ran
main.py
750 user
640 root one
600 user one
cloned/.git
globbed/one.txt globbed/two.txt
gone
"""


def test_every_kind_of_step_does_what_it_says(context: Path) -> None:
    """One template with all of them: what its sandboxes hold and start with; the second build is from the cache."""
    first, second = Said(), Said()
    built = Template.build(of_every_kind(context), "every-step", on_build_logs=first)
    assert built.tags == ["default"]
    assert Template.exists("every-step")
    assert not Template.exists("every-step-not")
    sandbox = Sandbox.create("every-step")
    try:
        line = (
            "cat who; cd /home/user; echo $(cat said); readlink app/link; stat -c '%a %U' new/deep;"
            "echo $(sudo stat -c '%a %U' /srv/texts/one.txt) $(sudo cat /srv/texts/one.txt);"
            "echo $(sudo stat -c '%a %U' /srv/renamed) $(sudo cat shortcut); echo cloned/.git; echo globbed/*;"
            "[ -e app/data ] || echo gone"
        )
        assert sandbox.commands.run(line, user="user", cwd="/app/below").stdout == EXPECTED
        assert output(sandbox, "pwd; id -un; echo $TWICE") == ["/app/below", "worker", "hello hello"]
    finally:
        sandbox.kill()
    assert "Uploaded 'app'" in first.text
    Template.build(of_every_kind(context), "every-step", on_build_logs=second)
    steps = [line for line in second.text.splitlines() if " RUN " in line or " COPY " in line]
    assert len(steps) > 12
    assert all(line.startswith("CACHED") for line in steps), second.text
    assert "Skipping upload of 'app', already cached" in second.text


def test_only_what_comes_after_a_change_is_built_anew(context: Path) -> None:
    """A changed file, and a step without the cache: what was before them is from the cache."""

    def template(*, skip: bool = False) -> Any:
        begun = Template(file_context_path=context).from_base_image().run_cmd("date +%s%N > first")
        return (begun.skip_cache() if skip else begun).copy("two.txt", "two.txt").run_cmd("date +%s%N > last")

    def stamps() -> list[str]:
        with Sandbox.create("stamps") as sandbox:
            return output(sandbox, "cat first last two.txt")

    Template.build(template(), "stamps")
    before = stamps()
    (context / "two.txt").write_text("two, changed\n")
    Template.build(template(), "stamps")
    changed = stamps()
    assert (before[0], changed[2]) == (changed[0], "two, changed")
    assert before[1] != changed[1]
    Template.build(template(skip=True), "stamps")
    skipped = stamps()
    assert changed[0] == skipped[0]
    assert changed[1] != skipped[1]
    Template.build(template(), "stamps", skip_cache=True)
    assert stamps()[0] != before[0]


def test_a_failing_step_tells_its_command_its_exit_code_and_its_last_words() -> None:
    """In the exception, whose traceback shows the line of the step, and in the log; what was before is kept."""
    said = Said()
    template = Template().from_base_image().run_cmd("true").run_cmd("echo good; echo words >&2; exit 7")
    with pytest.raises(BuildException) as caught:
        Template.build(template, "fails", on_build_logs=said)
    assert all(part in str(caught.value) for part in ("step 2 of 2", "echo good;", "exit code 7", "good\nwords"))
    assert any(".run_cmd(" in (frame.line or "") for frame in traceback.extract_tb(caught.value.__traceback__))
    assert any(entry.level == "error" and "exit code 7" in entry.message for entry in said.entries[:-1])
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create("fails")
    for begun, what in (
        (Template().from_template("there-is-none"), "does not exist"),
        (Template().from_base_image().set_user("; exit 1"), "not the name of a user"),
        (Template().from_base_image().set_workdir("/etc/passwd"), "exit code"),
    ):
        with pytest.raises(BuildException, match=what):
            Template.build(begun, "fails")


def test_a_start_command_runs_from_boot_and_a_create_waits_until_it_is_ready() -> None:
    """By port, and again after a pause without memory; it is in the list, with the template's user and directory."""
    template = (
        Template()
        .from_base_image()
        .set_envs({"WORD": "served"})
        .set_workdir("/srv/www")
        .run_cmd("echo $WORD > index.html")
        .set_start_cmd("sleep 0.3; echo $WORD > /tmp/env; exec python3 -m http.server 8000", wait_for_port(8000))
    )
    said = Said()
    Template.build(template, "serves", on_build_logs=said, cpu_count=1, memory_mb=512)
    assert "start command: sleep 0.3" in said.text
    assert "ready" in said.text
    sandbox = Sandbox.create("serves")
    try:
        assert output(sandbox, "curl -s localhost:8000; cat /tmp/env") == ["served", "served"]
        info = sandbox.get_info()
        assert (info.cpu_count, info.memory_mb, info.name) == (1, 512, "serves")
        found = next(each for each in sandbox.commands.list() if "http.server" in each.args[-1])
        assert (found.cmd, found.args[:2], found.cwd) == ("/bin/bash", ["-l", "-c"], "/srv/www")
        sandbox.pause(keep_memory=False)
        sandbox.connect()
        assert output(sandbox, "curl -s localhost:8000") == ["served"]
    finally:
        sandbox.kill()


def test_ready_helpers_and_start_commands_that_fail() -> None:
    """File, process and URL; a start command that ends badly fails the build at once, with its words."""
    start = "touch /tmp/there; cd /tmp; exec python3 -m http.server 8001"
    for number, ready in enumerate((wait_for_file("/tmp/there"), wait_for_process("python3"))):
        Template.build(Template().from_base_image().set_start_cmd(start, ready), f"ready-{number}")
        with Sandbox.create(f"ready-{number}") as sandbox:
            assert output(sandbox, "ls /tmp/there; pgrep -c python3") == ["/tmp/there", "1"]
    Template.build(Template().from_base_image().set_start_cmd(start, wait_for_url("http://localhost:8001/")), "url")
    bad = "echo no such thing; exit 3"
    with pytest.raises(BuildException, match=r"(?s)start command ended with exit code 3.*no such thing"):
        Template.build(Template().from_base_image().set_start_cmd(bad, wait_for_port(1)), "bad-start")


def test_tags_name_builds() -> None:
    """`name:tag` builds, is made from, moved, listed and removed; the bare name is the tag `default`."""
    one = Template.build(Template().from_base_image().run_cmd("echo 1 > v"), "tagged:v1", tags=["stable"])
    assert one.tags == ["v1", "stable"]
    with pytest.raises(SandboxException):
        Sandbox.create("tagged")
    two = Template.build(Template().from_base_image().run_cmd("echo 2 > v"), "tagged", tags=["default", "v2"])
    assert two.template_id == one.template_id

    def version(reference: str) -> list[str]:
        with Sandbox.create(reference) as sandbox:
            return output(sandbox, "cat v")

    assert (version("tagged"), version("tagged:v1"), version(f"{one.template_id}:v1")) == (["2"], ["1"], ["1"])
    moved = Template.assign_tags("tagged:v1", ["production", "stable"])
    assert moved.build_id == one.build_id
    tags = {tag.tag: tag.build_id for tag in Template.get_tags("tagged")}
    assert tags == dict.fromkeys(("v1", "stable", "production"), one.build_id) | dict.fromkeys(
        ("default", "v2"), two.build_id
    )
    Template.remove_tags("tagged", ["production", "stable"])
    assert {tag.tag for tag in Template.get_tags("tagged")} == {"v1", "v2", "default"}
    for wrong in (lambda: Template.assign_tags("tagged:none", "x"), lambda: Template.remove_tags("tagged", "none")):
        with pytest.raises(Exception, match=r"404|not found|no tag"):
            wrong()


def test_a_build_in_the_background_is_followed_by_offset() -> None:
    """Its status and its log, from where the last look ended; nothing twice, nothing missing."""
    lines = "for i in $(seq 250); do echo line $i; done; sleep 0.5"
    info = Template.build_in_background(Template().from_base_image().run_cmd(lines), "background")
    seen: list[str] = []
    states = []
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        status = Template.get_build_status(info, logs_offset=len(seen))
        states.append(status.status.value)
        seen += [entry.message for entry in status.log_entries]
        if status.status.value in ("ready", "error") and not status.log_entries:
            break
    assert (states[0], states[-1]) == ("building", "ready")
    assert [line.split()[-1] for line in seen if "] line " in line] == [str(number) for number in range(1, 251)]


def test_packages_are_installed_by_apt_and_pip(tmp_path: Path) -> None:
    """aptInstall and pipInstall, from a repository and a wheel of one's own."""
    write_deb(tmp_path)
    wheel = write_wheel(tmp_path)
    template = (
        Template(file_context_path=tmp_path)
        .from_template("code-interpreter-v1")
        .copy("repository", "/srv/repository", user="root")
        .copy(wheel, "/srv/")
        .run_cmd(
            "rm -rf /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] file:/srv/repository ./' >/etc/apt/sources.list",
            user="root",
        )
        .apt_install("sandpty-hello", no_install_recommends=True)
        .pip_install(f"/srv/{wheel}")
    )
    Template.build(template, "packaged")
    with Sandbox.create("packaged") as sandbox:
        line = "sandpty-hello; python3 -c 'import sandpty_hello; print(sandpty_hello.GREETING)'"
        assert output(sandbox, line) == ["hello from a package", "hello from a wheel"]


def test_packages_are_installed_by_npm_and_bun(tmp_path: Path) -> None:
    """The real ones, from a registry that listens in the build's sandbox: for the project, for development, for all."""
    registry = write_registry(tmp_path, "left", "right", "tool")
    bun = next((VENDOR_JS / "node_modules" / "@oven").glob("bun-linux-*/bin/bun"))  # scripts/setup --test installs it
    shutil.copy(bun, registry)
    template = (
        Template(file_context_path=tmp_path)
        .from_template("host-usr")  # npm is there, because the tests need it
        .copy("registry", "/srv/registry", user="root", gzip=False)
        .run_cmd("cd /srv/registry; install -D -t /etc/profile.d serve.sh; ln -s $PWD/bun /usr/bin", user="root")
        .set_envs({"npm_config_registry": f"http://127.0.0.1:{REGISTRY_PORT}/", "npm_config_audit": "false"})
        .npm_install("left")
        .npm_install("tool", g=True)
        .set_workdir("/srv/bunned")
        .bun_install(["left", "right"], dev=True)
        .bun_install("right", g=True)
    )
    Template.build(template, "javascript")
    with Sandbox.create("javascript") as sandbox:
        programs = "node_modules/.bin/left /home/user/node_modules/.bin/left tool"
        line = f"cat package.json; echo; for each in {programs}; do $each; done; sudo /root/.bun/bin/right"
        *found, left, of_npm, tool, everywhere = output(sandbox, line)
        assert json.loads("".join(found))["devDependencies"] == {"left": "^1.0.0", "right": "^1.0.0"}
        assert (left, of_npm, tool) == ("hello from left", "hello from left", "hello from tool")
        assert everywhere == "hello from right"


def test_a_dockerfile_is_built(context: Path) -> None:
    """As the SDK reads it: FROM, ENV, COPY, RUN, WORKDIR, USER."""
    dockerfile = """FROM e2bdev/base
ENV KIND=docker
WORKDIR /work
COPY one.txt ./copied.txt
RUN echo $KIND > kind && id -un > who
USER user
"""
    template = Template(file_context_path=context).from_dockerfile(dockerfile)
    Template.build(template, "dockerfile")
    with Sandbox.create("dockerfile") as sandbox:
        assert output(sandbox, "pwd; cat copied.txt kind who; id -un") == ["/work", "one", "docker", "root", "user"]


def test_many_steps_stand_on_each_other_and_so_do_snapshots_of_their_sandboxes() -> None:
    """Forty steps that write, link and remove; then a snapshot of a sandbox of it, and a template from that one."""
    template = (
        Template().from_base_image().run_cmd("mkdir d; echo x > d/kept; ln d/kept hard; sudo setcap -r /bin/true || :")
    )
    for number in range(20):
        template = template.run_cmd(f"echo {number} > f{number}; rm -rf f{number - 2} d{number - 1}; mkdir d{number}")
    template = template.run_cmd("rm -rf d; mkdir d; touch d/new")
    Template.build(template, "many")
    with Sandbox.create("many") as sandbox:
        assert output(sandbox, "echo *; cat d/* hard") == ["d d19 f18 f19 hard", "x"]
        sandbox.commands.run("echo more > more; rm f18")
        snapshot = sandbox.create_snapshot()
    Template.build(Template().from_template("many").run_cmd("echo above > above"), "above")
    Template.build(Template().from_template(snapshot.snapshot_id).run_cmd("rm hard"), "of-snapshot")
    for reference, expected in (
        (snapshot.snapshot_id, "d d19 f19 hard more"),
        ("above", "above d d19 f18 f19 hard"),
        ("of-snapshot", "d d19 f19 more"),
    ):
        with Sandbox.create(reference) as sandbox:
            assert output(sandbox, "echo *") == [expected]


def test_a_user_or_an_account_that_is_no_good_fails_where_it_was_given() -> None:
    """In E2B's words, with a traceback that shows the line of the step or of the image."""
    with pytest.raises(BuildException, match=r"command 'whoami': command failed: .* invalid username: 'nobody-here'"):
        Template.build(Template().from_base_image().run_cmd("whoami", user="nobody-here"), "no-such-user")
    template = Template()
    template = template.from_aws_registry("1.dkr.ecr.test/x", access_key_id="a", secret_access_key="b", region="c")
    with pytest.raises(BuildException, match="not a region of AWS") as caught:
        Template.build(template, "aws-account")
    lines = [frame.line or "" for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert any(".from_aws_registry(" in line for line in lines)


async def test_the_asynchronous_sdk_builds_too() -> None:
    """Two builds at once, each followed."""
    said = Said()
    builds = [
        AsyncTemplate.build(AsyncTemplate().from_base_image().run_cmd(f"echo {name} > n"), name, on_build_logs=said)
        for name in ("async-a", "async-b")
    ]
    await asyncio.gather(*builds)
    async with await AsyncSandbox.create("async-b") as sandbox:
        assert (await sandbox.commands.run("cat n")).stdout == "async-b\n"
    assert await AsyncTemplate.exists("async-a")


def test_what_a_step_leaves_running_is_gone() -> None:
    """Processes of a step end with it; its files stay."""
    Template.build(Template().from_base_image().run_cmd("(sleep 1000 &) ; echo $! > pid; touch here"), "left-running")
    with Sandbox.create("left-running") as sandbox:
        assert output(sandbox, "pgrep -c 'sleep' || true; ls here") == ["0", "here"]
    until_sync(lambda: not [each for each in Sandbox.list().next_items() if each.name == "left-running"], WAIT_S)
