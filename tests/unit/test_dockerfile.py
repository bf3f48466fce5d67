"""Dockerfiles and the files beside them, as steps of a build."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from sandpty.cli.build_context import Context
from sandpty.cli.dockerfile import Instruction, parse
from sandpty.wire.errors import SandptyError

TEXT = """# syntax
ARG VERSION=12
FROM debian:${VERSION} AS only
LABEL a=b
ENV A=1 B="two words"
ENV OLD form
RUN apt-get update && \\
    # a comment between
    apt-get install -y x
COPY --chown=app:app --chmod=755 a.py b.py /srv
RUN ["echo", "a b"]
WORKDIR /srv
ENTRYPOINT ["python3", "-m"]
CMD http.server
"""


def test_a_dockerfile_becomes_steps() -> None:
    """In their order; what is taken for granted is said, and the user is E2B's where none is named."""
    found = parse(TEXT)
    assert (found.image, found.start_cmd) == ("debian:12", "python3 -m http.server")
    assert found.notices == ["LABEL means nothing here"]
    assert found.steps == [
        Instruction("USER", ("root",)),
        Instruction("WORKDIR", ("/",)),
        Instruction("ENV", ("A", "1", "B", "two words")),
        Instruction("ENV", ("OLD", "form")),
        Instruction("RUN", ("export VERSION=12; apt-get update &&     apt-get install -y x",)),
        Instruction("COPY", ("a.py", "/srv/", "app:app", "755")),
        Instruction("COPY", ("b.py", "/srv/", "app:app", "755")),
        Instruction("RUN", ("export VERSION=12; echo 'a b'",)),
        Instruction("WORKDIR", ("/srv",)),
        Instruction("USER", ("user",)),
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("RUN x", "line 1: FROM comes first"),
        ("FROM a\nFROM b", "line 2: more than one FROM"),
        ("FROM a\n\nRUN cat <<EOF\nx\nEOF", "line 3: here-documents"),
        ("FROM a\nCOPY --from=b x y", "--from cannot be used"),
        ("FROM a\nCOPY x", "a source and a target"),
        ("FROM a\nJUMP", "'JUMP' is not an instruction"),
        ("FROM a\nRUN [1]", "not a list of words"),
        ("FROM a\nENV A", "NAME=value"),
        ("FROM a\nADD http://x/y /z", "files of the network"),
        ("", "no FROM"),
    ],
)
def test_what_cannot_be_built_is_said_with_its_line(text: str, what: str) -> None:
    """Nothing is left out in silence."""
    with pytest.raises(SandptyError) as caught:
        parse(text)
    assert what in str(caught.value)


def test_what_is_copied(tmp_path: Path) -> None:
    """Files, directories, patterns; not what is ignored, nor what is elsewhere; the hash knows every change."""
    (tmp_path / "app" / "deep").mkdir(parents=True)
    for name in ("one.txt", "two.txt", "no.log", "app/main.py", "app/deep/x.log", "app/deep/kept.log"):
        (tmp_path / name).write_text(name)
    (tmp_path / "app" / "link").symlink_to("/etc/passwd")
    (tmp_path / ".dockerignore").write_text("# comment\n**/*.log\n!app/deep/kept.log\n")
    context = Context(tmp_path)

    def names(source: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in context.files(source)]

    assert names("*.txt") == ["one.txt", "two.txt"]
    assert names("/app") == ["app", "app/deep", "app/deep/kept.log", "app/link", "app/main.py"]
    assert "no.log" not in names(".")
    for wrong in ("../x", "no.log", "none*"):
        with pytest.raises(SandptyError):
            context.files(wrong)
    before = context.hash("app")
    assert before == context.hash("app")
    (tmp_path / "app" / "main.py").chmod(0o755)
    assert before != context.hash("app")
    with context.archive("app") as packed, tarfile.open(fileobj=packed) as tar:
        assert tar.getnames() == names("app")
        assert tar.getmember("app/link").issym()
