"""The stack's Slurm over the stack's sshd, as the site's file names them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import paramiko
import pytest

from airflow_slurm_provider.coordinator.spec.site import ClusterSite, load_site
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import render_script
from airflow_slurm_provider.slurm.ssh import SshTransport, open_paramiko

_UNTIL_S = 120


@dataclass
class RealCluster:
    """A login node, and a client of it."""

    site: ClusterSite
    client: SlurmClient
    transport: SshTransport
    names: dict[str, str] = field(default_factory=dict)

    def connect(self) -> paramiko.SSHClient:
        site = self.site
        return open_paramiko(site.host, site.port, site.user, site.key_file, site.known_hosts)

    def another(self) -> SlurmClient:
        """A client with a connection of its own."""
        return SlurmClient(SshTransport(self.connect), self.site.remote_dir)

    def submit(self, name: str, program: str, workers: int = 1, **options: object) -> str:
        job = self.client.submit(name, script(name, program, workers, **options), "tests")
        self.names[job] = name
        return job

    def key(self, job: str) -> ArrayKey:
        return ArrayKey(job, self.names.get(job, ""))

    def cancel(self, job: str) -> list[ArrayKey]:
        return self.client.cancel([self.key(job)])

    def arrays(self, name: str) -> set[str]:
        """All arrays of this name, in the queue and in the accounting."""
        result = self.transport.run(
            f"squeue -h -t all --name={name} -o %F; sacct -nXP -S now-1days --name={name} -o JobID"
        )
        assert result.code == 0, result
        return {line.partition("_")[0] for line in result.stdout.split()}

    def until(self, job: str, condition: Callable[[ArrayState], bool]) -> ArrayState:
        deadline = time.monotonic() + _UNTIL_S
        while True:
            array = self.client.array(self.key(job))
            if condition(array):
                return array
            assert time.monotonic() < deadline, array
            time.sleep(0.2)

    def ended(self, job: str) -> ArrayState:
        return self.until(job, lambda array: not array.alive and not array.unknown)


def script(name: str, program: str, workers: int = 1, **options: object) -> str:
    return render_script(
        SlurmOptions.from_mapping({"mem": "50M", **options}),
        name=name,
        workers=workers,
        command=["sh", "-c", program],
        environment={},
    )


@pytest.fixture(scope="session")
def cluster(stack: Mapping[str, str]) -> Iterator[RealCluster]:
    site = load_site(stack["SLURMCTL_CONFIG"]).cluster
    if site.transport != "ssh":
        pytest.skip(f"the stack's cluster is {site.transport}, without a login node")
    transport = SshTransport(
        lambda: open_paramiko(site.host, site.port, site.user, site.key_file, site.known_hosts)
    )
    client = SlurmClient(transport, site.remote_dir)
    yield RealCluster(site, client, transport)
    client.close()


@pytest.fixture
def name() -> str:
    return f"test.{uuid.uuid4().hex[:12]}"
