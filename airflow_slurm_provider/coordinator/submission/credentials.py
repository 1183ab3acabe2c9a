"""Short-lived credentials for the workers of one job, from STS, if the site names a role.

They allow this job's objects and rows and nothing else. They go to the cluster through standard
input, into a file that only its account can read: never in the batch script, an argument, a log,
an XCom or the table. Workers read them through ``credential_process``. Its document says when it
expires, so that the SDK reads it again; a process that waits for the job renews it. If the site
names no role, nodes use their own credentials (a profile, an instance role). Requests: one of STS
per submission, and per renewal.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import Site
from slurm_worker.backends.errors import UNANSWERED, refused, unanswered
from slurm_worker.errors import NoCredentials, ServiceError, UserError, WrongClock
from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import JobId, split_s3_uri
from slurm_worker.protocol.paths import JobPaths

#: The longest time that a role assumed by a role may get, and the default of each role.
LIFETIME_S = 3600
#: A process that waits for the job renews them after this time.
RENEW_AFTER_S = LIFETIME_S / 3
_DOCUMENT, _CONFIG = "credentials.json", "aws-config"
TABLE_ACTIONS = ("GetItem", "PutItem", "UpdateItem", "DeleteItem", "Query")
OBJECT_ACTIONS = ("GetObject", "PutObject", "DeleteObject")
_PARTITION = re.compile(r"arn:(aws[a-z-]*):")
#: botocore's names for credentials that no other process of this machine would find.
_OF_THIS_PROCESS = ("env", "explicit")
#: Refusals that are temporary.
_TEMPORARY = ("Throttling", "ThrottlingException", "RequestTimeout", "InternalFailure")


def partition_of(site: Site) -> str:
    """The part of AWS that ARNs name, such as ``aws-us-gov``: the role's, else the region's."""
    if named := _PARTITION.match(site.aws.node_role_arn or ""):
        return named.group(1)
    region = site.aws.region
    try:
        found = region and botocore.session.Session().get_partition_for_region(region)
    except BotoCoreError:
        found = None  # it is not a region
    return found or "aws"


def session_policy(site: Site, job_id: JobId) -> dict[str, Any]:
    """What the job's workers may do, as an IAM policy; well below its 2,048 characters."""
    arn = f"arn:{partition_of(site)}"
    bucket = f"{arn}:s3:::{site.bucket}"
    root = JobPaths(site.prefix, job_id).root
    table = f"{arn}:dynamodb:*:*:table/{site.storage.table}"
    rows = [keys.job_pk(job_id), f"{keys.job_pk(job_id)}#*", keys.limit_pk("*", "*")]
    written, readable = [f"{bucket}/{root}*"], [f"{bucket}/{root}*"]
    if (merged := keys.merged_job(job_id)) is not None:
        # A job that merges reads the parts of another job, and writes that job's dataset.
        written.append(f"{bucket}/{JobPaths(site.prefix, merged).dataset}*")
        readable.append(f"{bucket}/{JobPaths(site.prefix, merged).root}*")
    for address in site.aws.node_read:
        readable += [f"{arn}:s3:::{name}" for name in _objects_at(address)]
    listed = {"StringLike": {"s3:prefix": f"{root}*"}}
    leading = {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": rows}}
    statements: list[tuple[str | list[str], str | list[str], dict[str, Any]]] = [
        ([f"s3:{name}" for name in OBJECT_ACTIONS], written, {}),
        ("s3:GetObject", readable, {}),
        ("s3:ListBucket", bucket, {"Condition": listed}),
        ([f"dynamodb:{name}" for name in TABLE_ACTIONS], table, {"Condition": leading}),
    ]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": resource, **condition}
            for actions, resource, condition in statements
        ],
    }


def _objects_at(address: str) -> list[str]:
    """An S3 address as IAM names it: the object of that key, and those in the folder of that name.

    An object whose key only begins with that name is neither.
    """
    bucket, key = split_s3_uri(address, "aws.node_read")
    # IAM reads these characters as wildcards, or as the start of a variable.
    exact = re.sub(r"[*?$]", lambda found: f"${{{found.group()}}}", key)
    folder = f"{bucket}/{exact}/*" if key else f"{bucket}/*"
    return [folder] if address.endswith("/") or not key else [f"{bucket}/{exact}", folder]


def put_credentials(services: Services, job_id: JobId, *, folder: str = "") -> dict[str, str]:
    """Put new credentials for the job on the cluster; return the variables that name them.

    If the site names no role for nodes, this does nothing and returns no variables. One exception:
    the embedded cluster's workers get this process's own credentials, if these come from its
    environment or from Airflow's connection, as the workers could not find those.

    `folder` is that of the job's submissions, if it does not have the job's name.

    Raises:
        UserError: if the role can't be assumed.
        ServiceError: if STS or the cluster can't be reached; calling again may help.
    """
    role = services.site.aws.node_role_arn
    document = _mint(services, job_id, role) if role else _our_own(services)
    if not document:
        return {}
    place = folder or job_id
    path = services.slurm.put_secret(place, _DOCUMENT, document)
    config = f"[default]\ncredential_process = cat {shlex.quote(path)}\n"
    return {
        "AWS_CONFIG_FILE": services.slurm.put_secret(place, _CONFIG, config.encode()),
        # The account's own credentials would come first.
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_PROFILE": "default",
    }


def _our_own(services: Services) -> bytes:
    """The document with this process's credentials; empty if workers find some themselves."""
    embedded = services.site.cluster.transport == "embedded"
    found = services.credentials() if embedded else None
    if found is None or found.method not in _OF_THIS_PROCESS:
        return b""
    own = found.get_frozen_credentials()
    token = {"SessionToken": own.token} if own.token else {}
    pair = {"AccessKeyId": own.access_key, "SecretAccessKey": own.secret_key}
    return json.dumps({"Version": 1, **pair, **token}).encode()


def _mint(services: Services, job_id: JobId, role: str) -> bytes:
    """The document that ``credential_process`` must print."""
    try:
        minted = services.sts().assume_role(
            RoleArn=role,
            RoleSessionName=f"slurm-{job_id}"[:64],
            Policy=json.dumps(session_policy(services.site, job_id), separators=(",", ":")),
            DurationSeconds=LIFETIME_S,
        )["Credentials"]
    except ClientError as error:
        found = refused("STS", error, "aws.sts_endpoint_url")
        if isinstance(found, (NoCredentials, WrongClock)):
            raise found from error
        code = error.response["Error"]["Code"]
        if code in _TEMPORARY:
            raise ServiceError(f"STS: {code}", "try again") from error
        raise UserError(
            f"aws.node_role_arn: {role!r} can't be assumed ({code}: "
            f"{error.response['Error'].get('Message', '')})",
            "correct it, or its trust policy",
        ) from error
    except UNANSWERED as error:
        raise unanswered("STS", error, "aws.sts_endpoint_url and the network") from error
    own = {name: minted[name] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")}
    expiration = minted["Expiration"].isoformat()
    return json.dumps({"Version": 1, **own, "Expiration": expiration}).encode()
