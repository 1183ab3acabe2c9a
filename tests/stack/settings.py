"""What the stack is to be: its mode, folders, user and ports, read once from the environment.

Every port has a variable of its own, named in `PORTS`, so that a taken one can be changed.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
REGION = "us-east-1"
BUCKET = "lab"
#: Below it in the bucket all jobs live.
KEY_PREFIX = "backfills"
TABLE = "backfills"
REMOTE_DIR = ".airflow-slurm"
#: The S3 server knows only this key. It gives access only to the stack on loopback.
ACCESS_KEY = "stack"
SECRET_KEY = "opens-nothing-but-the-stack-on-loopback"


class StackError(Exception):
    """The stack can't carry out the command; the message says why and what to do."""


class Mode(str, Enum):
    """The kind of cluster in the stack."""

    SLURM = "slurm"  # slurmctld, slurmdbd and two slurmd behind an sshd; needs root
    EMBEDDED = "embedded"  # processes of this machine; any user, nothing to install


#: name of a port: (default, variable that changes it)
PORTS = {
    "sshd": (2222, "STACK_SSH_PORT"),
    "slurmctld": (6817, "STACK_SLURMCTLD_PORT"),
    "slurmdbd": (6819, "STACK_SLURMDBD_PORT"),
    "node1": (17001, "STACK_NODE1_PORT"),
    "node2": (17002, "STACK_NODE2_PORT"),
    "mariadb": (33306, "STACK_MARIADB_PORT"),
    "s3": (8333, "STACK_S3_PORT"),
    "weed-master": (8334, "STACK_WEED_MASTER_PORT"),
    "weed-volume": (8335, "STACK_WEED_VOLUME_PORT"),
    "weed-filer": (8336, "STACK_WEED_FILER_PORT"),
    "dynamodb": (8000, "STACK_DYNAMODB_PORT"),
    "airflow-api": (8080, "STACK_AIRFLOW_PORT"),
    "planes-api": (8090, "STACK_PLANES_PORT"),
    # Where Airflow sends its metrics; nobody listens but a test that wants to see them.
    "statsd": (8125, "STACK_STATSD_PORT"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The choices of one stack.

    Args:
        state: the folder with everything that the stack writes, without symbolic links.
        mode: the kind of cluster.
        why: why this mode was chosen, if it was not set.
        user: who submits jobs on the cluster.
        dynamodb_endpoint: a DynamoDB to use instead of starting one.
        ports: by the names of `PORTS`.
    """

    state: Path
    mode: Mode
    why: str
    user: str
    dynamodb_endpoint: str | None
    ports: Mapping[str, int]

    @property
    def s3_url(self) -> str:
        """The S3 endpoint; embedded, one server is both S3 and DynamoDB."""
        name = "dynamodb" if self.mode is Mode.EMBEDDED else "s3"
        return f"http://{LOOPBACK}:{self.ports[name]}"

    @property
    def dynamodb_url(self) -> str:
        """The DynamoDB endpoint."""
        return self.dynamodb_endpoint or f"http://{LOOPBACK}:{self.ports['dynamodb']}"

    @property
    def airflow_url(self) -> str:
        """Airflow's API server."""
        return f"http://{LOOPBACK}:{self.ports['airflow-api']}"

    @property
    def planes_url(self) -> str:
        """The rate-limited API of the second example."""
        return f"http://{LOOPBACK}:{self.ports['planes-api']}"

    @property
    def other_user(self) -> str:
        """Somebody else with an account on the nodes, who tries to get at the user's jobs."""
        return f"{self.user}-other"

    @property
    def home(self) -> Path:
        """The cluster user's home."""
        return self.state / "home" / self.user

    def folder(self, name: str, mode: int = 0o755) -> Path:
        """A folder of the stack, made if absent."""
        path = self.state / name
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
        return path


def read_settings(environment: Mapping[str, str], state: Path) -> Settings:
    """Read the settings.

    Raises:
        StackError: if a variable has a value that can't be.
    """
    mode, why = _mode(environment)
    user = environment.get("STACK_USER", "labuser") if mode is Mode.SLURM else getpass.getuser()
    return Settings(
        state=state,
        mode=mode,
        why=why,
        user=user,
        dynamodb_endpoint=environment.get("DYNAMODB_ENDPOINT_URL") or None,
        ports={name: _port(environment, *found) for name, found in PORTS.items()},
    )


def listening(port: int, host: str = LOOPBACK) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def _mode(environment: Mapping[str, str]) -> tuple[Mode, str]:
    asked = environment.get("STACK", "")
    if asked:
        try:
            mode = Mode(asked)
        except ValueError:
            choices = " or ".join(each.value for each in Mode)
            raise StackError(f"STACK: {asked!r} is not a mode; write {choices}") from None
        if mode is Mode.SLURM and os.geteuid() != 0:
            raise StackError("STACK: 'slurm' needs root; run it as root, or write embedded")
        return mode, ""
    if os.geteuid() != 0:
        return Mode.EMBEDDED, "not root, so no Slurm: the embedded cluster is used instead"
    return Mode.SLURM, ""


def _port(environment: Mapping[str, str], default: int, variable: str) -> int:
    text = environment.get(variable, "") or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise StackError(f"{variable}: {text!r} is not a port; write a number from 1 to 65535")
    return int(text)
