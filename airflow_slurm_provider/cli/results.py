"""`slurmctl retry`, `errors` and `aggregate`: failures and results of a job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import (
    Common,
    command,
    complete_jobs,
    error_classes,
    job_argument,
    job_option,
    optional_job,
)
from airflow_slurm_provider.cli.rendering.fields import failure_fields, manifest_fields
from airflow_slurm_provider.cli.rendering.output import Fields, by_class, emit, say
from airflow_slurm_provider.cli.wait_loop import WaitLimits, report_wait, wait_for, wait_limits
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.api import RetryResult
    from airflow_slurm_provider.coordinator.planning.retry_round import RetryPlan
    from airflow_slurm_provider.coordinator.services import Services


@command("slurmctl retry planes-1 --errors=network,timeout --wait")
@optional_job
@job_option("--job-id", "The same as JOB.")
@click.option(
    "--errors",
    metavar="CLASSES",
    help="Error classes, separated by commas. Default: the job's retry policy decides.",
)
@click.option(
    "--items",
    type=click.Path(path_type=Path),
    help="A file with item keys, one per line. Only failed items among them run again.",
)
@click.option("--dry-run", is_flag=True, help="Show what would run again, and change nothing.")
@click.option("--wait", is_flag=True, help="Wait until every task has ended.")
@wait_limits
def retry(
    common: Common,
    job: JobId | None,
    job_id: JobId | None,
    errors: str | None,
    items: Path | None,
    dry_run: bool,
    wait: bool,
    limits: WaitLimits,
) -> int:
    """Run the failed items and tasks of JOB again, as a new round, by error class.

    Uses the handler of the last submit. If you changed it, run slurmctl submit CONFIG first.

    It is safe to run again: a round that was begun is finished before another one starts.
    """
    name, classes = _one_job(job, job_id), error_classes(errors)
    only = None if items is None else _keys(items)
    from airflow_slurm_provider.coordinator import api as verbs

    with common.services() as services:
        if dry_run:
            plan = verbs.plan_retry(services, name, classes, only=only)
            document = {"job_id": name, "dry_run": True, **plan.to_dict()}
            return emit(common.as_json, document, _planned_fields(name, plan, classes))
        retried = verbs.retry(services, name, classes, only=only, log=say, actor=common.actor)
        document = {**retried.to_dict(), "dry_run": False}
        fields = _retried_fields(retried, classes)
        if not wait or retried.round is None:
            return emit(common.as_json, document, fields)
        status = wait_for(services, name, limits)
    return report_wait(common, status, limits, document, fields)


@command("slurmctl errors planes-1 --class network")
@job_argument
@click.option("--class", "error_class", metavar="CLASS", help="Only failures of this class.")
def errors(common: Common, job: JobId, error_class: str | None) -> int:
    """List the failures of JOB, grouped by class and message, with the retry command.

    Messages that differ only in numbers, quoted text, paths or addresses form one group.
    """
    chosen = (error_classes(error_class, "--class") or [""])[0]
    from airflow_slurm_provider.coordinator.status.failures import explain

    with common.services() as services:
        groups = explain(services, job, chosen)
    document = {"job_id": job, "groups": [group.to_dict() for group in groups]}
    return emit(common.as_json, document, [("job", job), *failure_fields(job, groups)])


@command("slurmctl aggregate flights-2013")
@click.argument("jobs", metavar="JOB", nargs=-1, required=True, shell_complete=complete_jobs)
@click.option("-o", "--output", hidden=True)
@click.option("--schema", hidden=True)
@click.option("--sort-by", hidden=True)
@click.option("--partition-by", hidden=True)
@click.option(
    "--where",
    type=click.Choice(["local", "slurm"]),
    help="Merge on this machine, or on the cluster's nodes. Default: as in the job's config.",
)
def aggregate(
    common: Common, /, jobs: tuple[str, ...], where: str | None, **of_files: str | None
) -> int:
    """Publish the results of JOB as one Parquet dataset with a manifest.

    Fails while tasks are missing. Running it again changes nothing. To merge files without a
    job, use slurmctl aggregate-files.
    """
    options = {name: value for name, value in of_files.items() if value is not None}
    if len(jobs) != 1 or options or "/" in jobs[0]:
        output = options.pop("output", "") or "DATASET"
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command = shlex.join(["slurmctl", "aggregate-files", *jobs, "-o", output, *given])
        raise UserError(
            "JOB: aggregate takes one job id; the job's config sets its schema, sort_by and "
            f"partition_by. To merge files, use: {command}"
        )
    name = check_job_id(jobs[0], "JOB")
    from airflow_slurm_provider.coordinator import api as verbs

    with common.services() as services:
        if (where or verbs.merges_where(services, name)) == "slurm":
            submitted = verbs.merge_on_nodes(services, name, log=say, actor=common.actor)
            if submitted is not None and not _merged(services, JobId(submitted.job_id)):
                return 1
        manifest = verbs.aggregate(services, name, log=say, actor=common.actor)
    return emit(common.as_json, manifest, [("job", name), *manifest_fields(manifest)])


def _merged(services: Services, merging: JobId) -> bool:
    """Wait until the nodes have merged; if they can't, false, with the reason on stderr."""
    status = wait_for(services, merging, WaitLimits(interval_s=2.0))
    failed = status.problem or status.progress.failed or status.progress.task_errors
    if failed:
        say(f"the nodes could not merge all files; see slurmctl errors {merging}")
    return not failed


def _one_job(argument: JobId | None, option: JobId | None) -> JobId:
    if argument and option and argument != option:
        raise UserError(f"--job-id: {option!r} differs from JOB {argument!r}; give only one")
    name = argument or option
    if name is None:
        raise UserError("JOB: is missing; give a job id")
    return name


def _keys(path: Path) -> list[str]:
    try:
        # Not `splitlines`, which splits at more characters than a key may not hold.
        keys = path.read_text("utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--items: {path} can't be read ({error}); give a text file") from error
    if keys == [""]:
        raise UserError(f"--items: {path} is empty; write one item key per line")
    return keys


def _round_fields(
    result: RetryPlan | RetryResult,
    job_id: str,
    classes: list[str] | None,
    tasks: str,
    note: str = "",
) -> list[tuple[str, str]]:
    number = "nothing to run again" if result.round is None else str(result.round)
    return [
        ("job", job_id),
        ("round", f"{number}{note}"),
        ("items to run again", by_class(result.items)),
        ("tasks to run again as a whole", tasks),
        ("not selected" if classes else "given up", by_class(result.given_up)),
    ]


def _planned_fields(job_id: str, plan: RetryPlan, classes: list[str] | None) -> Fields:
    note = " (dry run: nothing was changed)"
    fields = _round_fields(plan, job_id, classes, by_class(plan.tasks), note)
    if plan.resources.slurm:
        options = " ".join(f"{name}={value}" for name, value in plan.resources.slurm.items())
        fields.append(("with", options))
    if plan.resources.delay_s:
        fields.append(("not before", f"{plan.resources.delay_s:,} s from now"))
    return [*fields, *(("note", note) for note in plan.notes)]


def _retried_fields(retried: RetryResult, classes: list[str] | None) -> Fields:
    fields = _round_fields(retried, retried.job_id, classes, format_count(retried.tasks))
    if retried.round is None and retried.given_up:
        by_name = f"slurmctl retry {retried.job_id} --errors={','.join(retried.given_up)}"
        fields.append(("note", f"to run these items again, name their classes: {by_name}"))
    if retried.slurm_job_ids:
        fields.append(("slurm job", ", ".join(retried.slurm_job_ids)))
    return fields
