"""Ctrl-C at any request: exit code 130, and the same command again completes one job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.coordinator import services as services_module
from airflow_slurm_provider.coordinator.services import Services
from tests.unit.cli.conftest import ITEMS, Cli, Ended, Handler
from tests.unit.coordinator.planning.test_retry_round import cut_at

#: More requests than a command makes.
_MOST = 200


def interrupted_at(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, left: int, *, after: bool, command: list[str]
) -> Ended:
    """Run a command, with Ctrl-C at its n-th request."""

    def open_services(_site: object) -> Services:
        return cut_at(cli.services, left, after=after, end=KeyboardInterrupt)

    with monkeypatch.context() as patch:
        patch.setattr(services_module, "open_services", open_services)
        return cli(*command)


def steps(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[[int], list[str]],
    prepare: Callable[[int], object],
    check: Callable[[int], object],
    *,
    after: bool,
    step: int = 1,
) -> int:
    """Interrupt a fresh job's command at each, or each so-manieth, request; how many it makes."""
    for left in range(1, _MOST, step):
        prepare(left)
        ended = interrupted_at(cli, monkeypatch, left, after=after, command=command(left))
        if ended.code == ExitCode.OK:
            return left
        assert ended.code == ExitCode.INTERRUPTED, ended.err
        assert ended.err.endswith("interrupted; running the same command again continues\n")
        check(left)
    raise AssertionError("it makes no end of requests")


def arrays_of(cli: Cli, name: str) -> set[str]:
    """Names of the arrays that were submitted for a job; a name is submitted once."""
    return {array for array in cli.slurm.names if array.startswith(f"{name}.")}


@pytest.mark.parametrize("after", [False, True])
def test_submit_continues_wherever_it_was_interrupted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    def command(number: int) -> list[str]:
        return ["submit", str(cli.config), "--job-id", f"job-{number}"]

    def check(number: int) -> None:
        again = cli(*command(number), "--json")
        assert again.code == ExitCode.OK, again.err
        assert (again.json["items"], again.json["tasks"]) == (ITEMS, 3)
        assert len(arrays_of(cli, f"job-{number}")) == 1

    assert steps(cli, monkeypatch, command, lambda _: None, check, after=after, step=2) > 20


@pytest.mark.parametrize("after", [False, True])
def test_retry_continues_wherever_it_was_interrupted(
    cli: Cli, handler: Handler, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    def command(number: int) -> list[str]:
        return ["retry", f"job-{number}", "--errors", "network"]

    def prepare(number: int) -> None:
        handler.cured = False
        assert cli.submit("--job-id", f"job-{number}").code == ExitCode.OK
        cli.world.job = f"job-{number}"  # type: ignore[assignment]  # a plain string will do
        cli.work()

    def check(number: int) -> None:
        again = cli(*command(number), "--json")
        assert again.code == ExitCode.OK, again.err
        assert (again.json["round"], again.json["items"]) == (1, {"network": 1})
        assert len(arrays_of(cli, f"job-{number}")) == 2, "one for each round"
        handler.cured = True
        cli.work()
        progress = cli("status", f"job-{number}", "--json").json
        assert (progress["complete"], progress["failed"]) == (True, {"bad_input": 1})

    # That each request will do, `test_retry_faults` shows of the coordinator.
    assert steps(cli, monkeypatch, command, prepare, check, after=after, step=7) > 20
