"""Every question of E2B's API about templates and tags, asked by the client that E2B generates from its description."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from e2b import BuildInfo, Template
from e2b.api.client import AuthenticatedClient
from e2b.api.client.api.tags import get_templates_template_id_tags_count as tags_count
from e2b.api.client.api.tags import get_templates_template_id_tags_exists as tag_exists
from e2b.api.client.api.tags import get_templates_template_id_tags_groups as tag_groups
from e2b.api.client.api.tags import get_templates_template_id_tags_tag_assignments as tag_assignments
from e2b.api.client.api.templates import get_default_templates as default_templates
from e2b.api.client.api.templates import get_templates as v1_list
from e2b.api.client.api.templates import get_templates_template_id as one_template
from e2b.api.client.api.templates import get_templates_template_id_builds_build_id_logs as build_logs
from e2b.api.client.api.templates import get_templates_template_id_builds_build_id_status as build_status
from e2b.api.client.api.templates import get_v2_templates as v2_list
from e2b.api.client.api.templates import patch_templates_template_id as v1_update
from e2b.api.client.api.templates import patch_v_2_templates_template_id as v2_update
from e2b.api.client.models.get_templates_template_id_tags_groups_sort import GetTemplatesTemplateIDTagsGroupsSort
from e2b.api.client.models.template_update_request import TemplateUpdateRequest


@pytest.fixture(scope="module")
def client(sdk_env: dict[str, str]) -> AuthenticatedClient:
    """It takes only what the description says."""
    url, key = sdk_env["E2B_API_URL"], sdk_env["E2B_API_KEY"]
    return AuthenticatedClient(url, key, prefix="", auth_header_name="X-API-Key", raise_on_unexpected_status=True)


@pytest.fixture(scope="module")
def builds(sdk_env: dict[str, str]) -> list[BuildInfo]:
    """Three of one template, each with a tag of its own and one that has moved on."""
    return [Template.build(Template().from_base_image(), "asked", tags=[f"v{n}", "latest"]) for n in range(3)]


def test_tags_tell_what_they_name_and_named(client: AuthenticatedClient, builds: list[BuildInfo]) -> None:
    """In groups, sorted, searched and page by page; one tag's; how many; whether there is one."""
    ids = [uuid.UUID(build.build_id) for build in builds]
    template = builds[0].template_id

    def groups(**asked: Any) -> Any:
        return tag_groups.sync(template, client=client, **asked)

    found = groups()
    assert {group.tag for group in found.tags} == {"v2", "latest", "v1", "v0"}
    latest = next(group for group in found.tags if group.tag == "latest")
    assert [each.build_id for each in latest.assignments] == ids[::-1]
    assert all(each.build_finished_at >= each.build_created_at for each in latest.assignments)
    assert (latest.has_more, found.next_cursor) == (False, None)
    sort = GetTemplatesTemplateIDTagsGroupsSort.NAME_ASC
    page = groups(sort=sort, search="V", tags_limit=2)
    rest = groups(sort=sort, search="V", tags_limit=2, tags_cursor=page.next_cursor)
    assert [group.tag for group in (*page.tags, *rest.tags)] == ["v0", "v1", "v2"]
    few = groups(search="latest", assignment_limit=1).tags
    assert [(len(group.assignments), group.has_more) for group in few] == [(1, True)]
    first = tag_assignments.sync(template, "latest", client=client, limit=2)
    last = tag_assignments.sync(template, "latest", client=client, cursor=first.next_cursor)
    assert [each.build_id for each in (*first.data, *last.data)] == ids[::-1]
    assert len({each.assignment_id for each in (*first.data, *last.data)}) == 3
    assert tags_count.sync(template, client=client).total == 4
    assert tag_exists.sync(template, client=client, tag="v1").exists
    Template.remove_tags("asked", "latest")
    assert tag_assignments.sync(template, "latest", client=client).data == []


def test_templates_and_their_builds_are_told(client: AuthenticatedClient, builds: list[BuildInfo]) -> None:
    """Lists, one with its builds, who may use it, the log in two ways."""
    ids = [uuid.UUID(build.build_id) for build in builds]
    template = builds[0].template_id
    assert {"base", "code-interpreter-v1"} <= {each.names[0] for each in default_templates.sync(client=client)}
    for listing in (v1_list, v2_list):
        assert template in {each.template_id for each in listing.sync(client=client)}
    assert [build.build_id for build in one_template.sync(template, client=client, limit=2).builds] == ids[:0:-1]
    v1_update.sync_detailed(template, client=client, body=TemplateUpdateRequest(public=True))
    assert one_template.sync(template, client=client).public
    assert v2_update.sync(template, client=client, body=TemplateUpdateRequest(public=False)).names
    logs = build_logs.sync(template, str(ids[0]), client=client).logs
    status = build_status.sync(template, str(ids[0]), client=client)
    assert [line.message for line in logs] == [line.message for line in status.log_entries] != []
