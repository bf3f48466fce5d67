"""Versions of OCI runtimes that are refused."""

from __future__ import annotations

import pytest

from sandpty.isolation.versions import known_bad, parse


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("crun version 1.8.1\ncommit: f8a\n", "1.8.1"),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5\n", "1.1.5+ds1"),
        ("runsc version release-20240729.0\nspec: 1.1.0-rc.1\n", "20240729.0"),
        ("garbage", ""),
    ],
)
def test_versions_are_read(text: str, version: str) -> None:
    """From what `--version` prints."""
    assert parse(text) == version


@pytest.mark.parametrize(
    ("runtime", "version", "bad"),
    [
        ("crun", "1.8.1", False),
        ("crun", "1.4.3", True),
        ("runc", "1.1.5+ds1", False),
        ("runc", "1.0.0~rc93", True),
        ("runsc", "20221219.0", True),
        ("runsc", "20240729.0", False),
        ("crun", "", True),
    ],
)
def test_known_bad_versions_are_refused(runtime: str, version: str, bad: bool) -> None:
    """With a reason that a person understands."""
    assert (known_bad(runtime, version) is not None) is bad
