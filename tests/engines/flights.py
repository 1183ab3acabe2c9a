"""The flights example at small size, as a user runs it: ``slurmctl`` and the embedded cluster."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.site import load_site
from example_dags import seed
from slurm_worker.protocol.keys import JobId
from tests.stack.facts import job_facts
from tests.stack.settings import ACCESS_KEY, BUCKET, KEY_PREFIX, REGION, ROOT, SECRET_KEY, TABLE

EXAMPLE = ROOT / "example_dags" / "backfill_flights"
SLURMCTL = Path(sys.executable).with_name("slurmctl")
FLIGHTS, PER_TASK, WORKERS = 3_000, 100, 2
_TIMEOUT_S = 300


class FlightsError(Exception):
    """The job did not come out right; the text says what was found."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the job."""

    rows: int
    failed: int
    digest: str  #: of all rows of the dataset, in order of their keys


@dataclass(frozen=True, slots=True)
class Laboratory:
    """A site of its own in `folder`: a table, a store and an embedded cluster.

    Args:
        table: the URL of the table's service.
        store: the URL of the store.
        checksums: the site's setting of that name.
    """

    folder: Path
    table: str
    store: str
    checksums: str | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of a shell for this site; nothing names AWS or another site."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {
            **own,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "SLURMCTL_CONFIG": str(self.write_site()),
        }

    def write_site(self, **aws: str | None) -> Path:
        """The site's file; `aws` replaces settings of that section."""
        endpoints = {"s3_endpoint_url": self.store, "dynamodb_endpoint_url": self.table}
        section = {"region": REGION, **endpoints, "checksums": self.checksums, **aws}
        site = {
            "storage": {"table": TABLE, "prefix": f"s3://{BUCKET}/{KEY_PREFIX}"},
            "aws": {name: value for name, value in section.items() if value is not None},
            "cluster": {"transport": "embedded", "embedded_dir": str(self.folder / "cluster")},
        }
        return write_yaml(self.folder / "site.yaml", site)

    def slurmctl(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [str(SLURMCTL), *map(str, words)],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )

    def done(self, *words: str | Path) -> str:
        """Run a command that must succeed; what it printed.

        Raises:
            FlightsError: with its last lines, if it fails.
        """
        ended = self.slurmctl(*words)
        if ended.returncode:
            tail = "\n".join([*ended.stdout.splitlines()[-15:], *ended.stderr.splitlines()[-15:]])
            raise FlightsError(f"slurmctl {words[0]} ended with {ended.returncode}:\n{tail}")
        return ended.stdout

    def services(self) -> Services:
        """The site, opened in this process."""
        session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
        return open_services(load_site(self.write_site()), session=session)


def run(lab: Laboratory, job_id: str) -> Outcome:
    """Submit the job, wait for it, publish its dataset, and count.

    Raises:
        FlightsError: if a command fails, or the counts do not add up.
    """
    services = lab.services()
    config = _write_config(lab.folder, services, job_id)
    lab.done("submit", config, "--wait")
    lab.done("aggregate", job_id)
    facts = job_facts(services, job_id)
    problems = facts.problems()
    if facts.items != FLIGHTS:
        problems.append(f"{job_id}: {facts.items:,} items in the manifest instead of {FLIGHTS:,}")
    if problems:
        raise FlightsError("\n".join(problems))
    return Outcome(facts.rows, facts.failed, _digest(services, job_id))


def _write_config(folder: Path, services: Services, job_id: str) -> Path:
    pq.write_table(_few_flights(), folder / "flights.parquet")
    names = {"airports": ["faa", "lat", "lon"], "weather": _WEATHER}
    for name, columns in names.items():
        services.bucket(BUCKET).put(f"input/{name}.csv.gz", seed.reference(name, columns))
    config: dict[str, Any] = yaml.safe_load((EXAMPLE / "config.yaml").read_text())
    config["input"]["path"] = "flights.parquet"
    config["handler"]["code"] = str(EXAMPLE)
    small = {"job_id": job_id, "bundle": PER_TASK, "workers": WORKERS}
    return write_yaml(folder / "config.yaml", {**config, **small})


_WEATHER = ["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]


@cache
def _few_flights() -> pa.Table:
    return pq.read_table(io.BytesIO(seed.flights())).slice(0, FLIGHTS)


def _digest(services: Services, job_id: str) -> str:
    data = services.objects.get(services.paths(JobId(job_id)).manifest)
    assert data is not None, "job_facts has read it"
    tables = []
    for entry in json.loads(data)["files"]:
        found = services.objects.get(entry["key"])
        assert found is not None, "job_facts has read it"
        tables.append(pq.read_table(io.BytesIO(found)))
    rows = pa.concat_tables(tables).sort_by("flight_id")
    own = [name for name in rows.column_names if not name.startswith("_")]
    return hashlib.sha256(json.dumps(rows.select(own).to_pylist()).encode()).hexdigest()


def write_yaml(path: Path, document: Mapping[str, Any]) -> Path:
    """Write a document as YAML; return the file."""
    path.write_text(yaml.safe_dump(dict(document)))
    return path
