"""The client against a real Slurm over a real sshd."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import (
    SlurmClient,
    SubmissionCancelledError,
    SubmitLimitError,
)
from airflow_slurm_provider.slurm.ssh import SshTransport
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.slurm.transport import CommandResult
from slurm_worker.errors import ServiceError, UserError
from tests.integration.slurm.conftest import RealCluster, script
from tests.stack.slurm import FEW_JOBS, MAX_ARRAY_SIZE
from tests.unit.slurm.fake_slurm import BreakingTransport

pytestmark = pytest.mark.stack
S = ElementState


def test_the_version_is_slurms(cluster: RealCluster) -> None:
    assert cluster.client.version().startswith("slurm")


def test_an_array_has_states_and_exit_codes(cluster: RealCluster, name: str) -> None:
    job = cluster.submit(name, "exit $((SLURM_ARRAY_TASK_ID * 3))", workers=3)
    cluster.ended(job)
    # Exit codes come from the accounting, which is some seconds late.
    array = cluster.until(job, lambda seen: all(each.exit_code for each in seen.elements.values()))
    assert {n: (each.state, each.exit_code) for n, each in array.elements.items()} == {
        0: (S.COMPLETED, "0:0"),
        1: (S.FAILED, "3:0"),
        2: (S.FAILED, "6:0"),
    }
    assert all(each.node for each in array.elements.values())


def test_an_array_is_known_from_the_start(cluster: RealCluster, name: str) -> None:
    array = cluster.client.array(
        cluster.key(cluster.submit(name, "sleep 1", workers=4, throttle=1))
    )
    assert (len(array.elements), array.unknown, array.alive) == (4, False, 4)


def test_a_cancelled_array_is_cancelled(cluster: RealCluster, name: str) -> None:
    job = cluster.submit(name, "sleep 60", workers=3, throttle=2)
    cluster.until(job, lambda array: array.running == 2)
    cluster.cancel(job)
    assert cluster.ended(job).counts() == {"CANCELLED": 3}
    cluster.cancel(job)
    assert cluster.client.cancel([ArrayKey("99999999", "test.unknown")]) == []


def test_options_reach_slurm_as_they_were_written(cluster: RealCluster, name: str) -> None:
    comment = 'it\'s the "first" run, $(id) # not a comment'
    job = cluster.submit(name, "sleep 60", time="00:03:00", extra_args=[f"--comment={comment}"])
    try:
        shown = cluster.transport.run(f"squeue -h -r -t all -j {job} -o '%k|%l|%j'").stdout
        assert shown.strip() == f"{comment}|3:00|{name}"
    finally:
        cluster.cancel(job)


def test_a_refusal_is_told_and_the_corrected_script_is_taken(
    cluster: RealCluster, name: str
) -> None:
    with pytest.raises(UserError, match=r"refused the array: .*nope.*correct the slurm section"):
        cluster.submit(name, "true", partition="nope")
    assert cluster.arrays(name) == set()
    job = cluster.submit(name, "true")
    assert cluster.arrays(name) == {job}


def test_more_elements_than_an_array_may_have_are_refused_and_the_limit_is_known(
    cluster: RealCluster, name: str
) -> None:
    most = cluster.client.max_array_size()
    assert most == MAX_ARRAY_SIZE
    with pytest.raises(UserError, match="Invalid job array specification"):
        cluster.submit(name, "true", workers=most + 1)
    job = cluster.submit(name, "sleep 60", workers=most)
    cluster.cancel(job)


def test_more_jobs_than_the_account_may_have_are_told_from_other_refusals(
    cluster: RealCluster, name: str
) -> None:
    with pytest.raises(SubmitLimitError, match="AssocMaxSubmitJobLimit"):
        cluster.submit(name, "sleep 60", workers=FEW_JOBS + 1, account="few")
    assert cluster.arrays(name) == set()
    job = cluster.submit(name, "sleep 60", workers=FEW_JOBS, account="few")
    cluster.cancel(job)
    assert cluster.arrays(name) == {job}


@pytest.fixture
def slow_sbatch(cluster: RealCluster, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The real sbatch with pauses around it, so that others come meanwhile; its PATH line."""
    real = cluster.transport.run("command -v sbatch").stdout.strip()
    slow = f'#!/bin/sh\nsleep 0.3\n{real} "$@"\ncode=$?\nsleep 0.3\nexit $code\n'
    place = f"{cluster.site.remote_dir}/jobs/tests/{name}"
    made = cluster.transport.run(
        f"mkdir -p {place}/bin && cat > {place}/bin/sbatch && chmod 755 {place}/bin/sbatch && pwd",
        slow.encode(),
    )
    assert made.code == 0
    line = f"PATH={made.stdout.strip()}/{place}/bin:$PATH; export PATH\n"
    monkeypatch.setattr(submission, "SUBMIT", line + submission.SUBMIT)
    return line


@pytest.mark.usefixtures("slow_sbatch")
def test_threads_and_connections_that_submit_the_same_get_one_array(
    cluster: RealCluster, name: str
) -> None:
    clients = [cluster.client, cluster.client, *(cluster.another() for _ in range(4))]
    for client in clients:
        client.version()
    barrier = threading.Barrier(len(clients))

    def submit(client: SlurmClient) -> str:
        barrier.wait()
        return client.submit(name, script(name, "true"), "tests")

    with ThreadPoolExecutor(len(clients)) as pool:
        jobs = set(pool.map(submit, clients))
    for client in clients[2:]:
        client.close()
    assert jobs == cluster.arrays(name)
    assert len(jobs) == 1


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_connection_lost_at_any_step_leaves_one_array(
    cluster: RealCluster, name: str, step: int, after: bool
) -> None:
    breaking = BreakingTransport(cluster.transport, step, after=after)
    with pytest.raises(ServiceError):
        SlurmClient(breaking, cluster.site.remote_dir).submit(name, script(name, "true"), "tests")
    job = cluster.submit(name, "true")
    assert cluster.arrays(name) == {job}


class CutDuring(SshTransport):
    """Cuts the TCP connection a moment after the submitting program was started."""

    def __init__(self, cluster: RealCluster, delay: float) -> None:
        self.opened: list[paramiko.SSHClient] = []
        self._delay = delay

        def connect() -> paramiko.SSHClient:
            self.opened.append(cluster.connect())
            return self.opened[-1]

        super().__init__(connect)

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0):  # type: ignore[no-untyped-def]  # as its parent
        if stdin == submission.SUBMIT.encode():
            threading.Timer(self._delay, self._cut).start()
        return super().run(command, stdin, timeout)

    def _cut(self) -> None:
        transport = self.opened[-1].get_transport()
        assert transport is not None
        transport.sock.close()


@pytest.mark.usefixtures("slow_sbatch")
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.1, 0.3, 0.35, 0.5, 0.65])
def test_a_connection_cut_while_sbatch_runs_leaves_one_array(
    cluster: RealCluster, name: str, delay: float
) -> None:
    cutting = SlurmClient(CutDuring(cluster, delay), cluster.site.remote_dir)
    try:
        first = cutting.submit(name, script(name, "true"), "tests")
    except ServiceError:
        first = None
    job = cluster.submit(name, "true")
    assert cluster.arrays(name) == {job}
    assert first in (None, job)


def test_a_submission_goes_on_when_its_client_is_killed_within_sbatch(
    cluster: RealCluster, name: str, slow_sbatch: str, tmp_path: Path
) -> None:
    site = cluster.site
    place = f"{site.remote_dir}/jobs/tests/{name}"
    program = tmp_path / "submit.py"
    program.write_text(
        "from airflow_slurm_provider.slurm import submission\n"
        "from airflow_slurm_provider.slurm.client import SlurmClient\n"
        "from airflow_slurm_provider.slurm.ssh import SshTransport, open_paramiko\n"
        f"submission.SUBMIT = {slow_sbatch!r} + submission.SUBMIT\n"
        f"connect = lambda: open_paramiko({site.host!r}, {site.port}, {site.user!r}, "
        f"{site.key_file!r}, {site.known_hosts!r})\n"
        f"client = SlurmClient(SshTransport(connect), {site.remote_dir!r})\n"
        f"client.submit({name!r}, {script(name, 'true')!r}, 'tests')\n"
    )
    child = subprocess.Popen([sys.executable, str(program)])
    begun = f"test -d {place}/attempt.1"
    deadline = time.monotonic() + 30
    while cluster.transport.run(begun).code:
        assert time.monotonic() < deadline
        assert child.poll() is None
    child.kill()
    child.wait()
    assert cluster.transport.run(f"cat {place}/id").code, "killed before the id was there"
    job = cluster.submit(name, "true")
    assert cluster.arrays(name) == {job}
    noted = cluster.transport.run(f"cat {place}/id; ls -d {place}/attempt.*").stdout.split()
    assert noted == [job, f"{place}/attempt.1"]


def test_a_file_is_put_once(cluster: RealCluster) -> None:
    data = os.urandom(500_000)
    name = f"test-{hashlib.sha256(data).hexdigest()}.bin"
    path = cluster.client.put_file(name, data)
    try:
        assert path.startswith("/")
        assert cluster.client.put_file(name, data) == path
        digest = cluster.transport.run(f"sha256sum {path}").stdout.split()[0]
        assert digest == hashlib.sha256(data).hexdigest()
    finally:
        cluster.transport.run(f"rm -f {path}")


def test_many_threads_share_one_connection(cluster: RealCluster) -> None:
    """More of them than sshd allows sessions on a connection."""
    with ThreadPoolExecutor(24) as pool:
        results = list(pool.map(lambda n: cluster.transport.run(f"echo {n}").stdout, range(400)))
    assert results == [f"{n}\n" for n in range(400)]


def test_commands_that_do_not_read_their_input_leave_the_connection_alone(
    cluster: RealCluster,
) -> None:
    with ThreadPoolExecutor(6) as pool:
        codes = pool.map(lambda n: cluster.transport.run(f"exit {n}", b"-" * 9000).code, range(100))
    assert list(codes) == list(range(100))


class Exporting(SshTransport):
    """An account whose start-up files, or a job around it, set these variables."""

    def __init__(self, cluster: RealCluster, variables: dict[str, str]) -> None:
        super().__init__(cluster.connect)
        self._exports = "".join(f"export {n}={shlex.quote(v)}; " for n, v in variables.items())

    def wrap(self, command: str) -> str:
        return self._exports + super().wrap(command)


#: Each alone changes what 22.05's commands do, where it is not removed.
CHANGING = {
    "SBATCH_ARRAY_INX": "0-7",
    "SBATCH_PARTITION": "nope",
    "SBATCH_ACCOUNT": "nobody",
    "SBATCH_RESERVATION": "nope",
    "SBATCH_CONSTRAINT": "nope",
    "SBATCH_CLUSTERS": "elsewhere",
    "SBATCH_OUTPUT": "/nonexistent/out",
    "SBATCH_WAIT": "1",
    "SBATCH_MEM_PER_NODE": "1T",
    "SLURM_CLUSTERS": "elsewhere",
    "SQUEUE_PARTITION": "nope",
    "SQUEUE_ACCOUNT": "nobody",
    "SQUEUE_LICENSES": "nope",
    "SQUEUE_QOS": "nope",
    "SCANCEL_STATE": "SUSPENDED",
    "SCANCEL_PARTITION": "nope",
    "SCANCEL_ACCOUNT": "nobody",
    "SCANCEL_QOS": "nope",
    "SCANCEL_WCKEY": "nope",
    "POSIXLY_CORRECT": "1",
}
#: What may, beside them.
OTHERS = {
    "SBATCH_JOB_NAME": "other",
    "SBATCH_HOLD": "1",
    "SBATCH_QOS": "nope",
    "SBATCH_TIMELIMIT": "0:01",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_DEBUG": "verbose",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_BITSTR_LEN": "1",
    "SLURM_JOB_ID": "1",
    "SLURM_ARRAY_JOB_ID": "1",
    "SLURM_EXIT_ERROR": "0",
    "SQUEUE_FORMAT": "%P",
    "SQUEUE_FORMAT2": "partition",
    "SQUEUE_NAMES": "other",
    "SQUEUE_STATES": "SUSPENDED",
    "SQUEUE_USERS": "root",
    "SQUEUE_ARRAY": "1",
    "SACCT_FORMAT": "User",
    "SACCT_FEDERATION": "1",
    "SCANCEL_NAME": "other",
    "SCANCEL_USER": "root",
    "SCANCEL_INTERACTIVE": "1",
    "SCANCEL_BATCH": "1",
    "SCANCEL_CRON": "1",
}


@pytest.mark.parametrize(
    "variables",
    [*({name: value} for name, value in CHANGING.items()), {**CHANGING, **OTHERS}],
    ids=[*CHANGING, "all"],
)
def test_variables_of_the_account_change_nothing(
    cluster: RealCluster, name: str, variables: dict[str, str]
) -> None:
    transport = Exporting(cluster, variables)
    client = SlurmClient(transport, cluster.site.remote_dir)
    try:
        job = client.submit(name, script(name, "sleep 60", workers=2), "tests")
        key = ArrayKey(job, name)
        assert cluster.arrays(name) == {job}
        assert client.find([name]) == {name: job}
        array = cluster.client.array(key)
        assert sorted(array.elements) == [0, 1]
        assert not any("Held" in each.reason for each in array.elements.values())
        assert client.array(key).counts().keys() <= {"PENDING", "RUNNING", "CONFIGURING"}
        assert client.cancel([key]) == [key]
        assert not cluster.client.array(key).pending
        assert not cluster.client.array(key).running
        assert {each.state for each in client.records([key])} <= {S.CANCELLED}
    finally:
        transport.close()
        cluster.transport.run(f"scancel --name={name}")


#: What Slurm and the shells set by themselves.
OF_THE_NODE = {"ENVIRONMENT", "HOSTNAME", "OLDPWD", "PWD", "SHLVL", "TMPDIR", "_"}
SECRETS = {
    "VAULT_TOKEN": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "SBATCH_COMMENT": "secret",
    "SPANK_OWN": "secret",
    "https_proxy": "http://me:secret@proxy:3128",
    "SLURM_OWN": "secret",
}


def test_a_job_has_the_listed_variables_of_its_account_and_no_others(
    cluster: RealCluster, name: str
) -> None:
    transport = Exporting(cluster, {**SECRETS, "AWS_PROFILE": "me@lab"})
    client = SlurmClient(transport, cluster.site.remote_dir)
    # Of the batch script's shell as it began, and of the step.
    show = r"tr '\0' '\n' < /proc/$$/environ"
    job = client.submit(name, script(name, f"{show}; echo END", setup=[show]), "tests")
    cluster.names[job] = name
    cluster.ended(job)
    seen = client.output(name, "tests", 0, 500)
    transport.close()
    assert seen.endswith("END\n")
    assert "secret" not in seen
    found = {line.partition("=")[0] for line in seen.splitlines() if "=" in line}
    of_slurm = {each for each in found if each.startswith(("SLURM", "SRUN", "SBATCH_", "PMI"))}
    assert found - of_slurm - OF_THE_NODE <= {*submission.EXPORTED}
    assert "AWS_PROFILE=me@lab" in seen.splitlines()


def test_an_array_of_another_name_is_not_ours_whatever_its_number(
    cluster: RealCluster, name: str
) -> None:
    job = cluster.submit(name, "sleep 60", workers=2)
    cluster.until(job, lambda array: array.running == 2)
    ours = ArrayKey(job, f"{name}.lost")
    assert cluster.client.array(ours).unknown
    assert cluster.client.records([ours]) == []
    assert cluster.client.cancel([ours]) == []
    assert cluster.client.array(cluster.key(job)).running == 2
    assert cluster.cancel(job) == [cluster.key(job)]


def test_an_array_whose_id_was_lost_is_found_and_cancelled_by_its_name(
    cluster: RealCluster, name: str
) -> None:
    job = cluster.submit(name, "sleep 60", workers=2, throttle=1)
    lost = ArrayKey("", name)
    assert cluster.client.array(lost).alive == 2
    assert cluster.client.withdraw([name], "tests") == {name: job}
    assert cluster.client.cancel([lost]) == [cluster.key(job)]
    assert cluster.client.cancel([lost]) == []
    array = cluster.until(job, lambda seen: not seen.alive and not seen.unknown)
    # One, where it was cancelled before it was split up.
    assert array.counts() in ({"CANCELLED": 2}, {"CANCELLED": 1})


def test_a_cancel_that_slurm_does_not_carry_out_is_told(cluster: RealCluster, name: str) -> None:
    class Deaf(SshTransport):
        def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
            return super().run(command.replace("scancel", "scancel --state=SUSPENDED"), stdin)

    job = cluster.submit(name, "sleep 60")
    deaf = Deaf(cluster.connect)
    client = SlurmClient(deaf, cluster.site.remote_dir, sleep=lambda _: None, cancel_s=2.0)
    try:
        with pytest.raises(ServiceError, match=f"array {job} still wait or run after scancel"):
            client.cancel([cluster.key(job)])
    finally:
        deaf.close()
        cluster.cancel(job)


@pytest.mark.usefixtures("slow_sbatch")
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4, 0.6])
def test_no_array_begins_behind_a_cancel_whenever_it_comes(
    cluster: RealCluster, name: str, delay: float
) -> None:
    mark = f"{cluster.site.remote_dir}/jobs/tests/{name}/ran"
    program = f"sleep 2; touch $HOME/{mark}"
    another = cluster.another()
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(another.submit, name, script(name, program), "tests")
        time.sleep(delay)  # where the submitter is by then differs: all places are right
        ids = cluster.client.withdraw([name], "tests")
        cluster.client.cancel([ArrayKey(ids.get(name, ""), name)])
        try:
            job = begun.result()
        except SubmissionCancelledError:
            job = ""
    another.close()
    assert job == ids.get(name, "")
    asked = f"squeue -h -t PENDING,RUNNING --name={name}; ls {mark}"
    assert cluster.transport.run(asked).stdout == ""
    with pytest.raises(SubmissionCancelledError) if not job else contextlib.nullcontext():
        assert cluster.submit(name, program) == job


def test_an_array_whose_submitter_was_killed_behind_a_cancel_runs_nothing(
    cluster: RealCluster, name: str
) -> None:
    place = f"{cluster.site.remote_dir}/jobs/tests/{name}"
    assert cluster.client.withdraw([name], "tests") == {}
    text = submission.guarded(script(name, "touch ran", workers=2))
    sent = cluster.transport.run(
        f"cd {place} && cat > script.sh && sbatch --parsable script.sh", text.encode()
    )
    job = sent.stdout.strip()
    cluster.names[job] = name
    assert cluster.ended(job).counts() == {"FAILED": 2}
    assert cluster.transport.run(f"ls {place}/ran").code
