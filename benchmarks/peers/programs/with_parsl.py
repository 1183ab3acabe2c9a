"""By Parsl: HighThroughputExecutor with two blocks of one worker, retries, memoized apps.

python with_parsl.py ITEMS WORKERS
"""

import sys

import parsl
import work
from parsl.app.app import python_app
from parsl.config import Config
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import SlurmProvider
from parsl.utils import get_all_checkpoints


@python_app(cache=True)
def bundle(first: int) -> int:
    import work

    return work.bundle(first)


def main(items: int, workers: int) -> None:
    runs = str(work.folder() / "state" / "runinfo")
    executor = HighThroughputExecutor(
        label="htex",
        address="127.0.0.1",
        max_workers_per_node=1,
        provider=SlurmProvider(
            init_blocks=workers,
            min_blocks=workers,
            max_blocks=workers,
            cores_per_node=1,
            mem_per_node=1,
            exclusive=False,
            walltime="00:15:00",
            launcher=SimpleLauncher(),
        ),
    )
    config = Config(
        executors=[executor],
        run_dir=runs,
        retries=3,
        memoizer=BasicMemoizer(
            checkpoint_mode="task_exit", checkpoint_files=get_all_checkpoints(runs)
        ),
        initialize_logging=False,
    )
    with parsl.load(config):
        for future in [bundle(first) for first in work.missing(items)]:
            future.result()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
