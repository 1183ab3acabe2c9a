"""The checks of `slurmctl doctor`, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from airflow_slurm_provider.coordinator import services as opening
from airflow_slurm_provider.coordinator.maintenance.doctor import aws, cluster, node
from airflow_slurm_provider.coordinator.maintenance.doctor.aws import AwsProbes
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level, Report
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.site import Site
from airflow_slurm_provider.slurm.client import SlurmClient

#: Seconds within which the probe job must have ended.
TIMEOUT_S = 60.0

Check = Callable[[], Iterable[Finding]]


@dataclass(slots=True)
class _Checklist:
    """Runs checks one after the other, and keeps their findings.

    Args:
        log: gets each finding when it is made.
    """

    log: Callable[[Finding], None]
    findings: list[Finding] = field(default_factory=list)

    def make(self, name: str, needs: tuple[str, ...], fix: str, check: Check) -> None:
        """Run a check, unless one that it needs has failed.

        Args:
            name: the check's, for a skip or an error.
            needs: checks that must have passed.
            fix: what to do where its error does not say.
            check: yields findings.
        """
        missing = [need for need in needs if not self._passed(need)]
        if missing:
            self._add(Finding(name, Level.SKIP, f"not checked: {missing[0]} has not passed"))
            return
        try:
            for finding in check():
                self._add(finding)
        except Exception as error:
            # Whatever it is, the other checks continue.
            self._add(Finding.of_error(name, error, fix))

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
    """Check a site.

    Args:
        site: the site.
        job: reads a job; the probe uses its partition, account and setup.
        probe: whether to check a node, by a short job.
        timeout_s: seconds for that.
        log: gets each finding when it is made.
        open_services: opens the site's edges.
        probes: the requests beside those of the services.
    """
    checklist = _Checklist(log)
    opened: list[Services] = []
    specs: list[JobSpec] = []

    def open_all() -> Iterable[Finding]:
        opened.append((open_services or opening.open_services)(site))
        yield Finding("aws", Level.PASS, f"region {site.aws.region or 'of the environment'}")

    def read_job() -> Iterable[Finding]:
        assert job is not None, "run only where there is one"
        specs.append(job(opened[0]))
        yield _of_job(specs[0])

    checklist.make("aws", (), "correct the site's aws section or AWS_* variables", open_all)
    if job is not None:
        checklist.make("job", ("aws",), "name a job of this table", read_job)
    spec = specs[0] if specs else None
    services: Services | None = None
    if opened:
        services, slurm = opened[0], opened[0].slurm
    else:
        slurm = SlurmClient(opening.open_transport(site.cluster), site.cluster.remote_dir)
    try:
        _examine_cluster(checklist, site, slurm, spec)
        if services is not None:
            _examine_aws(checklist, services, probes or AwsProbes.of(site))
            if probe:
                _examine_node(checklist, services, spec, timeout_s)
    finally:
        slurm.close()
    return Report(tuple(checklist.findings))


def _of_job(spec: JobSpec) -> Finding:
    partition = spec.slurm_options.partition or "the default partition"
    return Finding("job", Level.PASS, f"{spec.job_id}: {spec.workers:,} workers in {partition}")


def _examine_cluster(
    checklist: _Checklist, site: Site, slurm: SlurmClient, spec: JobSpec | None
) -> None:
    survey = slurm.survey()
    workers, partition = (0, None) if spec is None else (spec.workers, spec.slurm_options.partition)
    checklist.make(
        "ssh",
        (),
        "check cluster.host, port, user and key_file",
        lambda: cluster.check_login(slurm, site.cluster),
    )
    checklist.make(
        "slurm",
        ("ssh",),
        "make sbatch available to non-interactive shells of the login node",
        lambda: cluster.check_version(slurm),
    )
    checklist.make(
        "limits",
        ("slurm",),
        "let the account run scontrol show config",
        lambda: cluster.check_limits(survey, workers, partition),
    )
    checklist.make(
        "variables",
        ("ssh",),
        "unset them in the account's start-up files",
        lambda: cluster.check_variables(survey),
    )
    checklist.make(
        "accounting",
        ("slurm",),
        "make sacct available to non-interactive shells of the login node",
        lambda: cluster.check_accounting(survey),
    )
    checklist.make(
        "remote_dir",
        ("ssh",),
        "name a folder of the account's own in cluster.remote_dir",
        lambda: cluster.check_folder(survey),
    )


def _examine_aws(checklist: _Checklist, services: Services, probes: AwsProbes) -> None:
    table = services.site.storage.table
    endpoint = "check the endpoints in the site's aws section, the region and the network"
    checklist.make("clock", ("aws",), endpoint, lambda: aws.check_clock(probes))
    checklist.make("table", ("aws",), endpoint, lambda: aws.check_table(probes, table))
    checklist.make("table_access", ("table",), endpoint, lambda: aws.check_table_access(services))
    checklist.make("bucket", ("aws",), endpoint, lambda: aws.check_bucket(services))
    checklist.make(
        "bucket_access", ("bucket",), endpoint, lambda: aws.check_bucket_access(services)
    )
    checklist.make(
        "conditional_put",
        ("bucket", "bucket_access"),
        endpoint,
        lambda: aws.check_conditional_put(services),
    )


def _examine_node(
    checklist: _Checklist, services: Services, spec: JobSpec | None, timeout_s: float
) -> None:
    options = node.probe_options(None if spec is None else spec.slurm_options)
    checklist.make(
        "node_job",
        ("slurm", "remote_dir"),
        "correct the slurm section of the job",
        lambda: node.check_node(services, options, timeout_s),
    )
