from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_slurm_provider.slurm.ssh import SshTransport
from tests.unit.slurm.ssh_server import LoginNode, connect


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LoginNode]:
    node = LoginNode(tmp_path)
    yield node
    node.close()


@pytest.fixture
def ssh(node: LoginNode) -> Iterator[SshTransport]:
    ssh = SshTransport(lambda: connect(node))
    yield ssh
    ssh.close()


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds; fail after 20 s."""

    def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.02)

    return wait
