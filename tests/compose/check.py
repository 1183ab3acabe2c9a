"""Runs the compose stack with podman: ``python -m tests.compose.check``.

It needs root, and the development stack must be down, because both use the same ports. It builds
the images of ``docker-compose.yaml`` and starts every service in order, on the network of the
machine. Then it runs a job over SSH and takes a node down meanwhile. With ``--airflow`` it also
runs both example DAGs in the containers' Airflow. At the end it stops everything
that it has started.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.progress import read_progress
from slurm_worker.protocol.keys import JobId
from tests.stack.airflow_api import AirflowApi
from tests.stack.demo import DAGS, report_failure, reset_planes_api, run_dags
from tests.stack.facts import job_facts

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PROJECT = "airflow-slurm-check"
BASE = "localhost/debian:bookworm"
#: Substitutes for images that can't be pulled: name, stage of substitutes.Dockerfile.
BASES = {"localhost/substitute-airflow": "airflow"}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
LOST = "node2"
ITEMS_JOB = "compose-check"


class CheckError(Exception):
    """The stack is not as it should be; the message says what is wrong."""


class Compose:
    """The merged description, and the containers made from it.

    Args:
        folder: for settings.
    """

    def __init__(self, folder: Path) -> None:
        self._environment = _podman_environment(folder)
        self.build_options = _build_options(folder)
        documents = [
            yaml.safe_load((ROOT / "docker-compose.yaml").read_text()),
            yaml.safe_load((HERE / "podman.yaml").read_text()),
        ]
        ours, theirs = (document["services"] for document in documents)
        self.services: dict[str, Any] = {
            name: {**service, **theirs.get(name, {})} for name, service in ours.items()
        }

    def podman(self, *arguments: str, check: bool = True, seconds: float = 900.0) -> str:
        """Run podman; return its output.

        Raises:
            CheckError: if it failed.
        """
        ended = subprocess.run(
            ["podman", *arguments], env=self._environment, capture_output=True, text=True,
            check=False, timeout=seconds,
        )  # fmt: skip
        if check and ended.returncode:
            raise CheckError(f"podman {' '.join(arguments[:6])} …: {ended.stderr.strip()[-2000:]}")
        return ended.stdout + ended.stderr

    def compose(self, *arguments: str) -> None:
        """Run podman-compose on both files."""
        program = Path(sys.executable).with_name("podman-compose")
        files = ("-f", "docker-compose.yaml", "-f", str(HERE / "podman.yaml"))
        ended = subprocess.run(
            [str(program), "-p", PROJECT, *files, *arguments],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ended.returncode:
            output = (ended.stdout + ended.stderr)[-3000:]
            raise CheckError(f"podman-compose {' '.join(arguments)}: {output}")

    def in_order(self, wanted: set[str]) -> list[str]:
        """The services with all that they need, each after what it depends on."""
        needs = {name: list(each.get("depends_on") or ()) for name, each in self.services.items()}
        return [
            name for name in TopologicalSorter(needs).static_order() if name in _with(needs, wanted)
        ]

    def container(self, service: str) -> str:
        """The name of its container."""
        return f"{PROJECT}_{service}_1"

    def start(self, service: str) -> None:
        """Start it, and wait until it is well, or, where it is to end, has ended well."""
        self.compose("up", "-d", "--no-deps", "--no-build", service)
        name = self.container(service)
        if self.services[service].get("restart") == "no":
            code = self.podman("wait", name).strip()
            if code != "0":
                raise CheckError(f"{service} ended with {code}: {self.logs(service)}")
        elif "healthcheck" in self.services[service]:
            self._until_healthy(service, name)

    def logs(self, service: str) -> str:
        """The end of what it has said."""
        return self.podman("logs", "--tail", "30", self.container(service), check=False)

    def _until_healthy(self, service: str, name: str, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not self._succeeds("healthcheck", "run", name):
            running = self.podman("inspect", "-f", "{{.State.Running}}", name).strip()
            if time.monotonic() > deadline or running != "true":
                said = self.podman("healthcheck", "run", name, check=False).strip()
                raise CheckError(f"{service}: {said}: {self.logs(service)}")
            time.sleep(1)

    def _succeeds(self, *arguments: str) -> bool:
        command = ["podman", *arguments]
        return not subprocess.run(
            command, env=self._environment, capture_output=True, check=False
        ).returncode


def _with(needs: Mapping[str, list[str]], wanted: set[str]) -> set[str]:
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += needs[name]
    return found


def build(compose: Compose, services: list[str], say: Callable[[str], None]) -> None:
    """Build the images: the base from Debian's packages where no registry has it."""
    if BASE not in compose.podman("images", "--format", "{{.Repository}}:{{.Tag}}"):
        _make_base(compose, say)
    wanted = {name for name in services if "build" in compose.services[name]}
    uses = {arg for name in wanted for arg in _build_arguments(compose.services[name]).values()}
    for image, stage in BASES.items():
        if image in uses:
            say(f"building {image}")
            what = ("--target", stage, "-t", image, "-f", str(HERE / "substitutes.Dockerfile"))
            compose.podman("build", *compose.build_options, *what, str(ROOT), seconds=1800.0)
    images = {compose.services[name]["image"]: name for name in sorted(wanted)}
    say(f"building {', '.join(images)}")
    options = ("--podman-build-args", " ".join(compose.build_options))
    compose.compose(*options, "build", *images.values())


def _build_arguments(service: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = service["build"].get("args", {})
    return found


def _make_base(compose: Compose, say: Callable[[str], None]) -> None:
    slurm = (HERE / "slurm.Dockerfile").read_text()
    pulled = slurm.partition("ARG DEBIAN=")[2].splitlines()[0]
    if "Storing signatures" in compose.podman("pull", pulled, check=False):
        compose.podman("tag", pulled, BASE)
        return
    say("no registry: making the base image by debootstrap")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", folder], check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        archive = subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["podman", "import", "-", BASE], stdin=archive.stdout, check=True)
        archive.wait()


@contextmanager
def running(compose: Compose, services: list[str], say: Callable[[str], None]) -> Iterator[None]:
    """The services, until the end of the block."""
    try:
        for service in services:
            began = time.monotonic()
            compose.start(service)
            say(f"{service}: up ({time.monotonic() - began:.1f} s)")
        yield
    finally:
        compose.compose("down", "--volumes", "-t", "10")
        say("all containers have ended")


def client_environment(compose: Compose, folder: Path) -> dict[str, str]:
    """What a client on this machine needs: keys out of the volume, a site file."""
    secrets = compose.podman(
        "volume", "inspect", "-f", "{{.Mountpoint}}", f"{PROJECT}_secrets"
    ).strip()
    site = yaml.safe_load((HERE / "slurmctl.yaml").read_text())
    site["aws"] |= {
        "s3_endpoint_url": "http://127.0.0.1:8333",
        "dynamodb_endpoint_url": "http://127.0.0.1:8000",
    }
    site["cluster"] |= {
        "host": "127.0.0.1",
        "key_file": f"{secrets}/client/id_ed25519",
        "known_hosts": f"{secrets}/client/known_hosts",
    }
    (folder / "slurmctl.yaml").write_text(yaml.safe_dump(site))
    return {
        "SLURMCTL_CONFIG": str(folder / "slurmctl.yaml"),
        "AWS_ACCESS_KEY_ID": "stack",
        "AWS_SECRET_ACCESS_KEY": "opens-nothing-but-the-stack-on-loopback",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:8333",
        "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:8000",
        "AIRFLOW_API_URL": "http://127.0.0.1:8080",
        "AIRFLOW_API_USER": "admin",
        "AIRFLOW_API_PASSWORD": "local-use-only",
        "PLANES_API_URL": "http://127.0.0.1:8090",
    }


def slurmctl(*arguments: str) -> str:
    """Run the command line on this machine.

    Raises:
        CheckError: if it failed.
    """
    program = Path(sys.executable).with_name("slurmctl")
    ended = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    if ended.returncode:
        raise CheckError(f"slurmctl {' '.join(arguments)}: {ended.stderr.strip()[-2000:]}")
    return ended.stdout


def lose_a_node(compose: Compose, services: Services, folder: Path) -> None:
    """Run a job over SSH, and take down a node with workers meanwhile."""
    config = _write_job(folder)
    slurmctl("submit", str(config))
    job_id = JobId(ITEMS_JOB)

    def on_the_node() -> bool:
        arrays = arrays_of(services, job_id, services.jobs(job_id).submissions())
        states = [services.slurm.array(each).elements.values() for each in arrays]
        return any(e.node == LOST and e.state.value == "RUNNING" for each in states for e in each)

    _until(on_the_node, "a worker on the node", 120.0)
    _until(lambda: read_progress(services, job_id).ok, "a first result", 120.0)
    compose.podman("kill", compose.container(LOST))
    slurmctl("wait", ITEMS_JOB)
    slurmctl("aggregate", ITEMS_JOB)
    problems = job_facts(services, ITEMS_JOB).problems()
    if problems:
        raise CheckError(f"{ITEMS_JOB}: {problems}")


def _write_job(folder: Path) -> Path:
    items = "".join(f'{{"id": "k{n}", "n": {n}}}\n' for n in range(400))
    (folder / "items.jsonl").write_text(items)
    (folder / "handler.py").write_text(
        "import time\n\ndef handle(item, context):\n    time.sleep(0.5)\n"
        "    return {'n': item['n']}\n"
    )
    config = {
        "job_id": ITEMS_JOB,
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": 5,
        "workers": 6,
        "handler": {"entry": "handler:handle", "code": "."},
        "slurm": {"mem": "300M", "time": "20"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _until(happens: Callable[[], object], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            raise CheckError(f"{what}: did not come about in {seconds:g} s")
        time.sleep(1)


def main() -> int:
    """Run the check; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--airflow", action="store_true", help="Airflow and both DAGs as well")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(f"compose: {text}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            _check(options.airflow, folder, say)
        except CheckError as error:
            print(f"compose: {error}", file=sys.stderr)
            return 1
    say("all is well")
    return 0


def _check(airflow: bool, folder: Path, say: Callable[[str], None]) -> None:
    _accepted()
    compose = Compose(folder)
    wanted = set(compose.services) if airflow else {"login", "storage"}
    services = compose.in_order(wanted)
    build(compose, services, say)
    with running(compose, services, say):
        os.environ.update(client_environment(compose, folder))
        opened = open_services(load_site(os.environ["SLURMCTL_CONFIG"]))
        try:
            if airflow:
                _run_dags(opened, say)
            lose_a_node(compose, opened, folder)
            say("a job finished although a node was taken down; all counts are right")
        finally:
            opened.close()


def _accepted() -> None:
    """Docker's own program takes the file as it is.

    Raises:
        CheckError: with what it says, if not.
    """
    ended = subprocess.run(
        ["docker-compose", "-f", "docker-compose.yaml", "config", "-q"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise CheckError(f"docker-compose config: {ended.stderr.strip()}")


def _run_dags(services: Services, say: Callable[[str], None]) -> None:
    reset_planes_api(os.environ["PLANES_API_URL"])
    api = AirflowApi.of_stack(os.environ)
    for dag_id, run in run_dags(api, DAGS, 1200.0).items():
        if run.state != "success":
            report_failure(api, run)
            raise CheckError(f"{dag_id}: the run ended as {run.state}")
        problems = job_facts(services, str(api.return_value(run, "submit"))).problems()
        if problems:
            raise CheckError(f"{dag_id}: {problems}")
        say(f"{dag_id}: all adds up")


def _podman_environment(folder: Path) -> dict[str, str]:
    """Podman's settings where there is neither systemd nor a bridge."""
    conf = folder / "containers.conf"
    conf.write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4000:4000"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    return {
        **os.environ,
        "CONTAINERS_CONF": str(conf),
        "BUILDAH_ISOLATION": "chroot",
        # Health is asked for by this program, not by systemd's timers.
        "DISABLE_HC_SYSTEMD": "true",
    }


def _build_options(folder: Path) -> tuple[str, ...]:
    """Podman's options of a build: whom this machine trusts is trusted in it, too."""
    conf = folder / "pip.conf"
    # Elsewhere than in the image's own place, which its package ca-certificates writes to.
    inside = "/etc/pip-certificates.crt"
    conf.write_text(f"[global]\ncert = {inside}\n")
    trusted = ("-v", f"{CERTIFICATES}:{inside}:ro", "-v", f"{conf}:/etc/pip.conf:ro")
    return ("--isolation", "chroot", "--network", "host", *trusted)


if __name__ == "__main__":
    sys.exit(main())
