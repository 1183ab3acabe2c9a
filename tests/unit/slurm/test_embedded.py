"""The embedded cluster really runs arrays; asked by the same client as a real cluster."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.embedded.commands import CommandError, read_request
from airflow_slurm_provider.slurm.embedded.transport import EmbeddedTransport
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import render_script
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import UserError

S = ElementState
Wait = Callable[[Callable[[], bool]], None]


class Cluster:
    """An embedded cluster, its client, and what its workers leave."""

    def __init__(self, folder: Path, wait: Wait) -> None:
        self.folder = folder / "the cluster"
        self.remote = folder / "remote"
        self.transport = EmbeddedTransport(self.folder, slots=4, kill_wait=0.5)
        self.client = SlurmClient(self.transport, str(self.remote))
        self._wait = wait
        self.names: dict[str, str] = {}

    def submit(self, program: str, workers: int = 1, **options: object) -> str:
        name = f"test.{uuid.uuid4().hex[:8]}"
        script = render_script(
            SlurmOptions.from_mapping(options),
            name=name,
            workers=workers,
            command=["sh", "-c", program],
            environment={"OUT": str(self.remote)},
        )
        job = self.client.submit(name, script, "test")
        self.names[job] = name
        return job

    def key(self, job: str) -> ArrayKey:
        return ArrayKey(job, self.names.get(job, ""))

    def until(self, job: str, condition: Callable[[ArrayState], bool]) -> ArrayState:
        seen: list[ArrayState] = []

        def holds() -> bool:
            seen.append(self.client.array(self.key(job)))
            return condition(seen[-1])

        self._wait(holds)
        return seen[-1]

    def ended(self, job: str) -> ArrayState:
        return self.until(job, lambda array: not array.alive and not array.unknown)

    def read(self, name: str) -> str:
        return (self.remote / name).read_text()

    def pids(self, job: str) -> list[int]:
        with sqlite3.connect(self.folder / "state.db") as db:
            return [row[0] for row in db.execute("SELECT pid FROM elements WHERE job = ?", (job,))]

    def supervisors(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(self.folder).encode() in words and any(b"supervisor" in word for word in words):
                found.append(int(process.name))
        return found

    def supervisor(self) -> int:
        """The one that holds the lock; others that were started may be about to see that."""
        self._wait(lambda: len(self.supervisors()) == 1)
        return self.supervisors()[0]


@pytest.fixture
def cluster(tmp_path: Path, wait_for: Wait) -> Cluster:
    return Cluster(tmp_path, wait_for)


def test_an_array_runs_and_has_states_and_exit_codes(cluster: Cluster) -> None:
    job = cluster.submit("exit $((SLURM_ARRAY_TASK_ID * 3))", workers=3)
    array = cluster.ended(job)
    assert {n: (element.state, element.exit_code) for n, element in array.elements.items()} == {
        0: (S.COMPLETED, "0:0"),
        1: (S.FAILED, "3:0"),
        2: (S.FAILED, "6:0"),
    }


def test_an_element_ended_by_a_signal_failed_with_it(cluster: Cluster) -> None:
    array = cluster.ended(cluster.submit("kill -9 $$"))
    assert (array.elements[0].state, array.elements[0].exit_code) == (S.FAILED, "0:9")


def test_elements_get_slurms_variables_and_only_the_listed_ones_of_the_submitter(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_CONN_LAB", "OWN"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("PYTHONPATH", "/of/the/submitter")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("https_proxy", "http://someone:planted@proxy")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    first = cluster.submit('env > "$OUT/$SLURM_ARRAY_TASK_ID"', workers=2)
    cluster.ended(first)
    seen = [dict(line.split("=", 1) for line in cluster.read(n).splitlines()) for n in ("0", "1")]
    assert [variables["SLURM_ARRAY_TASK_ID"] for variables in seen] == ["0", "1"]
    assert {variables["SLURM_ARRAY_JOB_ID"] for variables in seen} == {first}
    assert {variables["SLURM_ARRAY_TASK_COUNT"] for variables in seen} == {"2"}
    assert len({variables["SLURM_JOB_ID"] for variables in seen}) == 2
    assert all("SLURM_RESTART_COUNT" not in variables for variables in seen)
    assert "planted" not in str(seen)
    assert {variables["http_proxy"] for variables in seen} == {"http://proxy:3128"}
    assert {variables["AWS_PROFILE"] for variables in seen} == {"lab"}
    assert {variables["PYTHONPATH"] for variables in seen} == {"/of/the/submitter"}
    assert not any(name.startswith("EMBEDDED") for name in seen[0])

    monkeypatch.setenv("AWS_PROFILE", "other")
    cluster.ended(cluster.submit('env > "$OUT/again"'))
    assert "AWS_PROFILE=other\n" in cluster.read("again")


def test_the_environment_is_forgotten_when_the_array_has_ended(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-kept")
    cluster.ended(cluster.submit("true"))
    with sqlite3.connect(cluster.folder / "state.db") as db:
        kept = [json.loads(row[0]) for row in db.execute("SELECT environment FROM jobs")]
    assert kept == [{}]
    assert cluster.folder.stat().st_mode & 0o077 == 0


def test_the_output_is_in_the_submissions_folder(cluster: Cluster) -> None:
    cluster.ended(cluster.submit("echo I am $SLURM_ARRAY_TASK_ID; echo error >&2", workers=2))
    logs = sorted(cluster.remote.glob("jobs/test/*/worker-*.log"))
    assert [path.read_text() for path in logs] == ["I am 0\nerror\n", "I am 1\nerror\n"]


def test_no_more_elements_run_at_once_than_slots_and_throttle_allow(cluster: Cluster) -> None:
    count = 'ls "$OUT"/run-* 2>/dev/null | wc -l >> "$OUT/$NAME"; '
    program = f'touch "$OUT/run-$$"; sleep 0.2; {count}rm "$OUT/run-$$"'
    cluster.ended(cluster.submit(f"NAME=throttled; {program}", workers=6, throttle=2))
    throttled = [int(number) for number in cluster.read("throttled").split()]
    assert (len(throttled), max(throttled)) == (6, 2)
    cluster.ended(cluster.submit(f"NAME=slots; {program}", workers=9))
    slots = [int(number) for number in cluster.read("slots").split()]
    assert (len(slots), max(slots) <= 4) == (9, True)


def test_the_same_name_twice_at_the_same_time_is_one_array(cluster: Cluster) -> None:
    script = "#!/bin/bash\n#SBATCH --job-name=twice\n#SBATCH --array=0-1\ntrue\n"
    clients = [SlurmClient(cluster.transport, str(cluster.remote)) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        jobs = set(pool.map(lambda client: client.submit("twice", script, "test"), clients))
    assert jobs == {*cluster.client.find(["twice"]).values()}
    with sqlite3.connect(cluster.folder / "state.db") as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
    assert cluster.client.script("twice", "test") == submission.guarded(script)


def test_a_cancelled_array_ends(cluster: Cluster) -> None:
    job = cluster.submit("sleep 60", workers=6)
    cluster.until(job, lambda array: array.running == 4)
    cluster.client.cancel([cluster.key(job)])
    array = cluster.ended(job)
    assert array.counts() == {"CANCELLED": 6}
    assert array.elements[0].exit_code == "0:15"
    cluster.client.cancel([cluster.key(job)])
    assert cluster.client.array(cluster.key(job)).counts() == {"CANCELLED": 6}


def test_one_element_can_be_cancelled(cluster: Cluster) -> None:
    job = cluster.submit('while [ ! -e "$OUT/go" ]; do sleep 0.05; done', workers=3)
    cluster.until(job, lambda array: array.running == 3)
    assert cluster.transport.run(f"scancel {job}_1").code == 0
    cluster.until(job, lambda array: array.elements[1].state is S.CANCELLED)
    (cluster.remote / "go").touch()
    assert cluster.ended(job).counts() == {"COMPLETED": 2, "CANCELLED": 1}


def test_an_element_that_ignores_sigterm_is_killed(cluster: Cluster) -> None:
    job = cluster.submit('trap "" TERM; touch "$OUT/deaf"; while :; do sleep 0.05; done')
    cluster.until(job, lambda _: (cluster.remote / "deaf").exists())
    cluster.client.cancel([cluster.key(job)])
    array = cluster.ended(job)
    assert (array.elements[0].state, array.elements[0].exit_code) == (S.CANCELLED, "0:9")


def test_processes_that_an_element_left_running_end_with_it(
    cluster: Cluster, wait_for: Wait
) -> None:
    cluster.ended(cluster.submit('sleep 60 & echo $! > "$OUT/child"'))
    child = int(cluster.read("child"))
    wait_for(lambda: not _runs(child))


def test_an_element_gets_a_signal_before_its_time_limit_ends_it(cluster: Cluster) -> None:
    job = cluster.submit(
        'trap "echo warned >> $OUT/signals" USR1; trap "echo term >> $OUT/signals; exit 0" TERM; '
        "while :; do sleep 0.05; done",
        time="00:00:02",
        grace=1,
    )
    array = cluster.ended(job)
    assert array.elements[0].state is S.TIMEOUT
    assert cluster.read("signals") == "warned\nterm\n"


def test_an_element_can_ask_for_its_own_requeue(cluster: Cluster) -> None:
    job = cluster.submit(
        'echo "${SLURM_RESTART_COUNT:-none}" >> "$OUT/starts"; [ -n "$SLURM_RESTART_COUNT" ] || '
        '{ trap "exit 0" TERM; scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; '
        "sleep 5; }"
    )
    assert cluster.ended(job).counts() == {"COMPLETED": 1}
    assert cluster.read("starts") == "none\n1\n"


def test_a_second_array_runs_after_the_supervisor_has_ended(
    cluster: Cluster, wait_for: Wait
) -> None:
    cluster.ended(cluster.submit("true"))
    wait_for(lambda: not cluster.supervisors())
    assert cluster.ended(cluster.submit("true")).counts() == {"COMPLETED": 1}


def test_many_submissions_in_a_row_all_run(cluster: Cluster, wait_for: Wait) -> None:
    """The supervisor often ends just as the next array comes: none may be left waiting.

    It reads the files alone: a query of the queue would wake the cluster up.
    """
    for number in range(15):
        cluster.submit(f'touch "$OUT/{number}"')
        wait_for((cluster.remote / str(number)).exists)


def test_the_array_outlives_its_submitter(tmp_path: Path, cluster: Cluster, wait_for: Wait) -> None:
    program = (
        "import os, signal, sys\n"
        "from airflow_slurm_provider.slurm.client import SlurmClient\n"
        "from airflow_slurm_provider.slurm.embedded.transport import EmbeddedTransport\n"
        f"transport = EmbeddedTransport({str(cluster.folder)!r})\n"
        f"client = SlurmClient(transport, {str(cluster.remote)!r})\n"
        "client.submit('orphan', '#!/bin/bash\\n#SBATCH --job-name=orphan\\nsleep 0.5\\n"
        f"touch {cluster.remote}/ran\\n', 'test')\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], start_new_session=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    wait_for((cluster.remote / "ran").exists)
    job = cluster.client.find(["orphan"])["orphan"]
    cluster.names[job] = "orphan"
    assert cluster.ended(job).counts() == {"COMPLETED": 1}


def test_if_the_supervisor_is_killed_its_elements_have_failed_and_the_rest_runs(
    cluster: Cluster, wait_for: Wait
) -> None:
    job = cluster.submit('[ -e "$OUT/go" ] || sleep 60', workers=6)
    cluster.until(job, lambda array: array.running == 4)
    running = [pid for pid in cluster.pids(job) if pid]
    supervisor = cluster.supervisor()
    (cluster.remote / "go").touch()
    os.kill(supervisor, signal.SIGKILL)
    array = cluster.ended(job)
    assert array.counts() == {"NODE_FAIL": 4, "COMPLETED": 2}
    wait_for(lambda: not any(_runs(pid) for pid in running))


def test_another_process_with_an_elements_old_pid_is_not_killed(
    cluster: Cluster, wait_for: Wait
) -> None:
    job = cluster.submit("sleep 60")
    cluster.until(job, lambda array: array.running == 1)
    supervisor = cluster.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (element,) = cluster.pids(job)
    try:
        with sqlite3.connect(cluster.folder / "state.db") as db:
            db.execute("UPDATE elements SET pid = ?", (bystander.pid,))
        os.kill(supervisor, signal.SIGKILL)
        assert cluster.ended(job).counts() == {"NODE_FAIL": 1}
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        os.killpg(element, signal.SIGKILL)


def test_an_element_whose_folder_is_gone_fails(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = tmp_path / "gone" / "script.sh"
    script.write_text("#!/bin/bash\n#SBATCH --output=nowhere/x.log\ntrue\n")
    result = cluster.transport.run(f"cd {tmp_path}/gone && sbatch script.sh")
    assert (result.code, result.stdout) == (0, "Submitted batch job 1\n")
    cluster.names["1"] = "script.sh"
    assert cluster.ended("1").counts() == {"FAILED": 1}


def test_the_programs_run_from_any_folder(cluster: Cluster) -> None:
    result = cluster.transport.run("cd / && sbatch --version && squeue -h && sacct -nXP")
    assert (result.code, result.stdout) == (0, "slurm-embedded 0.1.0\n")


def test_wrong_requests_are_refused_as_slurm_refuses_them(cluster: Cluster) -> None:
    script = "#!/bin/bash\n#SBATCH --job-name=x\n#SBATCH --array=nonsense\ntrue\n"
    with pytest.raises(UserError, match=r"refused the array: .*Invalid job array specification"):
        cluster.client.submit("x", script, "test")
    for command, words in {
        "squeue -h -j 99": "Invalid job id",
        "scancel 99": "Invalid job id",
        "scontrol requeue 99": "Invalid job id",
        "scontrol show": "only requeue",
        "sbatch": "no script",
        "sbatch /nowhere.sh": "Unable to open file",
    }.items():
        result = cluster.transport.run(command)
        assert (result.code, words in result.stderr) == (1, True), result


@pytest.mark.parametrize(
    ("array", "elements", "throttle"),
    [
        ("0-3", (0, 1, 2, 3), 0),
        ("0-3%2", (0, 1, 2, 3), 2),
        ("5", (5,), 0),
        ("1,3,7-9", (1, 3, 7, 8, 9), 0),
        ("0-6:3%1", (0, 3, 6), 1),
        ("3,1,3", (1, 3), 0),
    ],
)
def test_arrays_are_written_as_in_slurm(
    array: str, elements: tuple[int, ...], throttle: int
) -> None:
    request = read_request(f"#!/bin/sh\n#SBATCH --array={array}\n", [], "n")
    assert (request.elements, request.throttle) == (elements, throttle)


@pytest.mark.parametrize("array", ["x", "1-", "-1", "1-2-3", "1%x", "1;2"])
def test_a_wrong_array_is_refused(array: str) -> None:
    with pytest.raises(CommandError, match="Invalid job array specification"):
        read_request("", [f"--array={array}"], "n")


def test_arguments_win_over_lines_and_lines_end_at_the_first_command() -> None:
    script = "#!/bin/sh\n#SBATCH --job-name=a --time=1\n# x\n\ntrue\n#SBATCH --job-name=b\n"
    assert read_request(script, [], "n").name == "a"
    request = read_request(script, ["--job-name=c", "--signal=USR1@9"], "n")
    assert (request.name, request.limit_s, request.grace_s) == ("c", 60.0, 9.0)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
