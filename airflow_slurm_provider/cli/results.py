"""`slurmctl retry`, `errors` and `aggregate`: what becomes of a job's results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.aggregate_files import merge_paths
from airflow_slurm_provider.cli.completers import complete_jobs
from airflow_slurm_provider.cli.formatting import failure_fields, manifest_fields
from airflow_slurm_provider.cli.options import (
    Common,
    common_options,
    error_classes,
    job_argument,
)
from airflow_slurm_provider.cli.output import by_class, emit, say
from airflow_slurm_provider.cli.wait_loop import report_wait, wait_options, wait_until_finished
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.api import RetryResult
    from airflow_slurm_provider.coordinator.planning.retry_round import RetryPlan
    from airflow_slurm_provider.coordinator.services import Services


@click.command(epilog="\b\nExample:\n  slurmctl retry planes-1 --errors=network,timeout --wait")
@click.argument("job", required=False, shell_complete=complete_jobs)
@click.option("--job-id", metavar="JOB", shell_complete=complete_jobs, help="The same as JOB.")
@click.option(
    "--errors",
    metavar="CLASSES",
    help="Error classes, separated by commas; without it, the job's retry policy decides.",
)
@click.option(
    "--items",
    type=click.Path(path_type=Path),
    help="A file with keys of items, one per line: only the failed ones among them.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run again, and do nothing.")
@wait_options
@common_options
def retry(
    common: Common,
    job: str | None,
    job_id: str | None,
    errors: str | None,
    items: Path | None,
    dry_run: bool,
    wait: bool,
    interval: float,
    timeout: float | None,
    max_failed_items: int | None,
) -> int:
    """Run the failed items and tasks of a job again, as a new round, by error class.

    Safe to run again: a round that was begun is finished before another one starts.
    """
    name, classes = _one_job(job, job_id), error_classes(errors)
    only = None if items is None else _keys(items)
    from airflow_slurm_provider.coordinator import api as verbs

    with common.services() as services:
        if dry_run:
            plan = verbs.plan_retry(services, name, classes, only=only)
            document = {"job_id": name, "dry_run": True, **plan.to_dict()}
            emit(common.as_json, document, _planned_fields(name, plan))
            return 0
        retried = verbs.retry(services, name, classes, only=only, log=say, actor=common.actor)
        document = {**retried.to_dict(), "dry_run": False}
        fields = _retried_fields(retried)
        if not wait or retried.round is None:
            emit(common.as_json, document, fields)
            return 0
        poll = wait_until_finished(services, name, interval=interval, timeout=timeout)
    return report_wait(common, poll, max_failed_items, document, fields)


@click.command(epilog="\b\nExample:\n  slurmctl errors planes-1 --class network")
@job_argument
@click.option("--class", "error_class", metavar="CLASS", help="Failures of this class only.")
@common_options
def errors(common: Common, job: str, error_class: str | None) -> int:
    """Group the failures of JOB by class and message, with the command that retries them.

    Numbers, quoted text, paths and addresses in messages are left out of the comparison.
    """
    name = check_job_id(job, "JOB")
    chosen = (error_classes(error_class, "--class") or [""])[0]
    from airflow_slurm_provider.coordinator.status.failures import explain

    with common.services() as services:
        groups = explain(services, name, chosen)
    document = {"job_id": name, "groups": [each.to_dict() for each in groups]}
    emit(common.as_json, document, [("job", name), *failure_fields(name, groups)])
    return 0


@click.command(
    epilog="\b\nExample:\n  slurmctl aggregate flights-2013\n"
    "  slurmctl aggregate results/ more.jsonl.gz -o dataset/ --sort-by city,name"
)
@click.argument(
    "targets", metavar="JOB | PATH...", nargs=-1, required=True, shell_complete=complete_jobs
)
@click.option("-o", "--output", metavar="DATASET", help="Merge files at PATHs into this folder.")
@click.option(
    "--schema",
    type=click.Path(path_type=Path),
    help="A YAML file of column: type, for PATHs; inferred from all rows without it.",
)
@click.option(
    "--where",
    type=click.Choice(["local", "slurm"]),
    help="Merge a JOB here, or on the cluster's nodes; as its config says without it.",
)
@click.option("--sort-by", metavar="COLUMNS", default="", help="Separated by commas, for PATHs.")
@click.option("--partition-by", metavar="COLUMNS", default="", help="The same.")
@common_options
def aggregate(
    common: Common,
    targets: tuple[str, ...],
    output: str | None,
    schema: Path | None,
    where: str | None,
    sort_by: str,
    partition_by: str,
) -> int:
    """Publish the results of JOB, or merge files, as one Parquet dataset with a manifest.

    A job is refused while tasks are missing. With -o, files of JSON lines or SQLite at or below
    PATHs, local or s3://, are merged, without a job. Running either again changes nothing.
    """
    if output is not None:
        return merge_paths(common, targets, output, schema, sort_by, partition_by)
    if len(targets) != 1:
        raise UserError("-o: is missing; name the folder of the dataset, or give a single JOB")
    if schema or sort_by or partition_by:
        raise UserError("--schema, --sort-by, --partition-by: are for files; a job has its YAML's")
    name = check_job_id(targets[0], "JOB")
    from airflow_slurm_provider.coordinator import api as verbs

    with common.services() as services:
        if (where or verbs.merges_where(services, name)) == "slurm":
            submitted = verbs.merge_on_nodes(services, name, log=say, actor=common.actor)
            if submitted is not None and not _merged(services, JobId(submitted.job_id)):
                return 1
        manifest = verbs.aggregate(services, name, log=say, actor=common.actor)
    emit(common.as_json, manifest, [("job", name), *manifest_fields(manifest)])
    return 0


def _merged(services: Services, merging: JobId) -> bool:
    """Wait until the nodes have merged; false, with the reason on stderr, where they can't."""
    poll = wait_until_finished(services, merging, interval=2.0, timeout=None)
    failed = poll.problem or poll.progress.failed or poll.progress.task_errors
    if failed:
        say(f"the nodes could not merge all files; see slurmctl errors {merging}")
    return not failed


def _one_job(argument: str | None, option: str | None) -> JobId:
    if argument and option and argument != option:
        raise UserError(f"--job-id: {option!r} is not JOB, which is {argument!r}; give one of them")
    if not argument and not option:
        raise UserError("JOB: is missing; name the job")
    return check_job_id(argument or option or "", "JOB" if argument else "--job-id")


def _keys(path: Path) -> list[str]:
    try:
        # Not `splitlines`, which takes more characters for a line's end than a key may hold.
        keys = path.read_text("utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--items: {path} can't be read ({error}); name a text file") from error
    if keys == [""]:
        raise UserError(f"--items: {path} is empty; write the key of an item on each line")
    return keys


def _planned_fields(job_id: str, plan: RetryPlan) -> list[tuple[str, str]]:
    number_of = "nothing to run again" if plan.round is None else str(plan.round)
    fields = [
        ("job", job_id),
        ("round", f"{number_of} (dry run: nothing was done)"),
        ("items to run again", by_class(plan.items)),
        ("tasks put back", by_class(plan.tasks)),
        ("given up", by_class(plan.given_up)),
    ]
    if plan.resources.slurm:
        options = " ".join(f"{name}={value}" for name, value in plan.resources.slurm.items())
        fields.append(("with", options))
    if plan.resources.delay_s:
        fields.append(("not before", f"{plan.resources.delay_s:,} s from now"))
    return [*fields, *(("note", each) for each in plan.notes)]


def _retried_fields(retried: RetryResult) -> list[tuple[str, str]]:
    fields = [
        ("job", retried.job_id),
        ("round", "nothing to run again" if retried.round is None else str(retried.round)),
        ("items to run again", by_class(retried.items)),
        ("tasks put back", format_count(retried.tasks)),
        ("given up", by_class(retried.given_up)),
    ]
    if retried.round is None and retried.given_up:
        classes = ",".join(retried.given_up)
        by_name = f"slurmctl retry {retried.job_id} --errors={classes}"
        fields.append(("note", f"what was given up runs again by name alone: {by_name}"))
    if retried.slurm_job_ids:
        fields.append(("slurm job", ", ".join(retried.slurm_job_ids)))
    return fields
