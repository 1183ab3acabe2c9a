"""`slurmctl plan` and `slurmctl cost`: the cost of a job before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, command, job_argument, seconds
from airflow_slurm_provider.cli.rendering.output import Fields, emit, say
from airflow_slurm_provider.units import format_count, format_memory, format_seconds
from slurm_worker.protocol.keys import JobId

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.costs.actual import JobCost
    from airflow_slurm_provider.coordinator.costs.dry_run import Estimate
    from airflow_slurm_provider.coordinator.costs.prices import Bill
    from airflow_slurm_provider.slurm.accounting import Efficiency


@command("slurmctl plan example_dags/backfill_flights/config.yaml --item-seconds 0.2")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--job-id", metavar="ID", help="Job id, in place of the file's job_id.")
@seconds("--item-seconds", "Seconds per item. With it, the total time is estimated.")
@click.option("--script", is_flag=True, help="Print only the batch script.")
def plan(
    common: Common, config: Path, job_id: str | None, item_seconds: float | None, script: bool
) -> int:
    """Estimate tasks, workers, time and cost of CONFIG, without submitting it.

    Reads the whole input, as submit does. If the cluster can't be reached, its limits are shown
    as unknown.
    """
    from airflow_slurm_provider.coordinator.costs.dry_run import estimate
    from airflow_slurm_provider.coordinator.spec.job_spec import load_config

    loaded = load_config(config, job_id=job_id)
    with common.services() as services:
        found = estimate(services, loaded, item_s=item_seconds, log=say)
    shown = found.script.removesuffix("\n") if script else _plan_fields(found)
    return emit(common.as_json, found.to_dict(), shown)


@command("slurmctl cost flights-2013")
@job_argument
def cost(common: Common, job: JobId) -> int:
    """Show what JOB has cost so far, and how to make it cheaper.

    Shows AWS requests by kind with their list price, the CPU time and memory that Slurm gave and
    that the workers used, and advice with the numbers behind it.
    """
    from airflow_slurm_provider.coordinator.costs.actual import read_cost

    with common.services() as services:
        found = read_cost(services, job)
    return emit(common.as_json, found.to_dict(), _cost_fields(found))


def _plan_fields(found: Estimate) -> Fields:
    fields = [
        ("job", found.job_id),
        ("items", format_count(found.items)),
        ("tasks", f"{found.tasks:,} of up to {found.bundle:,} items"),
        ("input files on S3", format_count(found.segments)),
        ("workers", f"{found.workers:,} of {found.workers_asked:,} requested"),
        ("arrays", _arrays_text(found)),
        ("each worker", " ".join(found.resources) or "the site's defaults"),
    ]
    if found.cpu_hours_most is not None:
        fields.append(("cpu time", f"at most {found.cpu_hours_most:,g} CPU-hours, from slurm.time"))
    if found.shortest_s is not None:
        least = format_seconds(found.shortest_s)
        fields.append(("limits", f"allow no less than {least}, at one token per item"))
    if found.work_s is not None:
        fields.append(("time", f"about {format_seconds(found.work_s)} once all workers run"))
    fields += _bill_fields(found.total)
    fields += [
        ("cost", f"{_dollars(found.total.dollars)} of AWS requests, {_priced()}"),
        ("", f"planning: {_dollars(found.planning.dollars)}"),
        ("", f"working: {_dollars(found.working.dollars)}{_heartbeats_text(found)}"),
        ("", f"aggregating: {_dollars(found.merging.dollars)}"),
        *[("note", note) for note in found.notes],
    ]
    return fields


def _arrays_text(found: Estimate) -> str:
    sizes = ", ".join(f"{size:,}" for size in found.arrays[:5])
    more = f" and {len(found.arrays) - 5:,} more" if len(found.arrays) > 5 else ""
    most = "unknown" if found.max_array_size is None else format_count(found.max_array_size)
    return f"{len(found.arrays):,} of {sizes}{more} elements (MaxArraySize {most})"


def _heartbeats_text(found: Estimate) -> str:
    if found.work_s is not None or found.shortest_s:
        return ""
    return f", and {found.heartbeats} heartbeats per hour of a worker"


def _cost_fields(found: JobCost) -> Fields:
    counted, estimated = found.spent.counted, found.spent.estimated
    fields = [
        ("job", found.job_id),
        ("tasks done", f"{found.tasks:,}, of {found.items:,} items"),
        *_bill_fields(counted + estimated),
        ("cost so far", f"{_dollars(found.spent.dollars)} of AWS requests, {_priced()}"),
        ("", f"counted by workers: {_dollars(counted.dollars)}"),
        ("", f"estimated for planning and the end of workers: {_dollars(estimated.dollars)}"),
        ("", f"expected for such tasks: {_dollars(found.expected)}"),
    ]
    if found.efficiency is not None:
        fields += _efficiency_fields(found.efficiency)
    if found.problem:
        fields.append(("cluster", f"unknown: {found.problem}"))
    return [*fields, *[("advice", advice) for advice in found.advice or ("none",)]]


def _efficiency_fields(found: Efficiency) -> Fields:
    running = f", {found.running:,} of them running" if found.running else ""
    used = "unknown yet" if found.cpu_share is None else f"{found.cpu_share:.0%} used"
    fields = [
        ("workers", f"{found.starts:,} started{running}"),
        ("cpu time", f"{found.allocated_s / 3600:,.4g} CPU-hours given; by ended workers: {used}"),
    ]
    if found.max_rss:
        share = f" ({found.memory_share:.0%})" if found.memory_share else ""
        given = f" of {format_memory(found.mem)}" if found.mem else ""
        fields.append(("memory", f"{format_memory(found.max_rss)}{given} at most{share}"))
    return fields


def _bill_fields(bill: Bill) -> Fields:
    return [
        (kind, f"{count:,} requests, {_dollars(bill.by_kind.get(kind, 0.0))}")
        for kind, count in bill.requests.items()
    ]


def _priced() -> str:
    from airflow_slurm_provider.coordinator.costs.prices import PRICES_OF, REGION

    return f"at the list prices of {REGION} ({PRICES_OF}), without storage"


def _dollars(amount: float) -> str:
    """``$12.30``; small amounts with two significant digits: ``$0.0042``."""
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.2g}"
