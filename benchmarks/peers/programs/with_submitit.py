"""By submitit: one array, two elements at a time, each with a share of the bundles.

python with_submitit.py ITEMS WORKERS

An element is a Slurm job and an interpreter, so each is given several bundles, and a site's
MaxArraySize is not exceeded. Started again, it waits for the array that is still there, and
then submits what has no file.
"""

import json
import sys

import submitit
import work

ELEMENTS = 10


class Bundles(submitit.helpers.Checkpointable):
    """Bundles one after the other; requeued on a time limit or preemption."""

    def __call__(self, firsts: list[int]) -> int:
        return sum(work.bundle(first) for first in firsts)


def main(items: int, workers: int) -> None:
    state = work.folder() / "state"
    known = state / "jobs.json"
    if known.exists():
        for each in json.loads(known.read_text()):
            submitit.SlurmJob(state, each).wait()
    executor = submitit.AutoExecutor(folder=state, cluster="slurm")
    executor.update_parameters(
        timeout_min=15, mem_gb=1, cpus_per_task=1, slurm_array_parallelism=workers
    )
    firsts = work.missing(items)
    if not firsts:
        return
    shares = [share for n in range(ELEMENTS) if (share := firsts[n::ELEMENTS])]
    jobs = executor.map_array(Bundles(), shares)
    known.write_text(json.dumps([job.job_id for job in jobs]))
    failed = [job.job_id for job in jobs if job.exception() is not None]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
