"""The checks of `slurmctl doctor`, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from airflow_slurm_provider.coordinator import services as opening
from airflow_slurm_provider.coordinator.maintenance.doctor import aws, cluster, node
from airflow_slurm_provider.coordinator.maintenance.doctor.aws import AwsFacts
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level, Report
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.site import Site
from airflow_slurm_provider.slurm.client import SlurmClient

#: How long a job may take until it has told what its node is like.
TIMEOUT_S = 60.0

Check = Callable[[], Iterable[Finding]]


@dataclass(slots=True)
class _Examination:
    """Makes checks one after the other, and keeps what they find.

    Args:
        log: told of each finding as it is made.
    """

    log: Callable[[Finding], None]
    findings: list[Finding] = field(default_factory=list)

    def make(self, name: str, needs: tuple[str, ...], mend: str, check: Check) -> None:
        """Make a check, unless what it needs has failed.

        Args:
            name: of the check, where it finds nothing else to say.
            needs: checks without which it makes no sense.
            mend: what to do where it raises an error that doesn't say.
            check: yields findings.
        """
        missing = [need for need in needs if not self._passed(need)]
        if missing:
            self._add(Finding(name, Level.SKIP, f"not checked: {missing[0]} comes first"))
            return
        try:
            for finding in check():
                self._add(finding)
        except Exception as error:
            # Whatever it is, the other checks go on.
            self._add(Finding.of_error(name, error, mend))

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
    facts: AwsFacts | None = None,
) -> Report:
    """Examine a site.

    Args:
        site: what is examined.
        job: reads a job, whose partition, account and setup the look from a node takes.
        probe: whether to look from a node, by a short job.
        timeout_s: seconds for that.
        log: told of each finding as it is made.
        open_services: opens the site's edges.
        facts: what those don't tell.
    """
    examination = _Examination(log)
    opened: list[Services] = []
    specs: list[JobSpec] = []

    def open_all() -> Iterable[Finding]:
        opened.append((open_services or opening.open_services)(site))
        yield Finding("aws", Level.PASS, f"region {site.aws.region or 'of the environment'}")

    def read_job() -> Iterable[Finding]:
        assert job is not None, "asked for only where there is one"
        specs.append(job(opened[0]))
        yield _of_job(specs[0])

    examination.make("aws", (), "correct the site's aws section or AWS_* variables", open_all)
    if job is not None:
        examination.make("job", ("aws",), "name a job of this table", read_job)
    spec = specs[0] if specs else None
    services: Services | None = None
    if opened:
        services, slurm = opened[0], opened[0].slurm
    else:
        slurm = SlurmClient(opening.open_transport(site.cluster), site.cluster.remote_dir)
    try:
        _examine_cluster(examination, site, slurm, spec)
        if services is not None:
            _examine_aws(examination, services, facts or AwsFacts.of(site))
            if probe:
                _examine_node(examination, services, spec, timeout_s)
    finally:
        slurm.close()
    return Report(tuple(examination.findings))


def _of_job(spec: JobSpec) -> Finding:
    partition = spec.slurm_options.partition or "the default partition"
    return Finding("job", Level.PASS, f"{spec.job_id}: {spec.workers:,} workers in {partition}")


def _examine_cluster(
    examination: _Examination, site: Site, slurm: SlurmClient, spec: JobSpec | None
) -> None:
    survey = slurm.survey()
    workers, partition = (0, None) if spec is None else (spec.workers, spec.slurm_options.partition)
    examination.make(
        "ssh",
        (),
        "check cluster.host, port, user and key_file",
        lambda: cluster.check_login(slurm, site.cluster),
    )
    examination.make(
        "slurm",
        ("ssh",),
        "make sbatch available to non-interactive shells of the login node",
        lambda: cluster.check_version(slurm),
    )
    examination.make(
        "limits",
        ("slurm",),
        "let the account run scontrol show config",
        lambda: cluster.check_limits(survey, workers, partition),
    )
    examination.make(
        "variables",
        ("ssh",),
        "unset them in the account's start-up files",
        lambda: cluster.check_variables(survey),
    )
    examination.make(
        "accounting",
        ("slurm",),
        "make sacct available to non-interactive shells of the login node",
        lambda: cluster.check_accounting(survey),
    )
    examination.make(
        "remote_dir",
        ("ssh",),
        "name a folder of the account's own in cluster.remote_dir",
        lambda: cluster.check_folder(survey),
    )


def _examine_aws(examination: _Examination, services: Services, facts: AwsFacts) -> None:
    table = services.site.storage.table
    endpoint = "check the endpoints in the site's aws section, the region and the network"
    examination.make("clock", ("aws",), endpoint, lambda: aws.check_clock(facts))
    examination.make("table", ("aws",), endpoint, lambda: aws.check_table(facts, table))
    examination.make("table_access", ("table",), endpoint, lambda: aws.check_table_access(services))
    examination.make("bucket", ("aws",), endpoint, lambda: aws.check_bucket(services))
    examination.make(
        "bucket_access", ("bucket",), endpoint, lambda: aws.check_bucket_access(services)
    )
    examination.make(
        "conditional_put",
        ("bucket", "bucket_access"),
        endpoint,
        lambda: aws.check_conditional_put(services),
    )


def _examine_node(
    examination: _Examination, services: Services, spec: JobSpec | None, timeout_s: float
) -> None:
    options = node.probe_options(None if spec is None else spec.slurm_options)
    examination.make(
        "node_job",
        ("slurm", "remote_dir"),
        "correct the slurm section of the job",
        lambda: node.check_node(services, options, timeout_s),
    )
