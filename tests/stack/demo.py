"""The demo: both example DAGs in the stack's real Airflow, and proof that nothing was lost.

Run by ``make demo`` once the stack is up. Ends with 1 when a run fails or a count does not
add up.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.site import Site, load_site
from slurm_worker.errors import SlurmWorkerError
from tests.stack.airflow_api import AirflowApi, AirflowApiError, DagRun, failing_tasks
from tests.stack.facts import job_facts
from tests.stack.timeline import bars_of_job, bars_of_run, draw, waiting_between

DAGS = ("backfill_flights", "backfill_planes_api")
ENV_FILE = Path(__file__).resolve().parents[2] / ".stack" / "env"


class DemoError(Exception):
    """The demo can't continue; the message says why and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    options = _parse(arguments)
    try:
        os.environ.update(read_environment())
        site = load_site(os.environ["SLURMCTL_CONFIG"])
        _check_cluster(site, embedded=options.embedded)
        return _run(site, options.timeout)
    except (DemoError, AirflowApiError, SlurmWorkerError, LookupError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def read_environment(path: Path = ENV_FILE) -> dict[str, str]:
    """The stack's environment, from its ``export NAME=value`` lines."""
    if not path.exists():
        raise DemoError(f"{path} is not there: bring the stack up first (make stack-up)")
    found = {}
    for line in path.read_text().splitlines():
        name, separator, value = line.removeprefix("export ").partition("=")
        if separator and not line.startswith("#") and name != "PATH":
            found[name.strip()] = "".join(shlex.split(value))
    return found


def reset_planes_api(url: str) -> None:
    """Make the API server forget which requests it has failed, so that each run has work."""
    request = urllib.request.Request(f"{url.rstrip('/')}/reset", data=b"", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10):
            pass
    except OSError as error:
        raise DemoError(f"the planes API at {url} does not answer: {error}") from error


def run_dags(api: AirflowApi, dags: tuple[str, ...], timeout: float) -> dict[str, DagRun]:
    """Trigger the DAGs together and follow them to their end; print each new state."""
    began = time.monotonic()
    for dag_id in dags:
        api.wait_for_dag(dag_id)
    runs = {dag_id: api.trigger(dag_id) for dag_id in dags}

    def tell(run: DagRun) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {run.summary()}", flush=True)

    return api.follow(runs, timeout=timeout, changed=tell)


def report_failure(api: AirflowApi, run: DagRun) -> None:
    """Print the end of each failing task's log."""
    for task in failing_tasks(run):
        print(f"\n--- {run.dag_id}.{task.task_id} failed; the end of its log:", file=sys.stderr)
        print(api.log_tail(run, task), file=sys.stderr)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stack.demo", description=__doc__)
    parser.add_argument(
        "--embedded", action="store_true", help="fail if the stack uses a real cluster"
    )
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds for both runs")
    return parser.parse_args(arguments)


def _check_cluster(site: Site, *, embedded: bool) -> None:
    cluster = site.cluster
    if embedded and cluster.transport != "embedded":
        raise DemoError("the stack that is up uses Slurm: make stack-down, then STACK=embedded")
    where = (
        f"the embedded cluster in {cluster.embedded_dir}"
        if cluster.transport == "embedded"
        else f"Slurm at {cluster.user}@{cluster.host}:{cluster.port} over {cluster.transport}"
    )
    print(f"cluster: {where}; storage: {site.storage.prefix}, table {site.storage.table}")


def _run(site: Site, timeout: float) -> int:
    environment: Mapping[str, str] = os.environ
    reset_planes_api(environment["PLANES_API_URL"])
    api = AirflowApi.of_stack(environment)
    runs = run_dags(api, DAGS, timeout)
    failed = [run for run in runs.values() if run.state != "success"]
    for run in failed:
        report_failure(api, run)
    problems = [f"{run.dag_id}: the run ended as {run.state}" for run in failed]
    services = open_services(site)
    try:
        for run in runs.values():
            if run.state == "success":
                problems += _report(services, run, str(api.return_value(run, "submit")))
    finally:
        services.close()
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    if not problems:
        print("\nall adds up: items in = ok + failed, rows out = ok, each key once")
        print(
            f"Airflow, with both runs: {environment['AIRFLOW_API_URL']} (user admin, password: "
            "$AIRFLOW_API_PASSWORD)"
        )
        print("the stack is up: . .stack/env for slurmctl, make stack-down to end it")
        print("next, your own data: docs/tutorial.md, from step 4 on")
    return 1 if problems else 0


def _report(services: Services, run: DagRun, job_id: str) -> list[str]:
    facts = job_facts(services, job_id)
    origin = run.triggered or run.start or 0.0
    total = (run.end or origin) - origin
    print(f"\n{run.dag_id}: job {job_id}")
    for line in facts.lines():
        print(f"  {line}")
    print(f"  {total:.1f} s from trigger to end, {waiting_between(run):.1f} s between its tasks:")
    for line in draw([*bars_of_run(run), *bars_of_job(services, job_id)], origin):
        print(f"    {line}")
    return facts.problems()


if __name__ == "__main__":
    sys.exit(main())
