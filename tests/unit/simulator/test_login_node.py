"""The login node's twin does what the real programs do, with a real client."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from unittest import mock

import pytest

from airflow_slurm_provider.slurm.client import (
    SlurmClient,
    SubmissionCancelledError,
    SubmitRefusedError,
)
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ServiceError
from slurm_worker.node import slurm_variables
from tests.simulator.engine.schedule import Host, Schedule
from tests.simulator.engine.seen import Seen
from tests.simulator.slurm.cluster import ClusterRules, Controller
from tests.simulator.slurm.login_node import LoginNode, SimTransport, SlurmFaults
from tests.simulator.stores.network import Network
from tests.simulator.stores.outages import FaultRates
from tests.unit.slurm.fake_slurm import FakeSlurm, Time

NAME, FOLDER = "job.000-1.a1b2", "job"
#: The account's own, which must change nothing.
VARIABLES = {"SQUEUE_PARTITION": "debug", "SCANCEL_STATE": "SUSPENDED", "SBATCH_ARRAY_INX": "0-0"}
SCRIPT = "#!/bin/bash\n#SBATCH --array=0-3\ntrue\n"
REFUSAL = "sbatch: error: Batch job submission failed: Invalid partition name specified"


class Site(Protocol):
    """A cluster that does what it is told."""

    client: SlurmClient

    def mode(self, mode: str) -> None:
        """``ok``, ``refuse``, ``lost`` (sbatch's reply), ``unreachable``."""

    def deaf(self) -> None:
        """From now on scancel exits with 0 and does nothing."""

    def put_back(self) -> None:
        """The array is completing, and waits next: it was preempted."""

    def arrays(self) -> int:
        """How many arrays wait or run."""

    def resized(self) -> bool:
        """Whether sbatch took the size of an array from a variable."""


class RealPrograms:
    """The programs that are sent, in a real shell, over fake commands of Slurm."""

    def __init__(self, folder: Path) -> None:
        self._slurm, time = FakeSlurm(folder / "slurm"), Time()
        self.client = SlurmClient(
            self._slurm.transport(VARIABLES), str(folder / "remote"), time.clock, time.sleep
        )

    def mode(self, mode: str) -> None:
        self._slurm.mode(mode)

    def deaf(self) -> None:
        self._slurm.set("deaf")

    def put_back(self) -> None:
        jobs = self._slurm.folder / "jobs"
        jobs.rename(self._slurm.folder / "put-back")
        jobs.touch()

    def arrays(self) -> int:
        return len(self._slurm.lines("jobs") + self._slurm.lines("put-back"))

    def resized(self) -> bool:
        return bool(self._slurm.lines("sized"))


class Twin:
    """The simulator's."""

    def __init__(self, schedule: Schedule) -> None:
        self._controller = Controller(schedule, random.Random(1), ClusterRules(start_s=1e6))
        self._node = LoginNode(schedule, random.Random(2), self._controller)
        self._node.variables = VARIABLES
        network = Network(schedule, random.Random(3), FaultRates(), Seen())
        transport = SimTransport(schedule, self._node, network)
        self.client = SlurmClient(transport, "remote", lambda: schedule.now, schedule.sleep)

    def mode(self, mode: str) -> None:
        self._controller.refusal = REFUSAL if mode == "refuse" else ""
        self._controller.down_until = 1e9 if mode == "unreachable" else 0.0
        self._node.faults = SlurmFaults(0.0, 1.0 if mode == "lost" else 0.0, 1e9)

    def deaf(self) -> None:
        self._controller.deaf_until = 1e12

    def put_back(self) -> None:
        for element in self._controller.arrays[0].elements:
            element.state, element.requeued = ElementState.COMPLETING, True

    def arrays(self) -> int:
        """Without those that only end."""
        return sum(
            any(
                e.alive and (e.requeued or e.state is not ElementState.COMPLETING) for e in elements
            )
            for elements in (array.elements for array in self._controller.arrays)
        )

    def resized(self) -> bool:
        return any(len(array.elements) != 4 for array in self._controller.arrays)


#: Runs a test on a site.
Run = Callable[[Callable[[Site], None]], None]


@pytest.fixture(params=["real", "twin"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    def on_twin(test: Callable[[Site], None]) -> None:
        schedule = Schedule(1e12)
        twin = Twin(schedule)

        schedule.run(Host("test"), lambda: test(twin))

    return on_twin if request.param == "twin" else lambda test: test(RealPrograms(tmp_path))


def submit(site: Site) -> str:
    return site.client.submit(NAME, SCRIPT, FOLDER)


def test_the_same_name_again_is_the_same_array(run: Run) -> None:
    def test(site: Site) -> None:
        assert submit(site) == submit(site)
        assert site.arrays() == 1
        assert list(site.client.find([NAME, "job.other"])) == [NAME]

    run(test)


def test_a_refused_script_can_be_corrected(run: Run) -> None:
    def test(site: Site) -> None:
        site.mode("refuse")
        with pytest.raises(SubmitRefusedError):
            submit(site)
        site.mode("ok")
        submit(site)
        assert site.arrays() == 1

    run(test)


def test_an_array_whose_reply_was_lost_is_found_and_not_submitted_again(run: Run) -> None:
    def test(site: Site) -> None:
        site.mode("lost")
        first = submit(site)
        site.mode("ok")
        assert submit(site) == first
        assert site.arrays() == 1

    run(test)


def test_a_controller_that_does_not_answer_leaves_nothing_decided(run: Run) -> None:
    def test(site: Site) -> None:
        site.mode("unreachable")
        with pytest.raises(ServiceError, match=r"not known yet|failed"):
            submit(site)
        assert site.arrays() == 0

    run(test)


def test_a_withdrawn_name_never_gets_an_array(run: Run) -> None:
    def test(site: Site) -> None:
        assert site.client.withdraw([NAME], FOLDER) == {}
        with pytest.raises(SubmissionCancelledError):
            submit(site)
        assert site.arrays() == 0

    run(test)


def test_withdrawing_leaves_an_array_that_exists_alone(run: Run) -> None:
    def test(site: Site) -> None:
        made = submit(site)
        assert site.client.withdraw([NAME], FOLDER) == {NAME: made}
        assert site.arrays() == 1

    run(test)


def test_a_cancelled_array_neither_waits_nor_runs(run: Run) -> None:
    def test(site: Site) -> None:
        made = submit(site)
        cancelled = site.client.cancel(list(site.client.alive([NAME])))
        assert [array.slurm_job_id for array in cancelled] == [made]
        assert site.arrays() == 0

    run(test)


def test_an_array_that_would_run_again_is_cancelled(run: Run) -> None:
    def test(site: Site) -> None:
        submit(site)
        site.put_back()
        site.client.end(NAME, FOLDER)
        assert site.arrays() == 0

    run(test)


def test_a_cancel_that_is_not_carried_out_fails(run: Run) -> None:
    def test(site: Site) -> None:
        made = submit(site)
        site.deaf()
        with pytest.raises(ServiceError, match=rf"workers of array {made} still wait or run"):
            site.client.end(NAME, FOLDER)
        assert site.arrays() == 1

    run(test)


def test_variables_of_the_account_do_not_size_an_array(run: Run) -> None:
    def test(site: Site) -> None:
        submit(site)
        assert not site.resized()

    run(test)


@pytest.mark.parametrize("run", ["twin"], indirect=True)
def test_the_twins_commands_heed_variables_that_are_left(run: Run) -> None:
    """Else the tests above would say nothing."""

    def test(site: Site) -> None:
        made = submit(site)
        with mock.patch.object(slurm_variables, "cleaned", dict):
            assert site.client.alive([NAME]) == set()
            site.client.end(NAME, FOLDER)
        assert [array.slurm_job_id for array in site.client.alive([NAME])] == [made]

    run(test)
