"""By sbatch alone: a job per bundle that has no file, two at a time.

python with_sbatch.py ITEMS WORKERS

Jobs of one name run one after the other (--dependency=singleton), so there are as many names
as workers. Started again, it leaves alone what is still in the queue, known by its comment.
"""

import subprocess
import sys
import time
from pathlib import Path

import work


def queued() -> set[str]:
    """Comments of this run's jobs that Slurm has not ended yet."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--format=%k"], capture_output=True, text=True, check=True
    )
    mine = f"{work.folder().name}/"
    return {line for line in listed.stdout.split() if line.startswith(mine)}


def main(items: int, workers: int) -> None:
    name, there = work.folder().name, queued()
    for number, first in enumerate(work.missing(items)):
        if f"{name}/{first}" in there:
            continue
        subprocess.run(
            [
                *("sbatch", "--quiet", "--parsable", "--requeue", "--cpus-per-task=1"),
                *("--mem=500M", "--time=5", "--dependency=singleton"),
                f"--job-name={name}-{number % workers}",
                f"--comment={name}/{first}",
                f"--output={work.folder()}/state/{first}.out",
                f"--wrap=exec {sys.executable} {Path(work.__file__)} {first}",
            ],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    while queued():
        time.sleep(1.0)  # the controller must answer each query


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
