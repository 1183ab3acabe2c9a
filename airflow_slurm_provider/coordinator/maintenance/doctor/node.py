"""A check of a node: a real job of one worker that examines its node and ends.

It uses what every worker uses: the same client, batch script, environment, credentials and file.
So it fails where they would fail. It has a timeout, and concludes nothing where no node is free. It
leaves nothing behind. Cost: one short job, a ``squeue`` and ``sacct`` per second.
"""

from __future__ import annotations

import json
import re
import shlex
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from airflow_slurm_provider.coordinator.maintenance.doctor.aws import judge_clock, judge_probes
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.credentials import put_credentials
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import quote, render_script
from airflow_slurm_provider.units import format_size
from slurm_worker.diagnostics.access_probes import PROBE_JOB, AccessProbe

#: Options on where and how workers run; the probe ignores the others.
_KEPT = (
    *("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude"),
    *("mem", "mem_per_cpu", "gres", "licenses", "extra_args", "setup", "command_prefix"),
)
_LIMIT_MINUTES = "5"
_POLL_S = 1.0
#: Seconds until a file that a node wrote is visible on the login node.
_VISIBLE_WITHIN_S = 15.0
_LINES = 200
_OLDEST_PYTHON = (3, 10)
#: Printed by Python on the node, before the worker is tried.
_PYTHON = "slurmctl-doctor-python"
_SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "ceph", "fuse", "afs", "9p", "panfs")
_LEAST_FREE = 1 << 30
_POLICY = (
    "give the node credentials with the policy that slurmctl doctor --iam prints: a profile or "
    "instance role of the account on the nodes, or aws.node_role_arn in the site"
)


@dataclass(frozen=True, slots=True)
class ProbeOutput:
    """What the probe wrote, empty where nothing is visible, and its states in Slurm."""

    text: str
    states: str


def check_node(services: Services, options: SlurmOptions, timeout_s: float) -> Iterator[Finding]:
    """Run the probe, which must end within `timeout_s`, and judge its output; see `judge`.

    Raises:
        UserError: if Slurm refuses the job, with its error text.
        ServiceError: if the cluster can't be reached.
    """
    # Also the name of its folder, so that two probes at the same time have two folders.
    name = f"{PROBE_JOB}.{uuid.uuid4().hex[:12]}"
    survey = services.slurm.survey()
    try:
        output = _run(services, name, _script(services, options, name), timeout_s)
    finally:
        survey.remove(name)
    if isinstance(output, Finding):
        yield output
    else:
        yield from judge(output, services.site.cluster.python, services.site.cluster.worker_command)


def probe_options(options: SlurmOptions | None) -> SlurmOptions:
    """The probe's options: where a job's workers would run, for some minutes."""
    kept = {} if options is None else {name: getattr(options, name) for name in _KEPT}
    return SlurmOptions.from_mapping({**kept, "time": _LIMIT_MINUTES})


def judge(output: ProbeOutput, python: str, worker_command: str | None) -> list[Finding]:
    """The findings on the node; `worker_command` is what the site runs instead of `python`."""
    document = _document(output.text)
    where = f" on {document['host']}" if document else ""
    findings = [Finding("node_job", Level.PASS, f"a job ran{where} ({output.states})")]
    if not output.text:
        found = "the job ran, but its output is not visible on the login node"
        fix = "set cluster.remote_dir to a folder that the login node and the nodes share"
        return [*findings, Finding("node_folder", Level.FAIL, found, fix)]
    findings.append(Finding("node_folder", Level.PASS, "remote_dir is shared with the nodes"))
    version = document["python"] if document else _python_version(output.text)
    if document or not worker_command:
        findings.append(_judge_python(version, python))
    if findings[-1].level is Level.FAIL:
        return findings
    if document is None:
        found = f"the worker did not start: {_last_words(output.text)}"
        fix = "run it by hand on a node; if TMPDIR is the cause, set another one in slurm.setup"
        return [*findings, Finding("node_worker", Level.FAIL, found, fix)]
    return [*findings, *_judge_document(document)]


def _script(services: Services, options: SlurmOptions, name: str) -> str:
    cluster = services.site.cluster
    command = [
        *shlex.split(upload.upload_worker(services)),
        *("check", "--table", services.site.storage.table),
        *("--objects", f"s3://{services.site.bucket}/{services.site.prefix}".rstrip("/")),
    ]
    environment = {
        **services.site.aws.environment(),
        **put_credentials(services, PROBE_JOB, folder=name),
    }
    setup = options.setup
    if not cluster.worker_command:
        code = f"import sys; print('{_PYTHON}', '.'.join(map(str, sys.version_info[:3])))"
        words = [*options.command_prefix, cluster.python, "-c", code]
        setup = (*setup, " ".join(map(quote, words)))
    options = replace(options, setup=setup)
    return render_script(options, name=name, workers=1, command=command, environment=environment)


def _run(services: Services, name: str, script: str, timeout_s: float) -> ProbeOutput | Finding:
    slurm, clock = services.slurm, services.clock
    began = clock.boot_time()

    def written() -> str:
        return slurm.output(name, name, 0, _LINES)

    try:
        job = ArrayKey(slurm.submit(name, script, folder=name), name)
        while (array := slurm.array(job)).alive or (array.unknown and not written()):
            if clock.boot_time() - began > timeout_s:
                return _not_in_time(array, timeout_s)
            clock.sleep(_POLL_S)
    finally:
        slurm.end(name, folder=name)
    ended = clock.boot_time()
    while not (text := written()) and clock.boot_time() - ended < _VISIBLE_WITHIN_S:
        clock.sleep(_POLL_S)
    states = ", ".join(sorted(array.counts())) or "ended"
    return ProbeOutput(text, states)


def _not_in_time(array: ArrayState, timeout_s: float) -> Finding:
    if "PENDING" not in array.counts():
        states = ", ".join(sorted(array.counts())) or "lost"
        found = f"a job has not ended within {timeout_s:g} s ({states})"
        fix = "check what hangs on the node; slurmctl doctor --timeout allows more time"
        return Finding("node_job", Level.FAIL, found, fix)
    reasons = (element.reason for element in array.elements.values())
    reason = next(filter(None, reasons), "no reason given")
    found = f"not checked: no node was free within {timeout_s:g} s (Slurm's reason: {reason})"
    fix = "try again later, with a longer --timeout, or with --config of a job of another partition"
    return Finding("node_job", Level.SKIP, found, fix)


def _judge_python(version: str, python: str) -> Finding:
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    fix = (
        f"set cluster.python to a Python >= {oldest}, or load one in slurm.setup "
        "(module load python)"
    )
    if not version:
        return Finding("node_python", Level.FAIL, f"{python!r} does not run on the node", fix)
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_PYTHON:
        found = f"{python!r} is Python {version} on the node; workers need {oldest}"
        return Finding("node_python", Level.FAIL, found, fix)
    return Finding("node_python", Level.PASS, f"Python {version}")


def _judge_document(document: dict[str, Any]) -> Iterator[Finding]:
    yield _judge_scratch(document)
    fixes: dict[str, str] = document.get("fixes", {})
    for check, name in (("node_table", "table"), ("node_bucket", "bucket")):
        probes = [
            AccessProbe(action, error, fixes.get(action, ""))
            for action, error in document.get(name, {}).items()
        ]
        yield judge_probes(check, probes, _POLICY)
    if "clock_ahead_s" in document:
        yield judge_clock("node_clock", f"node {document['host']}", document["clock_ahead_s"])
    else:
        found = document.get("clock_error", "the node did not report the time")
        yield Finding("node_clock", Level.FAIL, found, fixes.get("clock", "see node_table"))


def _judge_scratch(document: dict[str, Any]) -> Finding:
    scratch = document["scratch"]
    fix = "set TMPDIR to a folder on the node's own disk, in slurm.setup: export TMPDIR=/local"
    if "scratch_error" in document:
        found = f"scratch {scratch} can't be written: {document['scratch_error']}"
        return Finding("node_scratch", Level.FAIL, found, fix)
    kind, free = document.get("scratch_filesystem", ""), document["scratch_free_bytes"]
    if kind.partition(".")[0] in _SHARED:
        found = f"scratch {scratch} is on {kind}, where SQLite's locks are slow or broken"
        return Finding("node_scratch", Level.FAIL, found, fix)
    size = f"{format_size(free)} free"
    if free < _LEAST_FREE:
        found = f"scratch {scratch} has {size}; journals and parts of running tasks go there"
        return Finding("node_scratch", Level.WARN, found, fix)
    return Finding("node_scratch", Level.PASS, f"scratch {scratch} ({kind or 'local'}), {size}")


def _document(text: str) -> dict[str, Any] | None:
    """The line that the worker printed, among the output of `setup`."""
    for line in reversed(text.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and "scratch" in found:
                return found
    return None


def _python_version(text: str) -> str:
    match = re.search(rf"^{_PYTHON} (\S+)", text, re.MULTILINE)
    return match.group(1) if match else ""


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(line for line in lines[-3:] if not line.startswith(_PYTHON)) or "no output"
