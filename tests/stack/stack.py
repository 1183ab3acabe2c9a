"""The stack as a whole: bring it up, take it down, tell how it is.

Up is safe to repeat: what runs is left alone, what is missing is added. Down ends only
what up has started, the last first.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.stack import airflow, aws, login, slurm
from tests.stack.process import Running, Service, ensure, known_services, run, stop
from tests.stack.settings import ROOT, Mode, Settings, StackError, listening, read_settings
from tests.stack.site import write_site
from tests.stack.state_folder import state_folder

_PYTHON = str(ROOT / ".venv" / "bin" / "python")
_SEED = "example_dags.seed"
_PLANES = "example_dags.backfill_planes_api.server"
#: services that each mode needs; a stack with all of them alive is up
_COMMON = ("moto", "airflow-api", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
_CHAIN = ("munged", "mariadb", "slurmdbd", "slurmctld", "slurmd-node1", "slurmd-node2")
_CLUSTER = (*_CHAIN, "sshd", "seaweedfs")


def up(say: Callable[[str], None]) -> Settings:
    """Bring the whole stack up.

    Raises:
        StackError: naming each service that can't be started, and why.
    """
    settings = read_settings(os.environ, state_folder(ROOT))
    with _alone(settings.state, say):
        _check_choice(settings)
        _remember_choice(settings)
        _bring_up(settings, say)
    return settings


def down(state: Path, say: Callable[[str], None]) -> None:
    """End everything that was started; returns when nothing is left."""
    with _alone(state, say):
        _take_down(state, say)


def problems(state: Path) -> list[str]:
    """What is not as it should be in a stack that was brought up; empty if all is well."""
    settings = remembered_settings(state)
    if settings is None or not (state / "env").exists():
        return ["the stack is not up"]
    found = {each.name: each for each in known_services(state)}
    wanted = [*_COMMON, *(_CLUSTER if _is_slurm(settings) else ())]
    if settings.dynamodb_endpoint and _is_slurm(settings):
        wanted.remove("moto")
    return [
        *(f"{name} is not running" for name in wanted if name not in found),
        *(
            f"{each.name} has ended; see {state}/logs/{each.name}.log"
            for each in found.values()
            if not each.alive
        ),
        *(f"{each.name} does not answer" for each in found.values() if _is_deaf(each)),
    ]


def report(state: Path) -> list[str]:
    """A line per service."""
    return [
        f"{each.name:<22} {'up' if each.alive else 'ended':<6} "
        f"pid {each.pid:<8} {each.address or '-'}"
        for each in known_services(state)
    ]


def _bring_up(settings: Settings, say: Callable[[str], None]) -> None:
    for remark in (settings.why, slurm.warning(settings) if _is_slurm(settings) else ""):
        if remark:
            say(remark)
    if _is_slurm(settings):
        login.prepare_keys(settings)
    variables = write_site(settings)
    parts: dict[str, Callable[[], list[str]]] = {
        "S3, DynamoDB, inputs": lambda: _storage(settings, variables),
        "Airflow": lambda: airflow.start(settings, variables),
    }
    if _is_slurm(settings):
        parts["Slurm, sshd"] = lambda: _cluster(settings)
    _all(parts, say)


def _take_down(state: Path, say: Callable[[str], None]) -> None:
    running = known_services(state)
    settings = remembered_settings(state)
    if settings is not None:
        if _is_slurm(settings):
            slurm.cancel_jobs(settings, running)
        else:
            _end_embedded(settings)
    # The cluster's daemons end one after the other; nothing else needs an order, only time.
    chain = [each for each in running if each.name in _CHAIN]
    alone = [each for each in running if each.name not in _CHAIN]
    with ThreadPoolExecutor(len(alone) + 1) as pool:
        list(pool.map(lambda each: stop(state, each), alone))
    for each in reversed(chain):
        stop(state, each)
    (state / "choice.json").unlink(missing_ok=True)
    say(f"stopped {', '.join(each.name for each in running)}" if running else "nothing was up")


@contextlib.contextmanager
def _alone(state: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one up or down at a time touch the stack; the next one waits for it."""
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another up or down is under way; waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _storage(settings: Settings, variables: Mapping[str, str]) -> list[str]:
    started = aws.start(settings)
    environment = {**os.environ, **variables}
    if _module_is_there(_SEED):
        run([_PYTHON, "-m", _SEED], environment=environment, timeout=300.0)
    if _module_is_there(_PLANES):
        port = str(settings.ports["planes-api"])
        log = settings.state / "planes-api.jsonl"
        planes = Service(
            name="planes-api",
            argv=(_PYTHON, "-m", _PLANES, "--port", port, "--log", str(log)),
            environment=environment,
            port="planes-api",
        )
        started += [planes.name] if ensure(settings, planes) else []
    return started


def _cluster(settings: Settings) -> list[str]:
    login.prepare_user(settings)
    login.prepare_other_user(settings)
    started = slurm.start(settings)
    service = login.sshd(settings, slurm.slurm_conf(settings))
    started += [service.name] if ensure(settings, service) else []
    run([*login.ssh_command(settings), "sinfo -h"], timeout=30.0)
    return started


def _all(parts: Mapping[str, Callable[[], Sequence[str]]], say: Callable[[str], None]) -> None:
    """Start the parts together; wait for all of them, and only then complain."""

    def timed(name: str) -> str:
        began = time.monotonic()
        try:
            started = parts[name]()
        except StackError as error:
            return str(error)
        seconds = time.monotonic() - began
        say(f"{name}: {'started ' + ', '.join(started) if started else 'up'} ({seconds:.1f} s)")
        return ""

    with ThreadPoolExecutor(len(parts)) as pool:
        failures = [text for text in pool.map(timed, parts) if text]
    if failures:
        raise StackError("\n".join(failures))


def _end_embedded(settings: Settings) -> None:
    scancel = settings.state / "cluster" / "bin" / "scancel"
    if scancel.exists():
        squeue = subprocess.run(
            [scancel.with_name("squeue"), "-h", "-o", "%A"],
            capture_output=True,
            text=True,
            check=False,
        )
        jobs = sorted(set(squeue.stdout.split()))
        if jobs:
            run([scancel, *jobs])


def _check_choice(settings: Settings) -> None:
    before = remembered_settings(settings.state)
    if before is None or not any(each.alive for each in known_services(settings.state)):
        return
    if (before.mode, before.ports, before.user) != (settings.mode, settings.ports, settings.user):
        raise StackError(
            f"a stack with other settings is up (STACK={before.mode.value}, user {before.user}); "
            "take it down first (make stack-down)"
        )


def _remember_choice(settings: Settings) -> None:
    (settings.state / "choice.json").write_text(
        json.dumps(
            {
                "mode": settings.mode.value,
                "user": settings.user,
                "dynamodb_endpoint": settings.dynamodb_endpoint,
                "ports": dict(settings.ports),
            }
        )
    )


def remembered_settings(state: Path) -> Settings | None:
    """The settings of the stack that was brought up; None if none was."""
    path = state / "choice.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return Settings(
        state=state,
        mode=Mode(found["mode"]),
        why="",
        user=found["user"],
        dynamodb_endpoint=found["dynamodb_endpoint"],
        ports=found["ports"],
    )


def _module_is_there(name: str) -> bool:
    sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _is_deaf(running: Running) -> bool:
    if not running.alive or not running.address:
        return False
    host, _, port = running.address.rpartition(":")
    return not listening(int(port), host)


def _is_slurm(settings: Settings) -> bool:
    return settings.mode is Mode.SLURM
