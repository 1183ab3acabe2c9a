"""The tables and stores that jobs are tried on, each on free ports of loopback."""

from __future__ import annotations

import getpass
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import boto3

from tests.stack import aws
from tests.stack.process import Service, ensure, known_services, stop
from tests.stack.settings import (
    ACCESS_KEY,
    BUCKET,
    LOOPBACK,
    PORTS,
    REGION,
    ROOT,
    SECRET_KEY,
    TABLE,
    Mode,
    Settings,
    StackError,
    listening,
)
from tests.stack.state_folder import state_folder

_DYNALITE = ROOT / "tests" / "engines" / "dynalite"
#: SeaweedFS listens on each of its ports and on the one that is so much higher.
_GRPC = 10
#: Below the ports that the system gives to clients.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000


class Table(str, Enum):
    """A database with DynamoDB's API."""

    MOTO = "moto's DynamoDB"
    DYNALITE = "dynalite"


class Store(str, Enum):
    """A store with S3's API."""

    SEAWEEDFS = "SeaweedFS"
    MOTO = "moto's S3"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the services are; each table and bucket exists."""

    tables: Mapping[Table, str]
    stores: Mapping[Store, str]


@contextmanager
def serving_all() -> Iterator[Endpoints]:
    """Start every table and store; they end with the block.

    Raises:
        StackError: if one can't be started.
    """
    modules = _installed_dynalite()
    with TemporaryDirectory(prefix="engines-") as folder:
        ports = _free_ports()
        main = _settings(Path(folder) / "main", next(ports))
        other = _settings(Path(folder) / "dynalite", next(ports))
        try:
            aws.start(main)
            ensure(other, _dynalite(other, modules))
            aws.create_table(client("dynamodb", other.dynamodb_url), TABLE)
            client("s3", main.dynamodb_url).create_bucket(Bucket=BUCKET)
            yield Endpoints(
                {Table.MOTO: main.dynamodb_url, Table.DYNALITE: other.dynamodb_url},
                {Store.SEAWEEDFS: main.s3_url, Store.MOTO: main.dynamodb_url},
            )
        finally:
            _stop(main, other)


@contextmanager
def serving_moto() -> Iterator[str]:
    """Start moto alone, with its table and its bucket; its URL."""
    with TemporaryDirectory(prefix="engines-") as folder:
        settings = _settings(Path(folder) / "moto", next(_free_ports()))
        try:
            ensure(settings, aws.moto(settings))
            aws.create_table(client("dynamodb", settings.dynamodb_url), TABLE)
            client("s3", settings.dynamodb_url).create_bucket(Bucket=BUCKET)
            yield settings.dynamodb_url
        finally:
            _stop(settings)


def client(service: Literal["s3", "dynamodb"], url: str) -> Any:
    """A client of one service, with the only key that SeaweedFS knows."""
    session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
    return session.client(service, endpoint_url=url)


def _settings(state: Path, ports: Mapping[str, int]) -> Settings:
    state.mkdir(parents=True)
    return Settings(
        state=state.resolve(),
        mode=Mode.SLURM,
        why="",
        user=getpass.getuser(),
        dynamodb_endpoint=None,
        ports=ports,
    )


def _stop(*all_settings: Settings) -> None:
    for settings in all_settings:
        for running in reversed(known_services(settings.state)):
            stop(settings.state, running)


def _dynalite(settings: Settings, modules: Path) -> Service:
    return Service(
        name="dynalite",
        argv=(_node("node"), str(_DYNALITE / "serve.js"), str(modules), *_port_of(settings)),
        port="dynamodb",
        needs="nodejs",
    )


def _port_of(settings: Settings) -> tuple[str]:
    return (str(settings.ports["dynamodb"]),)


def _installed_dynalite() -> Path:
    """The folder with the locked packages of dynalite; installed if they are not there."""
    folder = state_folder(ROOT) / "tools" / "dynalite"
    lock = (_DYNALITE / "package-lock.json").read_text()
    installed = folder / "installed.json"
    if installed.exists() and installed.read_text() == lock:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_DYNALITE / name, folder / name)
    # No package's own script is run: dynalite needs none for tables in memory.
    ended = subprocess.run(
        [_node("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if ended.returncode:
        raise StackError(f"dynalite: npm ci failed: {ended.stderr.strip()}")
    installed.write_text(lock)
    return folder


def _node(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise StackError(f"dynalite: {program} is not installed; install nodejs and npm")
    return found


def _free_ports() -> Iterator[Mapping[str, int]]:
    """Ports for all names of `PORTS`, again and again others.

    They are picked at random, because another run of the tests may look for free ports now.
    """
    ports = list(range(_FIRST_PORT, _LAST_PORT, 2 * _GRPC))
    random.shuffle(ports)
    left = iter(ports)
    while True:
        yield {name: next(port for port in left if _is_free(port)) for name in PORTS}


def _is_free(port: int) -> bool:
    return not listening(port) and not listening(port + _GRPC) and _can_listen(port)


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
