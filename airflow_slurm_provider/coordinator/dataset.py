"""Aggregation: in this process, or with the files merged on the cluster's nodes.

On the nodes the merge is a job of its own, ``<job>.merge-<inputs>``. Its items are the files of
the dataset; they are leased, retried and watched like those of any job. The same parts give the
same bytes in both places, and the manifest is always written here. Requests: those of
`slurm_worker.aggregate`, and of that job.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator.planning.inline_items import put_items
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, JobSpec, parse_config
from airflow_slurm_provider.coordinator.status.progress import read_progress
from airflow_slurm_provider.units import format_count
from slurm_worker.aggregate import AggregateOptions, DataFile, RoundSummary, aggregate, split
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId, check_job_id, merge_job_id
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.results.parts import lines_of

_MODULE = "merging"
_CODE = "from slurm_worker.aggregate.node import merge_file\n"
_LOCAL = {"schema_", "where", "workers", "slurm", "requirements"}
_Inputs = tuple[ObjectStore, JobPaths, list[RoundSummary], AggregateOptions, Path]


def check_complete(services: Services, job_id: JobId) -> None:
    """Refuse a job that has unfinished tasks."""
    state = read_progress(services, job_id)
    if not state.complete:
        raise UserError(
            f"job_id: {job_id!r} has {format_count(state.unfinished_tasks, 'unfinished task')}; "
            f"wait for it (slurmctl wait {job_id}), or submit it again if its workers have ended"
        )


def merge(services: Services, spec: JobSpec, log: Log) -> dict[str, Any]:
    """Merge the files that were not merged on the nodes; publish and return the manifest."""
    with _inputs(services, spec) as inputs:
        return aggregate(*inputs, log, partial(_made_on_nodes, services, spec.id)).to_dict()


def plan_on_nodes(services: Services, spec: JobSpec, folder: Path) -> Config | None:
    """The job that merges the parts of another; None if the dataset is up to date.

    `spec` is that of the job whose parts are merged. The code that is uploaded goes into `folder`,
    which must exist until the new job is submitted.

    Raises:
        UserError: if the dataset is to be sorted, or the job's id is too long for another.
    """
    with _inputs(services, spec) as inputs:
        work = split(*inputs)
    if work is None or not work.items:
        # There is nothing to merge; the coordinator publishes without the nodes.
        return None
    name = merge_job_id(spec.id, work.inputs)
    requirements = spec.aggregate.requirements
    if requirements is None:
        requirements = (f"pyarrow=={version('pyarrow')}",)
    (folder / f"{_MODULE}.py").write_text(_CODE)
    handler: dict[str, Any] = {"entry": f"{_MODULE}:merge_file", "code": str(folder)}
    if requirements:
        (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
        handler["requirements"] = "requirements.txt"
    raw = {
        "job_id": name,
        "input": put_items(services, name, work.items, "id"),
        "bundle": 1,
        "workers": min(spec.aggregate.workers, len(work.items)),
        "handler": {**handler, "params": {**work.params, "bucket": services.site.bucket}},
        "slurm": {**spec.slurm, **spec.aggregate.slurm},
        "lease": spec.lease.model_dump(),
    }
    return parse_config(raw, raw)


def _made_on_nodes(services: Services, job_id: JobId, inputs: str) -> dict[str, DataFile]:
    """The files that a job on the nodes has merged from these inputs."""
    try:
        store = services.store(check_job_id(merge_job_id(job_id, inputs)))
    except UserError:
        return {}
    parts = (part for marker in store.markers() for part in marker.parts if part.kind == "rows")
    found: dict[str, DataFile] = {}
    for part in parts:
        for line in lines_of(store.read_part(part), part.key).splitlines():
            row = json.loads(line)
            file = DataFile(row["key"], row["rows"], row["size"], row["sha256"])
            found[file.key.rpartition("/")[2]] = file
    return found


@contextmanager
def _inputs(services: Services, spec: JobSpec) -> Iterator[_Inputs]:
    """The first arguments of `aggregate` and `split`; scratch is removed at the end."""
    jobs = services.jobs(spec.id)
    table = services.tasks(jobs.get())
    rounds = [
        RoundSummary(row.number, row.tasks, row.items, row.draft, table, row.appended)
        for row in jobs.rounds()
    ]
    layout = spec.aggregate.model_dump(exclude=_LOCAL)
    options = AggregateOptions(schema=spec.aggregate.schema_, **layout)
    with tempfile.TemporaryDirectory(prefix="airflow-slurm-aggregate-") as scratch:
        yield services.objects, services.paths(spec.id), rounds, options, Path(scratch)
