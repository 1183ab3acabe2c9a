"""A whole Slurm cluster on this machine: munge, MariaDB, slurmdbd, slurmctld and two nodes.

As root, with Debian's packages. Configuration, sockets, spools and the accounting database
are the stack's own, below ``munge/``, ``mariadb/`` and ``slurm/``; nothing in /etc is read.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

from tests.stack.process import Running, Service, ensure, run, wait_until
from tests.stack.settings import LOOPBACK, Settings, StackError

CLUSTER = "lab"
NODES = ("node1", "node2")
#: Elements that an array may have; few, so that several arrays are needed for more.
MAX_ARRAY_SIZE = 12
#: Jobs that a user of the account `few` may have in the queue.
FEW_JOBS = 5

_SLURM_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}({address})
SlurmctldPort={slurmctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=30
CommunicationParameters={communication}
StateSaveLocation={slurm}/state
SlurmdSpoolDir={slurm}/spool-%n
SlurmctldPidFile={slurm}/slurmctld.pid
SlurmdPidFile={slurm}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=200
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=10000,bf_interval=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
MaxArraySize={max_array_size}
AccountingStorageEnforce=limits
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={munge}
NodeName=node1 NodeHostname={host} NodeAddr={address} Port={node1_port} CPUs=8 RealMemory=4000
NodeName=node2 NodeHostname={host} NodeAddr={address} Port={node2_port} CPUs=8 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge}
CommunicationParameters={communication}
DbdHost={host}
DbdAddr={address}
DbdPort={slurmdbd_port}
SlurmUser=root
PidFile={slurm}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost={loopback}
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""

_MARIADB_INIT = """\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS 'slurm'@'{loopback}';
ALTER USER 'slurm'@'{loopback}' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO 'slurm'@'{loopback}';
"""


def slurm_conf(settings: Settings) -> Path:
    """The cluster's configuration, as SLURM_CONF names it."""
    return settings.state / "slurm" / "slurm.conf"


def start(settings: Settings) -> list[str]:
    """Start the cluster and wait for both nodes; return the names of started services."""
    _write_configuration(settings)
    below = (_munged(settings), _mariadb(settings), _slurmdbd(settings))
    started = [service.name for service in below if ensure(settings, service)]
    _ask(settings, "sacctmgr", "-i", "add", "cluster", CLUSTER, known="already exists")
    _add_accounts(settings)
    above = (_slurmctld(settings), *(_slurmd(settings, node) for node in NODES))
    started += [service.name for service in above if ensure(settings, service)]
    _resume_nodes(settings)
    return started


def _add_accounts(settings: Settings) -> None:
    """The users' account, and one whose users may have few jobs in the queue."""
    for account, limit in (("lab", ()), ("few", (f"MaxSubmitJobs={FEW_JOBS}",))):
        _ask(settings, "sacctmgr", "-i", "add", "account", account, known="Nothing new")
        for user in sorted({settings.user, getpass.getuser()}):
            command = ("sacctmgr", "-i", "add", "user", user, f"account={account}", *limit)
            _ask(settings, *command, known="Nothing new")


def cancel_jobs(settings: Settings, running: list[Running]) -> None:
    """End all jobs, so that none outlives the node daemons; needs a controller that runs."""
    if not any(each.name == "slurmctld" and each.alive for each in running):
        return
    if _queue(settings):
        for state in ("PENDING", "RUNNING", "SUSPENDED"):
            _ask(settings, "scancel", f"--state={state}")
        if not wait_until(lambda: not _queue(settings), 20.0):
            _ask(settings, "scancel", "--signal=KILL", "--full", f"--user={settings.user}")


def warning(settings: Settings) -> str:
    """What a user should know about where the daemons listen; empty if on loopback alone."""
    host, address = _own_address()
    if address.startswith("127."):
        return ""
    return (
        f"Slurm's daemons listen on all interfaces, because /etc/hosts does not map this machine's "
        f"name, {host}, to loopback (they answer only to this stack's own munge key)"
    )


def _write_configuration(settings: Settings) -> None:
    folder = settings.folder("slurm")
    settings.folder("slurm/state", 0o700)
    host, address = _own_address()
    values = {
        "cluster": CLUSTER,
        "max_array_size": MAX_ARRAY_SIZE,
        "host": host,
        "address": address if address.startswith("127.") else LOOPBACK,
        "communication": (
            "NoCtldInAddrAny,NoInAddrAny" if address.startswith("127.") else "block_null_hash"
        ),
        "munge": settings.state / "munge" / "munge.socket",
        "slurm": folder,
        "loopback": LOOPBACK,
        "password": _password(settings),
        **{f"{name}_port": port for name, port in settings.ports.items() if "-" not in name},
    }
    slurm_conf(settings).write_text(_SLURM_CONF.format(**values))
    _write_secret(folder / "slurmdbd.conf", _SLURMDBD_CONF.format(**values))
    _write_secret(
        settings.folder("mariadb", 0o711) / "init.sql", _MARIADB_INIT.format(**values), "mysql"
    )


def _munged(settings: Settings) -> Service:
    folder = settings.folder("munge")
    key = folder / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
    sock = folder / "munge.socket"
    if len(str(sock)) > 100:
        raise StackError(f"{sock}: is too long for a socket; clone to a shorter path")
    return Service(
        name="munged",
        argv=(
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}"),
            *(f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"),
        ),
        ready=lambda: _answers(settings, "munge", "-n", "-S", str(sock)),
        needs="munge",
    )


def _mariadb(settings: Settings) -> Service:
    folder = settings.folder("mariadb", 0o711)
    data = folder / "data"
    if not (data / "mysql").is_dir():
        data.mkdir(exist_ok=True)
        shutil.chown(data, "mysql", "mysql")
        run(
            [
                *("mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}"),
                *("--skip-test-db", "--auth-root-authentication-method=socket"),
            ]
        )
    port = settings.ports["mariadb"]
    return Service(
        name="mariadb",
        argv=(
            *("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}"),
            *("--socket=mariadb.sock", f"--port={port}", f"--bind-address={LOOPBACK}"),
            *("--skip-name-resolve", f"--init-file={folder}/init.sql"),
            *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
        ),
        port="mariadb",
        needs="mariadb-server",
    )


def _slurmdbd(settings: Settings) -> Service:
    return Service(
        name="slurmdbd",
        argv=("slurmdbd", "-D"),
        environment=_environment(settings),
        ready=lambda: _answers(settings, "sacctmgr", "-n", "show", "cluster"),
        claims=("slurmdbd",),
        needs="slurmdbd",
    )


def _slurmctld(settings: Settings) -> Service:
    return Service(
        name="slurmctld",
        argv=("slurmctld", "-D"),
        environment=_environment(settings),
        ready=lambda: _answers(settings, "scontrol", "ping"),
        claims=("slurmctld",),
        needs="slurm-wlm",
    )


def _slurmd(settings: Settings, node: str) -> Service:
    settings.folder(f"slurm/spool-{node}")
    return Service(
        name=f"slurmd-{node}",
        argv=("slurmd", "-D", "-N", node),
        environment=_environment(settings),
        claims=(node,),
        needs="slurm-wlm",
    )


def _resume_nodes(settings: Settings) -> None:
    """Wait until the nodes take work; a node that was down or drained is put back first."""

    def useful() -> bool:
        states = _ask(settings, "sinfo", "-h", "-N", "-o", "%N=%T").split()
        at_work = ("idle", "mixed", "allocated", "completing")
        idle = [node for node in NODES if any(f"{node}={state}" in states for state in at_work)]
        for node in set(NODES) - set(idle):
            _ask(
                settings,
                *("scontrol", "update", f"nodename={node}", "state=resume"),
                known="Invalid node state specified",  # it is still registering
            )
        return len(idle) == len(NODES)

    if not wait_until(useful, 30.0):
        report = _ask(settings, "sinfo", "-N", "-l")
        raise StackError(f"slurm: the nodes did not become idle in 30 s:\n{report}")


def _queue(settings: Settings) -> str:
    return _ask(settings, "squeue", "-h", "-o", "%A").strip()


def _ask(settings: Settings, *argv: str, known: str = "") -> str:
    """Run one of Slurm's commands; a failure that says `known` is none."""
    try:
        return run(argv, environment=_environment(settings), timeout=30.0)
    except StackError as error:
        if known and known in str(error):
            return ""
        raise


def _answers(settings: Settings, *argv: str) -> bool:
    ended = subprocess.run(
        argv,
        env=_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return ended.returncode == 0 and "DOWN" not in ended.stdout


def _environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, "SLURM_CONF": str(slurm_conf(settings))}


def _own_address() -> tuple[str, str]:
    """This machine's short name, which Slurm's daemons compare, and its address."""
    host = socket.gethostname().partition(".")[0]
    try:
        return host, socket.gethostbyname(socket.gethostname())
    except OSError:
        return host, ""


def _password(settings: Settings) -> str:
    path = settings.folder("slurm") / "password"
    if not path.exists():
        _write_secret(path, secrets.token_hex(16))
    return path.read_text()


def _write_secret(path: Path, text: str, owner: str = "root") -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    shutil.chown(path, owner)
    path.write_text(text)
