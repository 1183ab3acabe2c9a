"""`slurmctl plan` and `slurmctl cost`, as a user reads them."""

from __future__ import annotations

from airflow_slurm_provider.cli.app import ExitCode
from slurm_worker.backends.request_counter import RequestKind
from tests.unit.cli.conftest import Cli, write_config
from tests.unit.slurm.records import completed

USED = completed("101", elapsed_s=7200, cpus=1, cpu_s=3600.0, mem=4 << 30, max_rss=400 << 20)


def test_a_plan_and_the_submit_after_it_agree_and_the_plan_leaves_nothing(cli: Cli) -> None:
    planned = cli("plan", cli.config, "--json").json
    assert list(cli.world.objects.list("")) == []
    submitted = cli.submit("--json").json
    for name in ("job_id", "items", "tasks", "workers"):
        assert planned[name] == submitted[name], name


def test_a_plan_is_read_as_lines_and_its_script_alone_as_it_is(cli: Cli) -> None:
    ended = cli("plan", cli.config)
    assert ended.code == ExitCode.OK
    fields = dict(line.split(": ", 1) for line in ended.out.splitlines() if ": " in line)
    assert fields["tasks"] == "3 of up to 10 items"
    assert fields["cost"].startswith("$0.00")
    assert "heartbeats per hour of a worker" in ended.out
    script = cli("plan", cli.config, "--script").out
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=job-1.000-1.TOKEN\n")
    assert script.endswith("--processes 1\n")


def test_a_plan_of_a_job_with_a_rate_limit_reports_the_least_time(cli: Cli) -> None:
    config = write_config(cli.config.parent, limits={"api": {"rate": "0.01/s"}})
    assert "limits: allow no less than 40 min" in cli("plan", config).out


def test_a_plan_without_a_cluster_shows_its_limits_as_unknown(cli: Cli) -> None:
    cli.slurm.away = 100
    ended = cli("plan", cli.config, "--json")
    assert ended.code == ExitCode.OK
    assert (ended.json["tasks"], ended.json["max_array_size"]) == (3, None)
    assert "the login node is away" in ended.json["notes"][0]


def test_the_cost_of_a_job_is_shown_with_advice(cli: Cli) -> None:
    cli.slurm.ended = [USED]
    cli.submit()
    cli.world.requests.count(RequestKind.S3_PUT)
    cli.work()
    ended = cli("cost", "job-1")
    assert ended.code == ExitCode.OK
    assert "cpu time: 2 CPU-hours given; by ended workers: 50% used" in ended.out
    assert "memory: 400.0 MiB of 4.0 GiB at most (10%)" in ended.out
    assert "advice: 4.0 GiB of memory were requested" in ended.out
    document = cli("cost", "job-1", "--json").json
    assert document["counted"]["requests"] == {"s3_put": 1}


def test_the_cost_of_a_job_reports_a_cluster_that_is_away(cli: Cli) -> None:
    cli.submit()
    cli.slurm.away = 1
    ended = cli("cost", "job-1")
    assert ended.code == ExitCode.OK
    assert "cluster: unknown: the login node is away" in ended.out
