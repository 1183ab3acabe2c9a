"""What isn't there is made, what is there stays as it is, and a second call finds all there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.stub import ANY, Stubber
from moto import mock_aws

from airflow_slurm_provider.coordinator.maintenance.aws_resources import (
    lifecycle_rules,
    table_definition,
)
from airflow_slurm_provider.coordinator.maintenance.bootstrap import (
    BootstrapRequest,
    BootstrapResult,
    Clients,
    StepResult,
    bootstrap,
)
from airflow_slurm_provider.coordinator.maintenance.bootstrap.steps import open_clients
from airflow_slurm_provider.coordinator.maintenance.doctor import Level
from airflow_slurm_provider.coordinator.maintenance.doctor.aws import AwsProbes, check_table
from airflow_slurm_provider.coordinator.spec.site import Site, parse_site
from slurm_worker.errors import ExpiredCredentials, ServiceError, UserError
from tests.stack.settings import ROOT
from tests.unit.cli.conftest import empty_aws

#: By which action IAM allows an operation, where their names differ.
ACTIONS = {
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "HeadBucket": "ListBucket",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
}
ALL = BootstrapRequest(bucket=True, point_in_time=True, deletion_protection=True)
RAW = {
    "storage": {"table": "t", "prefix": "s3://lab/back/fills"},
    "aws": {"region": "eu-west-1"},
    "cluster": {"transport": "local"},
}
SITE = parse_site(RAW, "site")
OTHERS_RULE = {
    "ID": "of somebody else",
    "Status": "Enabled",
    "Filter": {"Prefix": "tmp/"},
    "Expiration": {"Days": 3},
}
STORE = "http://127.0.0.1:8333"
PROBE = {
    "Bucket": "lab",
    "Key": ANY,
    "Body": b"tried",
    "ServerSideEncryption": "AES256",
}
RULES: list[Any] = lifecycle_rules("back/fills")


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    empty_aws(monkeypatch)
    with mock_aws():
        yield open_clients(SITE)


def outcomes(made: BootstrapResult) -> dict[str, str]:
    return {step.name: step.outcome.value for step in made.steps}


def make(clients: Clients, wanted: BootstrapRequest = ALL, site: Site = SITE) -> dict[str, str]:
    return outcomes(bootstrap(site, wanted, clients=clients))


def rule_ids(clients: Clients) -> set[str]:
    found = clients.s3.get_bucket_lifecycle_configuration(Bucket="lab")
    return {each["ID"] for each in found["Rules"]}


def make_bucket(clients: Clients) -> None:
    clients.s3.create_bucket(
        Bucket="lab", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )


def test_in_an_empty_account_everything_is_created(clients: Clients) -> None:
    assert set(make(clients).values()) == {"made"}
    table = clients.dynamodb.describe_table(TableName="t")["Table"]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["DeletionProtectionEnabled"]
    location = clients.s3.get_bucket_location(Bucket="lab")["LocationConstraint"]
    assert location == "eu-west-1"
    block = clients.s3.get_public_access_block(Bucket="lab")["PublicAccessBlockConfiguration"]
    assert set(block.values()) == {True}
    assert rule_ids(clients) == {each["ID"] for each in lifecycle_rules("back/fills")}


def test_a_second_call_creates_nothing(clients: Clients) -> None:
    make(clients)
    assert set(make(clients).values()) == {"there"}


def test_a_dry_run_reports_what_a_call_would_create_and_creates_nothing(clients: Clients) -> None:
    dry = BootstrapRequest(bucket=True, point_in_time=True, deletion_protection=True, dry_run=True)
    told = make(clients, dry)
    assert set(told.values()) == {"would_make"}
    assert clients.dynamodb.list_tables()["TableNames"] == []
    assert clients.s3.list_buckets()["Buckets"] == []
    assert set(make(clients)) == set(told)


def test_doctor_passes_the_created_table(clients: Clients) -> None:
    make(clients, BootstrapRequest())
    probes = AwsProbes.of(SITE)
    assert [each.level for each in check_table(probes, "t")] == [Level.PASS]


def test_without_create_bucket_a_missing_bucket_is_only_reported(
    clients: Clients,
) -> None:
    made = bootstrap(SITE, BootstrapRequest(), clients=clients)
    assert outcomes(made) == {"table": "made", "bucket": "missing"}
    assert not made.ok
    assert "--create-bucket" in made.steps[-1].fix
    assert clients.s3.list_buckets()["Buckets"] == []


def test_settings_that_differ_are_not_changed_without_update(clients: Clients) -> None:
    make_bucket(clients)
    clients.dynamodb.create_table(
        **{
            **table_definition("t"),
            "BillingMode": "PROVISIONED",
            "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5},
        }
    )
    made = bootstrap(SITE, ALL, clients=clients)
    assert outcomes(made) == {
        "table": "there",
        "billing": "differs",
        "point_in_time": "differs",
        "deletion_protection": "differs",
        "bucket": "there",
        "public_access": "differs",
        # Every bucket is, since 2023.
        "encryption": outcomes(made)["encryption"],
        "lifecycle": "differs",
    }
    assert made.ok
    assert all("--update" in step.fix for step in made.steps if step.outcome is StepResult.DIFFERS)
    table = clients.dynamodb.describe_table(TableName="t")["Table"]
    assert table["ProvisionedThroughput"]["WriteCapacityUnits"] == 5
    with pytest.raises(ClientError, match="NoSuchLifecycleConfiguration"):
        clients.s3.get_bucket_lifecycle_configuration(Bucket="lab")


def test_an_update_changes_what_differs_and_keeps_the_rules_of_others(clients: Clients) -> None:
    make_bucket(clients)
    clients.s3.put_bucket_lifecycle_configuration(
        Bucket="lab",
        LifecycleConfiguration={"Rules": [OTHERS_RULE]},
    )
    clients.dynamodb.create_table(**table_definition("t"))
    update = BootstrapRequest(
        bucket=True, point_in_time=True, deletion_protection=True, update=True
    )
    assert {"made", "there"} == set(make(clients, update).values())
    assert rule_ids(clients) == {
        OTHERS_RULE["ID"],
        *(each["ID"] for each in lifecycle_rules("back/fills")),
    }
    assert set(make(clients, update).values()) == {"there"}


def test_sites_in_one_bucket_have_rules_of_their_own(clients: Clients) -> None:
    make(clients)
    other = parse_site({**RAW, "storage": {"table": "t", "prefix": "s3://lab"}}, "site")
    assert make(clients, BootstrapRequest(update=True), other)["lifecycle"] == "made"
    assert len(rule_ids(clients)) == 2 * len(lifecycle_rules(""))
    assert set(make(clients).values()) == {"there"}


def test_a_rule_that_was_switched_off_differs(clients: Clients) -> None:
    make(clients)
    rules: list[Any] = lifecycle_rules("back/fills")
    rules[0]["Status"] = "Disabled"
    clients.s3.put_bucket_lifecycle_configuration(
        Bucket="lab", LifecycleConfiguration={"Rules": rules}
    )
    assert make(clients)["lifecycle"] == "differs"


def test_the_guide_lists_the_permissions_that_are_used_and_no_others(clients: Clients) -> None:
    called: set[str] = set()

    def note(service: str) -> Callable[..., None]:
        return lambda model, **_: called.add(f"{service}:{ACTIONS.get(model.name, model.name)}")

    for service, client in (("dynamodb", clients.dynamodb), ("s3", clients.s3)):
        client.meta.events.register("before-call", note(service))
    changing = BootstrapRequest(update=True, point_in_time=True, deletion_protection=True)
    make(clients)
    clients.dynamodb.update_table(TableName="t", DeletionProtectionEnabled=False)
    make(clients, changing)
    guide = (ROOT / "docs" / "guides" / "setup-aws.md").read_text()
    (block,) = re.findall(r"^```json\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    listed = [each for every in json.loads(block)["Statement"] for each in every["Action"]]
    assert called == set(listed)


def test_a_table_with_other_keys_is_unfit_and_stays(clients: Clients) -> None:
    clients.dynamodb.create_table(
        TableName="t",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    made = bootstrap(SITE, BootstrapRequest(bucket=True, update=True), clients=clients)
    assert outcomes(made)["table"] == "unfit"
    assert "id (HASH, S)" in made.steps[0].found
    assert not made.ok


def test_a_store_without_some_settings_gets_the_others(clients: Clients) -> None:
    make(clients)
    stub = Stubber(clients.s3)
    there = {"Bucket": "lab"}
    stub.add_response("head_bucket", {}, there)
    stub.add_client_error("get_public_access_block", "NotImplemented", expected_params=there)
    stub.add_client_error("get_bucket_encryption", "MethodNotAllowed", expected_params=there)
    rules: list[Any] = lifecycle_rules("back/fills")
    stub.add_response("get_bucket_lifecycle_configuration", {"Rules": rules}, there)
    with stub:
        made = bootstrap(SITE, BootstrapRequest(), clients=clients)
    found = outcomes(made)
    assert (found["public_access"], found["encryption"]) == ("unsupported", "unsupported")
    assert found["lifecycle"] == "there"
    assert made.ok


@pytest.fixture
def other_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Clients, Stubber]]:
    """A store that is not AWS's, with a bucket whose encryption is not set."""
    empty_aws(monkeypatch)
    site = parse_site({**RAW, "aws": {"region": "eu-west-1", "s3_endpoint_url": STORE}}, "site")
    with mock_aws():
        clients = open_clients(site)
        stub = Stubber(clients.s3)
        there = {"Bucket": "lab"}
        stub.add_response("head_bucket", {}, there)
        stub.add_client_error("get_public_access_block", "NotImplemented", expected_params=there)
        missing = "ServerSideEncryptionConfigurationNotFoundError"
        stub.add_client_error("get_bucket_encryption", missing, expected_params=there)
        with stub:
            yield clients, stub
            stub.assert_no_pending_responses()


def test_encryption_is_not_set_in_a_store_that_cannot_encrypt(
    other_store: tuple[Clients, Stubber],
) -> None:
    clients, stub = other_store
    stub.add_client_error("put_object", "InternalError", expected_params=PROBE)
    stub.add_response("get_bucket_lifecycle_configuration", {"Rules": RULES}, {"Bucket": "lab"})
    made = bootstrap(SITE, BootstrapRequest(update=True), clients=clients)
    (step,) = (each for each in made.steps if each.name == "encryption")
    assert step.outcome is StepResult.UNSUPPORTED
    assert "can't write an encrypted object (InternalError)" in step.found
    assert "give the store encryption keys" in step.fix
    assert outcomes(made)["lifecycle"] == "there"
    assert made.ok


@pytest.mark.parametrize("may_write", [True, False])
def test_encryption_is_set_in_a_store_that_can_encrypt(
    other_store: tuple[Clients, Stubber], may_write: bool
) -> None:
    clients, stub = other_store
    if may_write:
        stub.add_response("put_object", {}, PROBE)
        stub.add_response("delete_object", {}, {"Bucket": "lab", "Key": ANY})
    else:
        stub.add_client_error("put_object", "AccessDenied", expected_params=PROBE)
    stub.add_response("put_bucket_encryption", {})
    stub.add_response("get_bucket_lifecycle_configuration", {"Rules": RULES}, {"Bucket": "lab"})
    assert make(clients, BootstrapRequest(update=True))["encryption"] == "made"


def test_a_bucket_of_another_account_is_a_user_error(clients: Clients) -> None:
    stub = Stubber(clients.s3)
    stub.add_client_error("head_bucket", "403")
    # HEAD is refused without a reason, so another request asks for it.
    stub.add_client_error("list_objects_v2", "AccessDenied", http_status_code=403)
    with stub, pytest.raises(UserError, match=r"storage\.prefix: no access to bucket 'lab'"):
        bootstrap(SITE, ALL, clients=clients)


def test_a_refused_request_is_a_service_error_that_names_it(clients: Clients) -> None:
    stub = Stubber(clients.dynamodb)
    stub.add_client_error("describe_table", "AccessDeniedException", "may not")
    with stub, pytest.raises(ServiceError, match=r"DynamoDB table 't'.*AccessDenied"):
        bootstrap(SITE, ALL, clients=clients)


def test_expired_credentials_are_named_and_not_blamed_on_permissions(clients: Clients) -> None:
    stub = Stubber(clients.dynamodb)
    stub.add_client_error("describe_table", "ExpiredTokenException", "it is expired")
    with stub, pytest.raises(ExpiredCredentials) as told:
        bootstrap(SITE, ALL, clients=clients)
    assert "permissions" not in str(told.value)
