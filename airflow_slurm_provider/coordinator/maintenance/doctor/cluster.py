"""Checks of the cluster from its login node: login, Slurm, limits, accounting, the folder."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping

from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level
from airflow_slurm_provider.coordinator.spec.site import ClusterSite
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.cluster_info import Partition, Survey

OLDEST, NEWEST = (20, 11), (25, 11)
#: Seconds within which a worker exits after a signal to stop (docs/architecture.md).
DRAIN_S = 15
_VERSION = re.compile(r"(\d+)\.(\d+)")
_NUMBER = re.compile(r"\d+")
_LEAST_JOBS = 1000

#: Level, what was found, and how to fix it.
Verdict = tuple[Level, str, str]


def check_login(slurm: SlurmClient, cluster: ClusterSite) -> Iterator[Finding]:
    """The login works, and the host key is known."""
    slurm.survey().settings()
    if cluster.transport == "ssh":
        user = f"{cluster.user}@" if cluster.user else ""
        found = f"login to {user}{cluster.host}:{cluster.port} works; its host key is known"
    else:
        found = f"no login is needed with transport {cluster.transport}"
    yield Finding("ssh", Level.PASS, found)


def check_version(slurm: SlurmClient) -> Iterator[Finding]:
    """Slurm is there, and its release was tested."""
    text = slurm.version()
    match = _VERSION.search(text)
    version = (int(match.group(1)), int(match.group(2))) if match else OLDEST
    if "embedded" in text:
        yield Finding("slurm", Level.PASS, text)
    elif version < OLDEST:
        fix = f"upgrade Slurm to {_dotted(OLDEST)} or later"
        yield Finding("slurm", Level.FAIL, f"{text} is older than {_dotted(OLDEST)}", fix)
    elif version > NEWEST:
        fix = "report anything that does not work"
        yield Finding("slurm", Level.WARN, f"{text} is newer than the tested releases", fix)
    else:
        yield Finding("slurm", Level.PASS, text)


def check_limits(survey: Survey, workers: int, partition: str | None) -> Iterator[Finding]:
    """The controller's settings that workers depend on, for a job with `workers` (0: no job)."""
    settings = survey.settings()
    yield _judged(
        "max_array_size", settings, "MaxArraySize", lambda most: _array_size(most, workers)
    )
    yield _judged("max_job_count", settings, "MaxJobCount", lambda most: _job_count(most, workers))
    yield _judged("kill_wait", settings, "KillWait", _kill_wait)
    yield _preemption(settings, _partition(survey.partitions(), partition))
    yield _judged("requeue", settings, "JobRequeue", _requeue)


def check_variables(survey: Survey) -> Iterator[Finding]:
    """Options that the account gives to Slurm's commands by variables are not used."""
    ignored = survey.ignored_variables()
    if ignored:
        found = f"the account sets {', '.join(ignored)}, which are ignored here"
        fix = "set such options in the job's slurm section, for example slurm.account"
        yield Finding("variables", Level.WARN, found, fix)
    else:
        yield Finding("variables", Level.PASS, "the account sets no ignored variables")


def check_accounting(survey: Survey) -> Iterator[Finding]:
    """``sacct`` answers: it shows why workers died, and finds arrays that left the queue."""
    if survey.accounting():
        yield Finding("accounting", Level.PASS, "sacct answers")
    else:
        found = "the site keeps no accounting, so the reason why a worker died is unknown"
        fix = "ask the site for AccountingStorageType=accounting_storage/slurmdbd"
        yield Finding("accounting", Level.WARN, found, fix)


def check_folder(survey: Survey) -> Iterator[Finding]:
    """The account can write into `remote_dir`; the probe checks that nodes see it."""
    folder = survey.try_folder(uuid.uuid4().hex[:8])
    kind = f" ({folder.filesystem})" if folder.filesystem else ""
    if folder.filesystem == "tmpfs":
        fix = "name a folder in cluster.remote_dir that the nodes share"
        found = f"{folder.path} is in the login node's memory"
        yield Finding("remote_dir", Level.WARN, found, fix)
    else:
        yield Finding("remote_dir", Level.PASS, f"{folder.path} can be written{kind}")


def _judged(
    check: str, settings: Mapping[str, str], name: str, judge: Callable[[int], Verdict]
) -> Finding:
    """The finding on a numeric setting; skipped where Slurm does not show it."""
    match = _NUMBER.match(settings.get(name, ""))
    return Finding(check, *judge(int(match.group()))) if match else _unknown(check, name)


def _array_size(most: int, workers: int) -> Verdict:
    if most < 2:
        fix = "ask the site to raise MaxArraySize: workers are submitted as arrays"
        return Level.FAIL, f"MaxArraySize is {most}", fix
    arrays = -(-workers // most)
    more = f": {workers:,} workers become {arrays:,} arrays" if arrays > 1 else ""
    return Level.PASS, f"MaxArraySize is {most:,}{more}", ""


def _job_count(most: int, workers: int) -> Verdict:
    if workers >= most:
        found = f"MaxJobCount is {most:,}, and the job wants {workers:,} workers"
        return Level.FAIL, found, "lower the job's workers"
    if most < _LEAST_JOBS:
        fix = "keep workers well below it, or ask the site to raise it"
        return Level.WARN, f"MaxJobCount is {most:,}, for all users together", fix
    return Level.PASS, f"MaxJobCount is {most:,}", ""


def _kill_wait(wait_s: int) -> Verdict:
    if wait_s < DRAIN_S:
        found = (
            f"KillWait is {wait_s} s, but a worker takes up to {DRAIN_S} s to exit; if it is "
            "killed before, work since its last checkpoint is repeated"
        )
        return Level.WARN, found, f"ask the site for KillWait={2 * DRAIN_S}, Slurm's default"
    return Level.PASS, f"KillWait is {wait_s} s; a worker exits within {DRAIN_S} s", ""


def _requeue(allowed: int) -> Verdict:
    when = "by default" if allowed else "on request, and the batch script requests it"
    return Level.PASS, f"jobs are requeued {when}", ""


def _preemption(settings: Mapping[str, str], partition: Partition | None) -> Finding:
    mode = settings.get("PreemptMode", "").upper()
    if not mode:
        return _unknown("preemption", "PreemptMode")
    if partition is not None and partition.preempt_mode.upper() not in ("", "OFF"):
        mode = partition.preempt_mode.upper()
    grace_s = 0 if partition is None else partition.grace_s
    if mode.startswith("OFF") or settings.get("PreemptType", "").endswith("none"):
        return Finding("preemption", Level.PASS, "jobs are not preempted")
    if "SUSPEND" in mode:
        found = f"PreemptMode is {mode}: a suspended worker loses its leases to other workers"
        fix = "choose a partition or QOS that is not suspended, or use PreemptMode=REQUEUE"
    elif "CANCEL" in mode:
        found = f"PreemptMode is {mode}: preempted workers are not started again by Slurm"
        fix = "wait with slurmctl wait or a sensor, which submit new workers; or use REQUEUE"
    elif grace_s < DRAIN_S:
        found = (
            f"PreemptMode is {mode} with GraceTime {grace_s} s; a worker needs {DRAIN_S} s to exit"
        )
        fix = f"ask the site for GraceTime={2 * DRAIN_S} on the partition or QOS"
    else:
        return Finding("preemption", Level.PASS, f"PreemptMode is {mode}, GraceTime {grace_s} s")
    return Finding("preemption", Level.WARN, found, fix)


def _partition(partitions: list[Partition], name: str | None) -> Partition | None:
    fitting = (p for p in partitions if p.name == name or (name is None and p.default))
    return next(fitting, None)


def _unknown(check: str, name: str) -> Finding:
    return Finding(check, Level.SKIP, f"not checked: scontrol show config does not show {name}")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]:02}"
