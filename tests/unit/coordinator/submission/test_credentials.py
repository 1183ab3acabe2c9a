"""Nodes get credentials of the job's own where the site names a role, and only then."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, EndpointConnectionError

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import parse_site
from airflow_slurm_provider.coordinator.submission.credentials import (
    LIFETIME_S,
    RENEW_AFTER_S,
    put_credentials,
    session_policy,
)
from airflow_slurm_provider.coordinator.watcher import Watcher
from slurm_worker.errors import ExpiredCredentials, ServiceError, UserError, WrongClock
from slurm_worker.protocol.keys import JobId
from tests.unit.coordinator.fakes import SITE, FakeSlurm, make_config, services

ROLE = "arn:aws:iam::123456789012:role/nodes"
JOB = JobId("job-1")


@dataclass
class Sts:
    error: Exception | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def assume_role(self, **request: Any) -> dict[str, Any]:
        if self.error:
            raise self.error
        self.asked.append(request)
        until = datetime(2030, 1, 1, tzinfo=timezone.utc)
        secret = f"very-secret-{len(self.asked)}"
        keys = {"AccessKeyId": "AKIA", "SecretAccessKey": secret, "SessionToken": "tok-en"}
        return {"Credentials": {**keys, "Expiration": until}}


def edges_with(sts: Sts, slurm: FakeSlurm, **aws: Any) -> Services:
    site = parse_site({**SITE, "aws": {"node_role_arn": ROLE, **aws}}, "site")
    return replace(services(slurm), site=site, sts=lambda: sts)


def test_without_a_role_no_credentials_are_made() -> None:
    slurm = FakeSlurm()
    assert put_credentials(services(slurm), JOB) == {}
    assert slurm.secrets == {}


def keys(method: str, token: str | None = None) -> Credentials:
    return Credentials("AKIA-OURS", "secret-of-ours", token, method)


def embedded_with(found: Credentials | None, slurm: FakeSlurm, **cluster: Any) -> Services:
    raw = {"transport": "embedded", **cluster}
    site = parse_site({**SITE, "cluster": raw}, "site")
    return replace(services(slurm), site=site, credentials=lambda: found)


@pytest.mark.parametrize("method", ["env", "explicit"])
@pytest.mark.parametrize("token", [None, "tok-en"])
def test_the_embedded_cluster_gets_this_processs_credentials_as_a_file(
    method: str, token: str | None
) -> None:
    slurm = FakeSlurm()
    variables = put_credentials(embedded_with(keys(method, token), slurm), JOB)
    assert "secret-of-ours" not in str(variables)
    document = json.loads(slurm.secrets["credentials.json"])
    assert document == {
        "Version": 1,
        "AccessKeyId": "AKIA-OURS",
        "SecretAccessKey": "secret-of-ours",
        **({"SessionToken": token} if token else {}),
    }


def test_this_processs_credentials_go_to_no_other_cluster() -> None:
    slurm = FakeSlurm()
    for edges in (
        embedded_with(keys("shared-credentials-file"), slurm),
        embedded_with(None, slurm),
        embedded_with(keys("env"), slurm, transport="local"),
        embedded_with(keys("env"), slurm, transport="ssh", host="login"),
    ):
        assert put_credentials(edges, JOB) == {}
    assert slurm.secrets == {}


def test_the_jobs_credentials_come_before_the_accounts_own() -> None:
    assert put_credentials(edges_with(Sts(), FakeSlurm()), JOB)["AWS_PROFILE"] == "default"


def test_credentials_are_for_one_job_and_short_lived() -> None:
    sts = Sts()
    put_credentials(edges_with(sts, FakeSlurm()), JOB)
    (request,) = sts.asked
    assert (request["RoleArn"], request["DurationSeconds"]) == (ROLE, LIFETIME_S)
    assert request["RoleSessionName"] == "slurm-job-1"
    assert len(request["Policy"]) < 2048
    objects, reads, lists, rows = json.loads(request["Policy"])["Statement"]
    assert objects["Resource"] == ["arn:aws:s3:::lab/lab/jobs/job-1/*"]
    assert reads["Resource"] == ["arn:aws:s3:::lab/lab/jobs/job-1/*"]
    assert lists["Condition"] == {"StringLike": {"s3:prefix": "lab/jobs/job-1/*"}}
    assert rows["Resource"].endswith(":table/t")
    leading = rows["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
    assert leading == ["JOB#job-1", "JOB#job-1#*", "LIMIT#*#*"]
    assert "Scan" not in str(rows["Action"])


def test_the_site_names_further_addresses_that_handlers_read() -> None:
    edges = edges_with(Sts(), FakeSlurm(), node_read=["s3://reference/genomes/"])
    reads = session_policy(edges.site, JOB)["Statement"][1]
    assert reads == {
        "Effect": "Allow",
        "Action": "s3:GetObject",
        "Resource": ["arn:aws:s3:::lab/lab/jobs/job-1/*", "arn:aws:s3:::reference/genomes/*"],
    }


@pytest.mark.parametrize(
    ("address", "opened"),
    [
        ("s3://data/public/", ["data/public/*"]),
        ("s3://data/public", ["data/public", "data/public/*"]),
        ("s3://data", ["data/*"]),
        ("s3://data/", ["data/*"]),
        ("s3://data/a*b?c$", ["data/a${*}b${?}c${$}", "data/a${*}b${?}c${$}/*"]),
    ],
)
def test_a_readable_address_does_not_allow_similar_names(address: str, opened: list[str]) -> None:
    edges = edges_with(Sts(), FakeSlurm(), node_read=[address])
    resources = session_policy(edges.site, JOB)["Statement"][1]["Resource"]
    assert resources[1:] == [f"arn:aws:s3:::{name}" for name in opened]


def test_the_sdk_reads_the_document_again_when_it_expires() -> None:
    slurm = FakeSlurm()
    variables = put_credentials(edges_with(Sts(), slurm), JOB)
    document = json.loads(slurm.secrets["credentials.json"])
    assert document["Version"] == 1
    assert datetime.fromisoformat(document["Expiration"]).tzinfo is not None
    path = "/home/lab/.airflow-slurm/jobs/job-1"
    assert variables["AWS_CONFIG_FILE"] == f"{path}/aws-config"
    config = slurm.secrets["aws-config"].decode()
    assert config == f"[default]\ncredential_process = cat {path}/credentials.json\n"


def test_the_script_names_the_file_and_contains_no_secret(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = edges_with(Sts(), slurm), make_config(tmp_path)
    api.submit(edges, config, log=lambda _: None)
    (script,) = slurm.scripts
    assert "AWS_CONFIG_FILE=" in script
    written = script + str(edges.rows.__dict__) + str(edges.objects.__dict__)
    assert "very-secret" not in written
    assert "tok-en" not in written


def test_a_wait_renews_credentials_long_before_they_expire(tmp_path: Path) -> None:
    sts, slurm = Sts(), FakeSlurm()
    edges, config = edges_with(sts, slurm), make_config(tmp_path)
    api.submit(edges, config, log=lambda _: None)
    now = [0.0]
    said: list[str] = []
    watcher = Watcher(edges, JOB, said.append, clock=lambda: now[0])
    for now[0] in (0.0, 10.0, RENEW_AFTER_S - 1, RENEW_AFTER_S, RENEW_AFTER_S + 1):
        watcher.poll()
    assert len(sts.asked) == 3  # of the submission, of the first poll, and a renewal
    assert b"very-secret-3" in slurm.secrets["credentials.json"]
    sts.error = EndpointConnectionError(endpoint_url="https://sts")
    now[0] += RENEW_AFTER_S
    watcher.poll()
    assert "credentials could not be renewed" in said[-1]


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "AssumeRole")


def test_a_role_that_cannot_be_assumed_is_a_mistake_in_the_site(tmp_path: Path) -> None:
    edges = edges_with(Sts(refusal("AccessDenied")), FakeSlurm())
    with pytest.raises(UserError, match=r"aws.node_role_arn: .*nodes' can't be assumed") as told:
        api.submit(edges, make_config(tmp_path), log=lambda _: None)
    assert not isinstance(told.value, ServiceError)


def test_an_array_whose_reply_was_lost_is_found_after_a_refused_role(
    tmp_path: Path,
) -> None:
    sts, slurm = Sts(), FakeSlurm(lose_reply=True)
    edges, config = edges_with(sts, slurm), make_config(tmp_path)
    with pytest.raises(ServiceError, match="connection lost"):
        api.submit(edges, config, log=lambda _: None)
    sts.error = refusal("AccessDenied")
    with pytest.raises(UserError, match="can't be assumed"):
        api.submit(edges, config, log=lambda _: None)
    sts.error = None
    assert api.submit(edges, config, log=lambda _: None).slurm_job_ids == ("100",)
    assert len(slurm.arrays) == 1


def test_a_throttled_sts_is_a_temporary_error() -> None:
    with pytest.raises(ServiceError, match="Throttling; try again"):
        put_credentials(edges_with(Sts(refusal("Throttling")), FakeSlurm()), JOB)


@pytest.mark.parametrize(
    ("code", "kind"), [("ExpiredToken", ExpiredCredentials), ("RequestTimeTooSkewed", WrongClock)]
)
def test_expired_credentials_and_a_wrong_clock_are_not_blamed_on_the_role(
    code: str, kind: type[ServiceError]
) -> None:
    with pytest.raises(kind) as told:
        put_credentials(edges_with(Sts(refusal(code)), FakeSlurm()), JOB)
    assert "node_role_arn: " not in str(told.value)


def test_the_setting_for_checksums_reaches_the_workers(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    site = parse_site({**SITE, "aws": {"checksums": "when_required"}}, "site")
    api.submit(replace(services(slurm), site=site), make_config(tmp_path), log=lambda _: None)
    (script,) = slurm.scripts
    assert "export AWS_REQUEST_CHECKSUM_CALCULATION=when_required\n" in script
    assert "export AWS_RESPONSE_CHECKSUM_VALIDATION=when_required\n" in script
