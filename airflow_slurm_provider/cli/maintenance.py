"""`slurmctl bootstrap`, `doctor` and `gc`: create, check, repair and clean up a site."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, command, job_argument, job_option, seconds
from airflow_slurm_provider.cli.rendering.output import Fields, emit, say, show
from airflow_slurm_provider.units import format_count, parse_duration
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.maintenance.bootstrap import Step
    from airflow_slurm_provider.coordinator.maintenance.doctor import Finding
    from airflow_slurm_provider.coordinator.maintenance.gc import GcResult
    from airflow_slurm_provider.coordinator.maintenance.repair import RepairResult
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "cyan"}
_LEVELS = {"pass": "passed", "warn": "warnings", "fail": "failed", "skip": "not checked"}
_OUTCOMES = {
    "there": ("exists", "green"),
    "made": ("created", "green"),
    "would_make": ("would create", "cyan"),
    "differs": ("differs", "yellow"),
    "unsupported": ("unsupported", "yellow"),
    "missing": ("missing", "red"),
    "unfit": ("unusable", "red"),
}


@command(
    "slurmctl bootstrap --create-bucket --dry-run",
    "slurmctl bootstrap --create-bucket --point-in-time",
)
@click.option("--create-bucket", "bucket", is_flag=True, help="Create the bucket too.")
@click.option(
    "--point-in-time", is_flag=True, help="Enable point-in-time recovery of the table (35 days)."
)
@click.option("--deletion-protection", is_flag=True, help="Protect the table against deletion.")
@click.option("--update", is_flag=True, help="Also change existing settings that differ.")
@click.option("--dry-run", is_flag=True, help="Show what would be created, and change nothing.")
def bootstrap(common: Common, **wanted: bool) -> int:
    """Create the site's table and bucket, with lifecycle rules, if they are missing.

    Existing settings stay as they are. Settings that differ are listed, and changed only with
    --update. Nothing is ever deleted. Exits with 1 if jobs can't run with the result.
    """
    from airflow_slurm_provider.coordinator.maintenance import bootstrap as site_setup
    from airflow_slurm_provider.coordinator.spec.site import load_site

    def log(step: Step) -> None:
        word, colour = _OUTCOMES[step.outcome.value]
        _show_step(common, f"{word:12}", colour, f"{step.name}: {step.found}", step.fix)

    request = site_setup.BootstrapRequest(**wanted)
    made = site_setup.bootstrap(load_site(common.site), request, log=log)
    counts = {_OUTCOMES[outcome][0]: count for outcome, count in made.counts.items()}
    summary = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    emit(common.as_json, made.to_dict(), summary)
    return 0 if made.ok else 1


@command(
    "slurmctl doctor --config config.yaml", "slurmctl doctor --repair --job flights-2013 --dry-run"
)
@job_option("--job", "Check from a node of this job's partition, with its setup.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Like --job, for a config that is not yet submitted.",
)
@click.option("--node/--no-node", default=True, help="Also check from a node, with a short job.")
@seconds("--timeout", "Longest wait for the check from a node.", 60.0, least=1)
@click.option("--iam", is_flag=True, help="Only print the IAM policies that the site needs.")
@click.option("--repair", is_flag=True, help="Rebuild the table rows of --job from S3.")
@click.option("--dry-run", is_flag=True, help="With --repair: change nothing.")
def doctor(
    common: Common,
    job: JobId | None,
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
    if job is not None and config is not None:
        raise UserError("--config: can't be used with --job; give only one of them")
    if dry_run and not repair:
        raise UserError("--dry-run: needs --repair; without it, doctor changes nothing")
    if iam:
        return _print_policies(common)
    if repair:
        if job is None:
            raise UserError("--repair: needs a job; add --job JOB")
        return _repair(common, job, dry_run)
    return _diagnose(common, _reader(job, config), node, timeout)


@command("slurmctl gc flights-2013 --dry-run")
@job_argument
@click.option(
    "--older-than",
    metavar="AGE",
    default="7d",
    show_default=True,
    help="Age after which a replaced version of the dataset is deleted: 90m, 12h, 7d.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and change nothing.")
def gc(common: Common, job: JobId, older_than: str, dry_run: bool) -> int:
    """Delete objects that JOB no longer needs: uncommitted parts, checkpoints, old datasets.

    Never touches objects that a marker or the published manifest names, nor the version of the
    dataset before the published one.
    """
    age_s = _age(older_than)
    from airflow_slurm_provider.coordinator.maintenance.gc import collect

    with common.services() as services:
        found = collect(
            services, job, older_than_s=age_s, dry_run=dry_run, log=say, actor=common.actor
        )
    return emit(common.as_json, found.to_dict(), _deleted_fields(found))


def _diagnose(
    common: Common, job: Callable[[Services], JobSpec] | None, node: bool, timeout: float
) -> int:
    from airflow_slurm_provider.coordinator.maintenance.doctor import diagnose
    from airflow_slurm_provider.coordinator.spec.site import load_site

    def log(finding: Finding) -> None:
        level = finding.level.value
        head, text = f"{level:4}", f"{finding.check}: {finding.found}"
        _show_step(common, head, _COLOURS[level], text, finding.fix)

    report = diagnose(load_site(common.site), job=job, probe=node, timeout_s=timeout, log=log)
    summary = ", ".join(f"{count} {_LEVELS[level]}" for level, count in report.counts.items())
    emit(common.as_json, report.to_dict(), summary)
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
    text = "\n".join(f"# {role}\n{json.dumps(policy, indent=2)}" for role, policy in found.items())
    return emit(common.as_json, found, text)


def _repair(common: Common, name: JobId, dry_run: bool) -> int:
    from airflow_slurm_provider.coordinator.maintenance.repair import repair

    with common.services() as services:
        found = repair(services, name, dry_run=dry_run, log=say, actor=common.actor)
    return emit(common.as_json, found.to_dict(), _repaired_fields(found))


def _show_step(common: Common, head: str, colour: str, text: str, fix: str) -> None:
    """Print a step at once, with its fix below it; nothing with ``--json``."""
    if common.as_json:
        return
    show(f"  {text}", head=head, colour=colour)
    if fix:
        show(f"{' ' * len(head)}  fix: {fix}")


def _repaired_fields(found: RepairResult) -> Fields:
    if not found.changed:
        state = "consistent with S3: nothing to do"
    else:
        state = "would be repaired (dry run)" if found.dry_run else "repaired"
    return [
        ("job", found.job_id),
        ("rows", state),
        *([("rebuilt", "the job's own row")] if found.job else []),
        *([("rounds rebuilt", ", ".join(map(str, found.rounds)))] if found.rounds else []),
        *([("submissions rebuilt", ", ".join(found.submissions))] if found.submissions else []),
        ("tasks rebuilt", format_count(found.tasks)),
        ("marked done from their markers", format_count(found.completed)),
        *(("can't be rebuilt", what) for what in found.unrepaired),
    ]


def _age(text: str) -> float:
    # No milliseconds: 10ms for 10m would delete versions that somebody reads.
    if not re.fullmatch(r"\d+[smhd]", text.lower()):
        raise UserError(f"--older-than: {text!r} is not an age; write 90m, 12h or 7d")
    return parse_duration(text.lower())


def _deleted_fields(found: GcResult) -> Fields:
    verb = "would delete" if found.dry_run else "deleted"
    fields = [
        ("job", found.job_id),
        (verb, f"{found.objects.total():,} objects, {found.sizes.total():,} bytes"),
    ]
    for kind, count in sorted(found.objects.items()):
        fields.append((kind, f"{count:,} objects, {found.sizes[kind]:,} bytes"))
    if not found.complete:
        fields.append(("note", "the job is not complete; run gc again when it is"))
    return fields
