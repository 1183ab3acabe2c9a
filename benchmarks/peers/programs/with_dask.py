"""By dask-jobqueue: two workers as Slurm jobs, each under a nanny, a future per bundle.

python with_dask.py ITEMS WORKERS
"""

import sys

import work
from dask_jobqueue import SLURMCluster
from distributed import Client


def main(items: int, workers: int) -> None:
    here = work.folder()
    with (
        SLURMCluster(
            cores=1,
            processes=1,
            memory="700MB",
            walltime="00:15:00",
            interface="lo",
            local_directory=str(here / "state"),
            log_directory=str(here / "state"),
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(workers)
        # A bundle that raised is tried again; one whose worker died is, by the scheduler's
        # own count of allowed failures (3).
        client.gather(client.map(work.bundle, work.missing(items), retries=3, pure=False))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
