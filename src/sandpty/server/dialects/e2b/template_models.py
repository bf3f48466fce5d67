"""What E2B's clients send about templates, and the replies to it. Replies hold every member that the SDKs require."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from sandpty.server.auth import Principal
from sandpty.server.builds.log import Line
from sandpty.server.dialects.e2b.listing import rfc3339
from sandpty.server.dialects.e2b.replies import ENVD_VERSION
from sandpty.wire.templates import EVERYBODY, Build, Tag, Template
from sandpty.wire.verbs import Limits

_STATUS = {"waiting": "waiting", "building": "building", "ready": "ready", "failed": "error"}
NOBODY = "00000000-0000-0000-0000-000000000000"  # the build of one of ours: clients take only UUIDs

# --- requests ---


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """POST /v3/templates."""

    name: str = ""
    alias: str = ""
    tags: list[str] | None = None
    cpu_count: int | None = None
    memory_mb: int | None = msgspec.field(name="memoryMB", default=None)
    min_free_disk_mb: int | None = msgspec.field(name="minFreeDiskMB", default=None)


class StepBody(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    type: str
    args: list[str] | None = None
    files_hash: str | None = None
    force: bool | None = None


class ImageAccount(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`fromImageRegistry`: with a name and a password, or with an account of one of two clouds."""

    type: str = "registry"
    username: str = ""
    password: str = ""
    service_account_json: str = ""
    aws_access_key_id: str = ""
    aws_secret_access_key: str = ""
    aws_region: str = ""


class StartBody(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """POST /v2/templates/{template}/builds/{build}."""

    from_image: str = ""
    from_template: str = ""
    from_image_registry: ImageAccount | None = None
    force: bool | None = None
    steps: list[StepBody] | None = None
    start_cmd: str = ""
    ready_cmd: str = ""


class UpdateBody(msgspec.Struct, frozen=True):
    public: bool | None = None


class AssignBody(msgspec.Struct, frozen=True):
    """`target` is `name` or `name:tag`: the build that gets the tags."""

    target: str
    tags: list[str]


class RemoveBody(msgspec.Struct, frozen=True):
    name: str
    tags: list[str]


# --- replies ---


def names_of(template: Template, principal: Principal) -> list[str]:
    """As E2B writes them: a team's with the team before them."""
    return [f"{principal.team_name}/{name}" if template.owner == principal.id else name for name in template.names]


def listed(template: Template, principal: Principal) -> dict[str, Any]:
    """One item of a list. A public one of another team tells nothing of its use."""
    usual = Limits()
    build = template.tagged() or (template.builds[-1] if template.builds else None)
    mine = template.owner in (principal.id, EVERYBODY)
    return {
        "templateID": template.id,
        "buildID": build.id if build is not None else NOBODY,
        "cpuCount": max(1, round(build.cpu_count if build is not None else usual.cpu_count)),
        "memoryMB": build.memory_mb if build is not None else usual.memory_mb,
        "diskSizeMB": build.disk_mb if build is not None else usual.disk_mb,
        "public": template.public,
        "aliases": list(template.names),
        "names": names_of(template, principal),
        "createdAt": rfc3339(template.created_at),
        "updatedAt": rfc3339(template.updated_at),
        "createdBy": None,
        "lastSpawnedAt": rfc3339(template.used_at) if mine and template.used_at else None,
        "spawnCount": template.used_count if mine else 0,
        "buildCount": max(1, len(template.builds)) if mine else 0,
        "envdVersion": ENVD_VERSION,
        "buildStatus": _STATUS[build.state] if build is not None else "ready",
        "isDefault": template.owner == EVERYBODY,
    }


def build_reply(build: Build) -> dict[str, Any]:
    """One build of a template."""
    finished = {"finishedAt": rfc3339(build.finished_at)} if build.finished_at else {}
    return {
        "buildID": build.id,
        "status": _STATUS[build.state],
        "createdAt": rfc3339(build.created_at),
        "updatedAt": rfc3339(build.updated_at),
        "cpuCount": max(1, round(build.cpu_count)),
        "memoryMB": build.memory_mb,
        "diskSizeMB": build.disk_mb,
        "envdVersion": ENVD_VERSION,
        **finished,
    }


def requested(template: Template, build: Build, principal: Principal) -> dict[str, Any]:
    """The reply to a wish for a build."""
    return {
        "templateID": template.id,
        "buildID": build.id,
        "public": template.public,
        "names": names_of(template, principal),
        "tags": list(build.tags),
        "aliases": list(template.names),
    }


def log_entry(line: Line) -> dict[str, Any]:
    step = {"step": line.step} if line.step else {}
    return {"timestamp": rfc3339(line.at), "message": line.message, "level": line.level, **step}


def status_reply(template_id: str, build: Build, lines: list[Line], about: list[Line]) -> dict[str, Any]:
    """How far a build is. about: the last lines of the step that failed."""
    reply: dict[str, Any] = {
        "templateID": template_id,
        "buildID": build.id,
        "status": _STATUS[build.state],
        "logs": [],
        "logEntries": [log_entry(line) for line in lines],
    }
    if build.state == "failed":
        step = {"step": build.step} if build.step else {}
        reply["reason"] = {"message": build.reason, **step, "logEntries": [log_entry(line) for line in about]}
    return reply


def tag_reply(tag: Tag) -> dict[str, Any]:
    return {"tag": tag.name, "buildID": tag.build, "createdAt": rfc3339(tag.assigned_at)}


def assignment_reply(template: Template, tag: Tag) -> dict[str, Any]:
    """That a tag was put on a build. Its id follows from what it says: the same assignment always has the same."""
    build = template.build(tag.build)
    name = f"{template.id} {tag.name} {tag.build} {tag.assigned_at!r}"
    return {
        "assignmentId": str(uuid.uuid5(uuid.UUID(NOBODY), name)),
        "buildId": tag.build,
        "assignedAt": rfc3339(tag.assigned_at),
        "buildCreatedAt": rfc3339(build.created_at if build is not None else tag.assigned_at),
        "buildFinishedAt": rfc3339(build.finished_at) if build is not None and build.finished_at else None,
    }
