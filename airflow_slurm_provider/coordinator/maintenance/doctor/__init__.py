"""`slurmctl doctor`: checks what a job needs. Each check reports what it found and how to fix it.

A check is skipped when a check that it needs has failed, so each fault is reported once
(`_CHECKS` has the table). A check that raises has failed with that error, and the others continue.
Nothing is changed or left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from airflow_slurm_provider.coordinator import services as opening
from airflow_slurm_provider.coordinator.maintenance.doctor import aws, cluster, node
from airflow_slurm_provider.coordinator.maintenance.doctor.aws import AwsProbes, policies
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level, Report
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.site import Site
from airflow_slurm_provider.slurm.client import SlurmClient
from slurm_worker.errors import problem_and_fix

__all__ = ["Finding", "Level", "Report", "diagnose", "policies"]

#: Seconds within which the probe job must have ended.
TIMEOUT_S = 60.0
_ENDPOINT = "check the endpoints in the site's aws section, the region and the network"
#: By check: the checks that must have passed, and what to do where its error does not say.
_CHECKS = {
    "aws": ("", "correct the site's aws section or AWS_* variables"),
    "job": ("aws", "name a job of this table"),
    "ssh": ("", "check cluster.host, port, user and key_file"),
    "slurm": ("ssh", "make sbatch available to non-interactive shells of the login node"),
    "limits": ("slurm", "let the account run scontrol show config"),
    "variables": ("ssh", "unset them in the account's start-up files"),
    "accounting": ("slurm", "make sacct available to non-interactive shells of the login node"),
    "remote_dir": ("ssh", "name a folder of the account's own in cluster.remote_dir"),
    "clock": ("aws", _ENDPOINT),
    "table": ("aws", _ENDPOINT),
    "table_access": ("table", _ENDPOINT),
    "bucket": ("aws", _ENDPOINT),
    "bucket_access": ("bucket", _ENDPOINT),
    "conditional_put": ("bucket bucket_access", _ENDPOINT),
    "node_job": ("slurm remote_dir", "correct the slurm section of the job"),
}


@dataclass(slots=True)
class _Checklist:
    """Runs checks one after the other, and keeps their findings; `log` gets each finding."""

    log: Callable[[Finding], None]
    findings: list[Finding] = field(default_factory=list)

    def make(self, name: str, check: Callable[[], Iterable[Finding]]) -> None:
        """Run a check, unless one that it needs has failed."""
        needs, fix = _CHECKS[name]
        missing = [need for need in needs.split() if not self._passed(need)]
        if missing:
            self._add(Finding(name, Level.SKIP, f"not checked: {missing[0]} has not passed"))
            return
        try:
            for finding in check():
                self._add(finding)
        except Exception as error:
            # Whatever it is, the other checks continue.
            found, own = problem_and_fix(error)
            self._add(Finding(name, Level.FAIL, found, own or fix))

    def _passed(self, name: str) -> bool:
        return any(
            finding.check == name and finding.level in (Level.PASS, Level.WARN)
            for finding in self.findings
        )

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.log(finding)


def diagnose(
    site: Site,
    *,
    job: Callable[[Services], JobSpec] | None = None,
    probe: bool = True,
    timeout_s: float = TIMEOUT_S,
    log: Callable[[Finding], None] = lambda _: None,
    open_services: Callable[[Site], Services] | None = None,
    probes: AwsProbes | None = None,
) -> Report:
    """Check a site; `log` gets each finding when it is made.

    `job` reads a job, whose partition, account and setup the probe uses. With `probe`, a short job
    checks a node; it must end within `timeout_s`.
    """
    checklist = _Checklist(log)
    opened: list[Services] = []
    specs: list[JobSpec] = []

    def open_all() -> Iterable[Finding]:
        opened.append((open_services or opening.open_services)(site))
        yield Finding("aws", Level.PASS, f"region {site.aws.region or 'of the environment'}")

    def read_job(job: Callable[[Services], JobSpec]) -> Iterable[Finding]:
        spec = job(opened[0])
        specs.append(spec)
        where = spec.slurm_options.partition or "the default partition"
        yield Finding("job", Level.PASS, f"{spec.job_id}: {spec.workers:,} workers in {where}")

    checklist.make("aws", open_all)
    if job is not None:
        checklist.make("job", lambda: read_job(job))
    spec = specs[0] if specs else None
    services = opened[0] if opened else None
    if services is None:
        slurm = SlurmClient(opening.open_transport(site.cluster), site.cluster.remote_dir)
    else:
        slurm = services.slurm
    try:
        _examine_cluster(checklist, site, slurm, spec)
        if services is not None:
            _examine_aws(checklist, services, probes or AwsProbes.of(site))
            if probe:
                options = node.probe_options(None if spec is None else spec.slurm_options)
                checklist.make("node_job", lambda: node.check_node(services, options, timeout_s))
    finally:
        slurm.close()
    return Report(tuple(checklist.findings))


def _examine_cluster(
    checklist: _Checklist, site: Site, slurm: SlurmClient, spec: JobSpec | None
) -> None:
    survey = slurm.survey()
    workers, partition = (0, None) if spec is None else (spec.workers, spec.slurm_options.partition)
    checklist.make("ssh", lambda: cluster.check_login(slurm, site.cluster))
    checklist.make("slurm", lambda: cluster.check_version(slurm))
    checklist.make("limits", lambda: cluster.check_limits(survey, workers, partition))
    checklist.make("variables", lambda: cluster.check_variables(survey))
    checklist.make("accounting", lambda: cluster.check_accounting(survey))
    checklist.make("remote_dir", lambda: cluster.check_folder(survey))


def _examine_aws(checklist: _Checklist, services: Services, probes: AwsProbes) -> None:
    checklist.make("clock", lambda: [aws.judge_clock("clock", "this machine", probes.ahead_s())])
    checklist.make("table", lambda: aws.check_table(probes, services.site.storage.table))
    checklist.make("table_access", lambda: aws.check_table_access(services))
    checklist.make("bucket", lambda: aws.check_bucket(services))
    checklist.make("bucket_access", lambda: aws.check_bucket_access(services, probes))
    checklist.make("conditional_put", lambda: aws.check_conditional_put(services))
