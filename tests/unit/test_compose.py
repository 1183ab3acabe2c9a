"""What `docker-compose.yaml` promises by its text; `make compose-check` runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stack.settings import ROOT

DOCUMENT = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
PODMAN = yaml.safe_load((ROOT / "tests/compose/podman.yaml").read_text())
SERVICES: dict[str, Any] = DOCUMENT["services"]
PINNED = re.compile(r"docker\.io/[a-z/-]+:\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}")
#: Bases that are made here, of Debian's own archive: see podman.yaml.
LOCAL = re.compile(r"localhost/[\w.:-]+")


def depends_on(service: dict[str, Any]) -> dict[str, Any]:
    return dict(service.get("depends_on") or {})


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_built_here_or_pinned(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or PINNED.fullmatch(service["image"])


@pytest.mark.parametrize("path", sorted((ROOT / "tests/compose").glob("*.Dockerfile")))
def test_every_image_is_built_on_a_digest(path: Path) -> None:
    text = path.read_text()
    stages = set(re.findall(r"^FROM .* AS (\w+)$", text, re.MULTILINE))
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    bases = [
        arguments.get(base.strip("${}"), base)
        for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    ]
    assert bases
    for base in bases:
        assert base in stages or LOCAL.fullmatch(base) or PINNED.fullmatch(base)


def test_only_machines_of_the_cluster_start_as_root() -> None:
    roots = set()
    for name, service in SERVICES.items():
        file = service.get("build", {}).get("dockerfile")
        users = re.findall(r"^USER (\w+)$", (ROOT / file).read_text(), re.MULTILINE) if file else []
        # The base of Airflow's image has a user of its own.
        user = (
            service.get("user") or (users or ["airflow" if "airflow" in str(file) else "root"])[-1]
        )
        if user == "root":
            roots.add(name)
    assert roots == {"secrets", "slurmdbd", "slurmctld", "node1", "node2", "login"}


def test_every_action_is_pinned_by_its_commit() -> None:
    used = [
        action
        for path in (ROOT / ".github/workflows").glob("*.y*ml")
        for action in re.findall(r"uses:\s*(\S+)", path.read_text())
    ]
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", each)] == []


@pytest.mark.parametrize("name", SERVICES)
def test_each_waits_until_what_it_needs_is_well(name: str) -> None:
    for needed, how in depends_on(SERVICES[name]).items():
        ends = SERVICES[needed].get("restart") == "no"
        wanted = "service_completed_successfully" if ends else "service_healthy"
        assert how["condition"] == wanted
        assert ends or "healthcheck" in SERVICES[needed]


def test_what_is_kept_is_in_volumes_that_are_declared() -> None:
    mounts = [
        mount.split(":")[0] for each in SERVICES.values() for mount in each.get("volumes", [])
    ]
    named = {each for each in mounts if not each.startswith(".")}
    assert named == set(DOCUMENT["volumes"])


def test_the_check_by_podman_runs_the_same_services() -> None:
    assert set(PODMAN["services"]) == set(SERVICES)
