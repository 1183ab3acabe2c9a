from __future__ import annotations

import pytest

from airflow_slurm_provider.slurm.options import SlurmOptions
from slurm_worker.errors import UserError


def test_options_become_sbatch_arguments() -> None:
    options = SlurmOptions.from_mapping(
        {
            "partition": "main",
            "mem": "2G",
            "mem_per_cpu": 500,
            "cpus_per_task": 4,
            "nice": -5,
            "throttle": 3,
            "extra_args": ["--hint=nomultithread"],
            "setup": ["module load python"],
            "account": None,
        }
    )
    assert options.arguments() == [
        "--partition=main",
        "--mem=2G",
        "--mem-per-cpu=500",
        "--cpus-per-task=4",
        "--nice=-5",
        "--hint=nomultithread",
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"mem": "2 gigs"}, "slurm.mem: '2 gigs' is not a size; write 500M or 2G"),
        ({"mem": True}, "slurm.mem: True is not text; quote it"),
        ({"partition": ""}, "slurm.partition: '' is empty or holds control characters"),
        ({"partition": "a\nb"}, "slurm.partition: 'a\\nb' is empty or holds control characters"),
        ({"time": "soon"}, "slurm.time: 'soon' is not a time"),
        ({"time": "0"}, "slurm.time: '0' is not a time"),
        ({"time": 43200}, 'slurm.time: 43200 is a number; quote it: "30" (minutes)'),
        ({"cpus_per_task": 0}, "slurm.cpus_per_task: 0 is below 1"),
        ({"cpus_per_task": "4"}, "slurm.cpus_per_task: '4' is not a whole number"),
        ({"throttle": True}, "slurm.throttle: True is not a whole number"),
        ({"partion": "x"}, "slurm.partion: is not a known option; did you mean 'partition'?"),
        ({"zzz": "x"}, "slurm.zzz: is not a known option; use extra_args for it"),
        ({"setup": "module load"}, "slurm.setup: 'module load' is not a list of strings"),
        ({"setup": ["a\nb"]}, "slurm.setup: 'a\\nb' holds control characters"),
        ({"extra_args": ["hint"]}, "slurm.extra_args: 'hint' is not an option"),
        ({"extra_args": ["--array=0-9"]}, "slurm.extra_args: '--array=0-9' is set by"),
        ({"extra_args": ["-J", "-x"]}, "slurm.extra_args: '-J' is set by"),
        ({"extra_args": ["--wait"]}, "slurm.extra_args: '--wait' is set by"),
        ({"time": "1", "grace": 60}, "slurm.grace: 60 s is not less than slurm.time '1' (60 s)"),
    ],
)
def test_a_wrong_option_is_named_with_its_mend(raw: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        SlurmOptions.from_mapping(raw)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("time", "grace"), [("1", 15), ("00:00:02", 1), ("02:00:00", 120)])
def test_the_grace_of_a_short_limit_leaves_time_to_work(time: str, grace: int) -> None:
    assert SlurmOptions.from_mapping({"time": time}).grace == grace
    assert SlurmOptions.from_mapping({}).grace == 120
