"""The Terraform module makes what `slurmctl bootstrap` makes, and allows what `doctor` prints."""

from __future__ import annotations

import json
import re
from string import Template
from typing import Any

import hcl2
import pytest

from airflow_slurm_provider.coordinator.maintenance.aws_resources import (
    ENCRYPTION,
    PUBLIC_ACCESS_BLOCK,
    lifecycle_rules,
    table_definition,
)
from airflow_slurm_provider.coordinator.maintenance.doctor import policies
from airflow_slurm_provider.coordinator.spec.site import parse_site
from tests.stack.settings import ROOT

MODULE = ROOT / "docs" / "infrastructure" / "terraform"
FILES = sorted(MODULE.glob("*.tf"))
#: Rules of a lifecycle by Terraform's names: the action of S3's API, and its one value.
ACTIONS = {
    "abort_incomplete_multipart_upload": (
        "AbortIncompleteMultipartUpload",
        {"days_after_initiation": "DaysAfterInitiation"},
    ),
    "noncurrent_version_expiration": (
        "NoncurrentVersionExpiration",
        {"noncurrent_days": "NoncurrentDays"},
    ),
    "expiration": ("Expiration", {"days": "Days"}),
}


def plain(value: Any) -> Any:
    """What the parser gives, without its marks and the quotes of literals."""
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items() if key[:2] != "__"}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, str) and value[:1] == value[-1:] == '"':
        return value[1:-1]
    return value


def blocks(kind: str) -> dict[str, Any]:
    """All blocks of a kind, by their labels: ``resource`` by type, then by name."""
    found: dict[str, Any] = {}
    for file in FILES:
        for block in plain(hcl2.loads(file.read_text())).get(kind, []):
            for label, body in block.items():
                found.setdefault(label, {}).update(body)
    return found


def resource(kind: str) -> dict[str, Any]:
    ((_, body),) = blocks("resource")[kind].items()
    assert isinstance(body, dict)
    return body


def test_the_table_is_the_definitions() -> None:
    table = resource("aws_dynamodb_table")
    wanted = table_definition("t")
    keys = {each["KeyType"]: each["AttributeName"] for each in wanted["KeySchema"]}
    assert (table["hash_key"], table["range_key"]) == (keys["HASH"], keys["RANGE"])
    assert table["billing_mode"] == wanted["BillingMode"]
    assert {each["name"]: each["type"] for each in table["attribute"]} == {
        each["AttributeName"]: each["AttributeType"] for each in wanted["AttributeDefinitions"]
    }


def test_the_bucket_is_closed_and_encrypted_as_by_the_definition() -> None:
    block = resource("aws_s3_bucket_public_access_block")
    assert {
        "BlockPublicAcls": block["block_public_acls"],
        "IgnorePublicAcls": block["ignore_public_acls"],
        "BlockPublicPolicy": block["block_public_policy"],
        "RestrictPublicBuckets": block["restrict_public_buckets"],
    } == PUBLIC_ACCESS_BLOCK
    (rule,) = resource("aws_s3_bucket_server_side_encryption_configuration")["rule"]
    (default,) = rule["apply_server_side_encryption_by_default"]
    assert default["sse_algorithm"] == ENCRYPTION


@pytest.mark.parametrize("prefix", ["", "back/fills"])
def test_the_lifecycle_rules_are_the_definitions(prefix: str) -> None:
    assert [
        as_in_the_api(rule, prefix)
        for rule in resource("aws_s3_bucket_lifecycle_configuration")["rule"]
    ] == lifecycle_rules(prefix)


def as_in_the_api(rule: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A rule of the module, as S3's API has it."""
    name = f"slurm-backfills-{prefix.replace('/', '-')}" if prefix else "slurm-backfills"
    below = f"{prefix}/" if prefix else ""

    def value(text: str) -> str:
        return text.replace("${local.rules}", name).replace("${local.below}", below)

    ((action, (body,)),) = ((key, each) for key, each in rule.items() if key in ACTIONS)
    api, fields = ACTIONS[action]
    return {
        "ID": value(rule["id"]),
        "Status": rule["status"],
        "Filter": {"Prefix": value(rule["filter"][0]["prefix"])},
        api: {fields[key]: each for key, each in body.items()},
    }


@pytest.mark.parametrize("whose", ["coordinator", "node"])
@pytest.mark.parametrize("prefix", ["", "back/fills"])
@pytest.mark.parametrize("region", [None, "eu-west-1"])
def test_the_policies_are_those_that_doctor_prints(
    whose: str, prefix: str, region: str | None
) -> None:
    raw = {
        "storage": {"table": "t", "prefix": f"s3://lab/{prefix}"},
        "aws": {"region": region},
        "cluster": {"transport": "local"},
    }
    template = (MODULE / "policies" / f"{whose}.json.tftpl").read_text()
    rendered = Template(template).substitute(
        bucket="lab", below=f"{prefix}/" if prefix else "", table="t", region=region or "*"
    )
    assert json.loads(rendered) == policies(parse_site(raw, "site"))[whose]


def test_what_only_some_sites_need_is_allowed_as_doctor_prints_it() -> None:
    role, topic = "arn:aws:iam::123456789012:role/nodes", "arn:aws:sns:eu-west-1:123456789012:a"
    plainly = {"storage": {"table": "t", "prefix": "s3://lab"}, "cluster": {"transport": "local"}}
    every = policies(
        parse_site(
            {**plainly, "aws": {"node_role_arn": role}, "alerts": {"sns_topic_arn": topic}}, "site"
        )
    )["coordinator"]["Statement"]
    few = policies(parse_site(plainly, "site"))["coordinator"]["Statement"]
    text = blocks("resource")["aws_iam_policy"]["coordinator"]["policy"]
    for statement in (each for each in every if each not in few):
        assert f'Effect = "Allow", Action = "{statement["Action"]}"' in text
    assert len(every) == len(few) + 2


def test_what_is_used_is_declared_and_what_is_declared_is_used() -> None:
    text = "\n".join(file.read_text() for file in FILES)
    assert set(re.findall(r"\bvar\.(\w+)", text)) == set(blocks("variable"))
