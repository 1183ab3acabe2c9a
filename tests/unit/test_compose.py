"""What `docker-compose.yaml` promises by its text; `make compose-check` runs it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.stack.settings import ROOT

DOCUMENT = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
PODMAN = yaml.safe_load((ROOT / "tests/compose/podman.yaml").read_text())
SERVICES: dict[str, Any] = DOCUMENT["services"]
TAG = re.compile(r"^docker\.io/[a-z/-]+:\d+\.\d+[\w.-]*$")


def depends_on(service: dict[str, Any]) -> dict[str, Any]:
    return dict(service.get("depends_on") or {})


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_built_here_or_pinned(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or TAG.match(service["image"])


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
