"""What AWS must hold for a site, as plain data: the table, the bucket's settings, its rules.

The only definition: `slurmctl bootstrap` creates it, `slurmctl doctor` compares with it, the
development stack creates its table from it, and a test compares the Terraform module under
``docs/infrastructure`` with it. Values are those of AWS's API.

A lifecycle rule selects by the start of a key, and keys start with the job's name. So the rules
cover what is the same for every job: interrupted uploads, replaced versions, leftovers of a killed
`doctor`. Unneeded parts and checkpoints are deleted by `slurmctl gc`, which reads the markers.
"""

from __future__ import annotations

from typing import Any

from slurm_worker.diagnostics.access_probes import PROBE_JOB
from slurm_worker.protocol.paths import JobPaths

#: Kind and type of each key attribute: ``HASH`` is the partition key, ``S`` a string.
TABLE_KEYS = {"pk": ("HASH", "S"), "sk": ("RANGE", "S")}
#: By request: many workers start at once, and provisioned capacity would throttle them.
BILLING_MODE = "PAY_PER_REQUEST"
#: Nothing in the bucket is for the public.
PUBLIC_ACCESS_BLOCK = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
#: By S3's own keys, which cost nothing.
ENCRYPTION = "AES256"
#: A worker's upload takes minutes; a large merge an hour.
ABORT_UPLOADS_DAYS = 7
#: Days until a replaced or deleted version is removed, in a bucket with versioning.
NONCURRENT_DAYS = 30
PROBES_DAYS = 1


def table_definition(name: str) -> dict[str, Any]:
    """The arguments of DynamoDB's ``CreateTable``."""
    return {
        "TableName": name,
        "KeySchema": [
            {"AttributeName": key, "KeyType": kind} for key, (kind, _) in TABLE_KEYS.items()
        ],
        "AttributeDefinitions": [
            {"AttributeName": key, "AttributeType": type_} for key, (_, type_) in TABLE_KEYS.items()
        ],
        "BillingMode": BILLING_MODE,
    }


def lifecycle_rules(prefix: str) -> list[dict[str, Any]]:
    """The bucket's lifecycle rules for what lies below a site's key prefix.

    Their ids hold the prefix, so that several sites can share a bucket.
    """
    where = f"{prefix}/" if prefix else ""
    name = f"slurm-backfills{'-' if prefix else ''}{prefix.replace('/', '-')}"
    probes = JobPaths(prefix, PROBE_JOB).root
    uploads = {"DaysAfterInitiation": ABORT_UPLOADS_DAYS}
    rules = {
        "uploads": (where, {"AbortIncompleteMultipartUpload": uploads}),
        "versions": (where, {"NoncurrentVersionExpiration": {"NoncurrentDays": NONCURRENT_DAYS}}),
        "probes": (probes, {"Expiration": {"Days": PROBES_DAYS}}),
    }
    return [
        {"ID": f"{name}-{rule}", "Status": "Enabled", "Filter": {"Prefix": start}, **action}
        for rule, (start, action) in rules.items()
    ]
