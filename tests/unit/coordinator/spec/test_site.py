"""A site's settings are refused in one line, in the YAML's own words."""

from __future__ import annotations

import pytest

from airflow_slurm_provider.coordinator.services import open_services
from airflow_slurm_provider.coordinator.spec.site import parse_cluster, parse_site
from slurm_worker.errors import UserError
from tests.unit.answers import Answer, serving, session
from tests.unit.coordinator.fakes import SITE


@pytest.mark.parametrize("folder", ["$HOME/x", "${SCRATCH}/x", "~", "~/", "~lab/x"])
def test_a_remote_folder_that_a_shell_must_expand_is_refused(folder: str) -> None:
    with pytest.raises(UserError) as found:
        parse_site({**SITE, "cluster": {**SITE["cluster"], "remote_dir": folder}}, "site.yaml")
    assert str(found.value).startswith(f"site.yaml: cluster.remote_dir: {folder!r} contains")


@pytest.mark.parametrize("folder", [".airflow-slurm", "~/x", "/scratch/me/a $b", "a~b"])
def test_other_remote_folders_are_accepted(folder: str) -> None:
    assert parse_cluster({"host": "login", "remote_dir": folder}, "site").remote_dir == folder


def test_a_site_without_the_setting_leaves_checksums_to_the_sdk() -> None:
    environment = parse_site(SITE, "site").aws.environment()
    assert not [name for name in environment if "CHECKSUM" in name]


def test_another_word_for_checksums_is_refused_with_the_two_that_there_are() -> None:
    with pytest.raises(UserError, match=r"site: aws\.checksums: .*when_required") as told:
        parse_site({**SITE, "aws": {"checksums": "never"}}, "site")
    assert "when_supported" in str(told.value)


def test_the_coordinators_own_requests_follow_the_setting_for_checksums() -> None:
    with serving(lambda _: Answer(headers={"ETag": '"1"'})) as server:
        aws = {"s3_endpoint_url": server.url, "checksums": "when_required"}
        opened = open_services(parse_site({**SITE, "aws": aws}, "site"), session=session())
        opened.objects.put("a", b"x")
    (request,) = server.requests
    assert not [name for name in request.headers if "checksum" in name]
