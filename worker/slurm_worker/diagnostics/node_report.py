"""What this node offers, as one JSON document, for people and for `slurmctl doctor`.

Loads all that a worker needs. Where a table and a bucket are named, tries each action on them
that workers need, with the node's own credentials; see `access_probes`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from slurm_worker import __version__
from slurm_worker.backends import dynamodb, s3
from slurm_worker.backends.clock import AwsClock
from slurm_worker.diagnostics import access_probes
from slurm_worker.diagnostics.access_probes import AccessProbe
from slurm_worker.errors import ServiceError, problem_and_fix
from slurm_worker.private import check_folder
from slurm_worker.protocol.keys import split_s3_uri

_MOUNTS = Path("/proc/self/mountinfo")


def examine(scratch: Path, table: str, uri: str) -> dict[str, Any]:
    """The document; its names are stable.

    `scratch` is the node-local folder that a worker would use; jobs are stored below `uri` on S3.
    Without `table` or `uri` nothing is tried there. ``fixes`` has what to do about an error that
    says so, by action, and of ``clock_error`` as ``clock``.
    """
    found: dict[str, Any] = {
        "worker": __version__,
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "pyarrow": importlib.util.find_spec("pyarrow") is not None,
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        **_scratch(scratch),
    }
    fixes: dict[str, str] = {}
    unique = uuid.uuid4().hex
    if table:
        client = dynamodb.dynamo_client()
        rows = dynamodb.DynamoRows(client, table, AwsClock())
        found["table"] = _errors(access_probes.probe_table(rows, unique), fixes)
        try:
            found["clock_ahead_s"] = access_probes.clock_ahead(client.meta.endpoint_url)
        except ServiceError as error:
            found["clock_error"], fixes["clock"] = problem_and_fix(error)
    if uri:
        bucket, prefix = split_s3_uri(uri, "--objects")
        objects = s3.S3Objects(s3.s3_client(), bucket)
        found["bucket"] = _errors(access_probes.probe_bucket(objects, prefix, unique), fixes)
    return {**found, "fixes": fixes} if fixes else found


def filesystem_of(path: Path, mounts: str) -> str:
    """The type of the file system that an absolute path is on; empty where it is not known.

    `mounts` is the text of ``/proc/self/mountinfo``.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        mount, _, after = line.partition(" - ")
        point = Path(mount.split()[4].encode().decode("unicode_escape"))
        # Of several mounts at one place the last one is visible.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _errors(probes: list[AccessProbe], fixes: dict[str, str]) -> dict[str, str]:
    """The error of each action; adds the errors' own fixes."""
    fixes.update((probe.action, probe.fix) for probe in probes if probe.fix)
    return {probe.action: probe.error for probe in probes}


def _scratch(scratch: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"scratch": str(scratch)}
    try:
        check_folder(scratch)
        with tempfile.TemporaryFile(dir=scratch) as file:
            file.write(b"tried")
        found["scratch_free_bytes"] = shutil.disk_usage(scratch).free
    except OSError as error:
        found["scratch_error"] = str(error)
    if _MOUNTS.is_file():
        found["scratch_filesystem"] = filesystem_of(scratch.absolute(), _MOUNTS.read_text())
    return found
