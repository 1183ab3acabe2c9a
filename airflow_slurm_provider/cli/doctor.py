"""`slurmctl doctor`: check everything that a job needs, and how to fix what fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.completers import complete_jobs
from airflow_slurm_provider.cli.options import Common, common_options
from airflow_slurm_provider.cli.output import emit, say, show
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.maintenance.doctor import Finding, Report
    from airflow_slurm_provider.coordinator.maintenance.repair import RepairResult
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "cyan"}


@click.command(
    epilog="\b\nExample:\n  slurmctl doctor --config config.yaml\n"
    "  slurmctl doctor --repair --job flights-2013 --dry-run"
)
@click.option(
    "--job",
    metavar="JOB",
    shell_complete=complete_jobs,
    help="Check from a node of this job's partition, with its setup.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The same, for a job before its first submit.",
)
@click.option("--node/--no-node", default=True, help="Also check from a node, with a short job.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait for the check from a node.",
)
@click.option("--iam", is_flag=True, help="Only print the IAM policies that the site needs.")
@click.option("--repair", is_flag=True, help="Rebuild the table rows of --job from S3.")
@click.option("--dry-run", is_flag=True, help="With --repair: change nothing.")
@common_options
def doctor(
    common: Common,
    job: str | None,
    config: Path | None,
    node: bool,
    timeout: float,
    iam: bool,
    repair: bool,
    dry_run: bool,
) -> int:
    """Check login, Slurm, table, bucket, permissions and clocks, here and from a node.

    Exits with 1 if a check fails. Changes nothing, except with --repair: it rebuilds the table
    rows of a job from its objects on S3.
    """
    name = None if job is None else check_job_id(job, "--job")
    if name is not None and config is not None:
        raise UserError("--config: can't be used with --job; give only one of them")
    if dry_run and not repair:
        raise UserError("--dry-run: needs --repair; without it, doctor changes nothing")
    if iam:
        return _print_policies(common)
    if repair:
        if name is None:
            raise UserError("--repair: needs a job; add --job JOB")
        return _repair(common, name, dry_run)
    return _diagnose(common, _reader(name, config), node, timeout)


def _diagnose(
    common: Common,
    job: Callable[[Services], JobSpec] | None,
    node: bool,
    timeout: float,
) -> int:
    from airflow_slurm_provider.coordinator.maintenance.doctor import diagnose
    from airflow_slurm_provider.coordinator.spec.site import load_site

    report = diagnose(
        load_site(common.site),
        job=job,
        probe=node,
        timeout_s=timeout,
        log=_ignore if common.as_json else _show,
    )
    if common.as_json:
        emit(True, report.to_dict(), [])
    else:
        show(_summary(report))
    return 0 if report.ok else 1


def _reader(name: JobId | None, config: Path | None) -> Callable[[Services], JobSpec] | None:
    """A reader of the job's spec; None without a job."""
    if config is not None:
        from airflow_slurm_provider.coordinator.spec.job_spec import load_config

        spec = load_config(config).spec
        return lambda _: spec
    if name is not None:
        from airflow_slurm_provider.coordinator.spec_store import read_spec

        return lambda services: read_spec(services, services.jobs(name).get())
    return None


def _print_policies(common: Common) -> int:
    from airflow_slurm_provider.coordinator.maintenance.doctor import policies
    from airflow_slurm_provider.coordinator.spec.site import load_site

    found = policies(load_site(common.site))
    if common.as_json:
        emit(True, found, [])
    else:
        for role, policy in found.items():
            show(f"# {role}")
            show(json.dumps(policy, indent=2))
    return 0


def _repair(common: Common, name: JobId, dry_run: bool) -> int:
    from airflow_slurm_provider.coordinator.maintenance.repair import repair

    with common.services() as services:
        found = repair(services, name, dry_run=dry_run, log=say, actor=common.actor)
    emit(common.as_json, found.to_dict(), _repaired_fields(found))
    return 0


def _show(finding: Finding) -> None:
    """Print a finding at once, with its fix below it."""
    level = finding.level.value
    show(f"  {finding.check}: {finding.found}", head=f"{level:4}", colour=_COLOURS[level])
    if finding.fix:
        show(f"      fix: {finding.fix}")


def _ignore(finding: Finding) -> None:
    """With --json, everything is printed at the end."""


def _summary(report: Report) -> str:
    words = {"pass": "passed", "warn": "warnings", "fail": "failed", "skip": "not checked"}
    return ", ".join(f"{count} {words[level]}" for level, count in report.counts.items())


def _repaired_fields(found: RepairResult) -> list[tuple[str, str]]:
    job = found.job_id
    if not found.changed:
        state = "consistent with S3: nothing to do"
    else:
        state = "would be repaired (dry run)" if found.dry_run else "repaired"
    return [
        ("job", job),
        ("rows", state),
        *([("rebuilt", "the job's own row")] if found.job else []),
        *([("rounds rebuilt", ", ".join(map(str, found.rounds)))] if found.rounds else []),
        *([("submissions rebuilt", ", ".join(found.submissions))] if found.submissions else []),
        ("tasks rebuilt", format_count(found.tasks)),
        ("marked done from their markers", format_count(found.completed)),
        *(("can't be rebuilt", what) for what in found.unrepaired),
    ]
