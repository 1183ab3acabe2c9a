"""The least that IAM must allow, as policies: for the coordinator, and for the nodes.

Pure functions of the site. The nodes' policy is that of a job's session
(`credentials.session_policy`) for every job instead of one, so that a role with it can be
narrowed to each job.
"""

from __future__ import annotations

from typing import Any

from airflow_slurm_provider.coordinator.spec.site import Site
from airflow_slurm_provider.coordinator.submission.credentials import (
    OBJECT_ACTIONS,
    TABLE_ACTIONS,
    partition_of,
    session_policy,
)
from slurm_worker.protocol.keys import JobId


def policies(site: Site) -> dict[str, Any]:
    """The policies of the coordinator and of the nodes; the names are stable."""
    return {"coordinator": _coordinator_policy(site), "node": session_policy(site, JobId("*"))}


def _coordinator_policy(site: Site) -> dict[str, Any]:
    """What submitting, watching, retrying, publishing, `doctor` and `gc` need.

    Inputs that lie elsewhere need ``s3:GetObject`` on them beside this.
    """
    arn = f"arn:{partition_of(site)}"
    bucket = f"{arn}:s3:::{site.bucket}"
    below = f"{bucket}/{site.prefix}/*" if site.prefix else f"{bucket}/*"
    region = site.aws.region or "*"
    table = f"{arn}:dynamodb:{region}:*:table/{site.storage.table}"
    allowed: list[tuple[str | list[str], str | None]] = [
        # Large files are uploaded in parts, which are removed after an interruption.
        ([f"s3:{name}" for name in (*OBJECT_ACTIONS, "AbortMultipartUpload")], below),
        # HEAD of the bucket needs it too, and no prefix can limit that.
        ("s3:ListBucket", bucket),
        ([f"dynamodb:{name}" for name in (*TABLE_ACTIONS, "DescribeTable")], table),
        ("sts:AssumeRole", site.aws.node_role_arn),
        ("sns:Publish", site.alerts.sns_topic_arn),
    ]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": resource}
            for actions, resource in allowed
            if resource
        ],
    }
