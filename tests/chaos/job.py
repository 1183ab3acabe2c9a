"""The job of a chaos round, and the site file with which its commands and workers run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.faults.proxy import Faults, Upstream, listening_proxy
from tests.chaos.faults.ssh import Cuts, ssh_proxy
from tests.chaos.sizes import Size
from tests.stack import login
from tests.stack.settings import LOOPBACK, Settings

HANDLER = Path(__file__).with_name("handler")
TTL_S, HEARTBEAT_S, MARGIN_S = 12.0, 3.0, 2.0
#: Losses are the round's own doing here, so they must not look like a task that kills workers.
MAX_LOST = 1000
RETRY_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What the user submits.

    Args:
        job_id: its name.
        keys: of its items.
        size: of the round.
        cure: a file; while it is absent, some items fail.
        setup: a line of the shell, run before each worker.
    """

    job_id: str
    keys: Sequence[str]
    size: Size
    cure: Path
    setup: str

    def write(self, folder: Path) -> Path:
        """Write the input and the configuration; the path of the latter."""
        lines = (json.dumps({"key": key}) + "\n" for key in self.keys)
        (folder / "items.jsonl").write_text("".join(lines))
        config = folder / "job.yaml"
        config.write_text(yaml.safe_dump(self._document(folder)))
        return config

    def _document(self, folder: Path) -> dict[str, Any]:
        lease = {"ttl": TTL_S, "heartbeat": HEARTBEAT_S, "margin": MARGIN_S, "max_lost": MAX_LOST}
        again = {"rounds": RETRY_ROUNDS, "backoff": 0}
        return {
            "job_id": self.job_id,
            "input": {"path": str(folder / "items.jsonl"), "key": "key"},
            "handler": {
                "entry": "digest:handle",
                "code": str(HANDLER),
                "params": {"seconds": self.size.item_s, "cure": str(self.cure)},
            },
            "bundle": self.size.bundle,
            "workers": self.size.workers,
            "worker": {"tries": 1},
            "lease": lease,
            "retry": {"network": again, "node_failure": again},
            # Two processors for each, so that a submission has workers on both nodes.
            "slurm": {
                "time": "00:15:00",
                "mem": "400M",
                "cpus_per_task": 2,
                "setup": [self.setup],
            },
        }


@contextmanager
def proxied_site(settings: Settings, faults: Faults, cuts: Cuts) -> Iterator[str]:
    """A site file whose services are behind proxies, also for the workers; its text."""
    document = yaml.safe_load((settings.state / "slurmctl.yaml").read_text())
    known_hosts = settings.state / "chaos_known_hosts"
    with (
        listening_proxy(Upstream.S3, settings.s3_url, faults) as s3,
        listening_proxy(Upstream.DYNAMODB, settings.dynamodb_url, faults) as dynamodb,
        ssh_proxy(settings.ports["sshd"], cuts) as port,
    ):
        document["aws"] |= {"s3_endpoint_url": s3, "dynamodb_endpoint_url": dynamodb}
        document["cluster"] |= {"port": port, "known_hosts": str(known_hosts)}
        known_hosts.write_text(f"[{LOOPBACK}]:{port} {login.host_key(settings)}\n")
        try:
            yield yaml.safe_dump(document)
        finally:
            known_hosts.unlink()
