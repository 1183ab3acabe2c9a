from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_slurm_provider.slurm.array_state import ArrayKey, split_by_array
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.slurm.transport import CommandResult, LocalTransport
from slurm_worker.errors import ServiceError, UserError
from tests.unit.slurm.fake_slurm import BreakingTransport, FakeSlurm, Time

S = ElementState
KEY = ArrayKey("12", "job.a1b2")
NO_SUCH_JOB = CommandResult(1, "", "slurm_load_jobs error: Invalid job id specified\n")
NO_ACCOUNTING = CommandResult(1, "", "Slurm accounting storage is disabled\n")


def slurm_lines(text: str, name: str = "job.a1b2") -> CommandResult:
    """Lines of Slurm's, each of the same array of this name."""
    lines = [f"{line}|2026-11-30T10:54:48|{name}\n" for line in text.splitlines()]
    return CommandResult(0, "".join(lines), "")


class Scripted:
    """A transport that answers by the command's first word."""

    def __init__(self, **answers: CommandResult) -> None:
        self.answers = answers
        self.commands: list[str] = []

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        self.commands.append(command)
        return self.answers[command.split()[0]]

    def close(self) -> None:
        """Nothing is open."""


def client_of(transport: Scripted, time: Time | None = None) -> SlurmClient:
    time = time or Time()
    return SlurmClient(transport, "x", time.clock, time.sleep)


def test_the_queue_shows_what_is_alive_and_the_accounting_how_elements_ended() -> None:
    transport = Scripted(
        squeue=slurm_lines(
            "12_0|COMPLETED|n1|None\n12_1|RUNNING|n2|None\n12_7|PENDING||Resources\n"
        ),
        sacct=slurm_lines(
            "12_0|COMPLETED|n1|0:0\n12_1|RUNNING|n2|0:0\n12_2|FAILED|n3|3:0\n"
            "12_3|CANCELLED by 1001|n3|0:15\n12_[4-7%2]|PENDING|None assigned|0:0\n"
        ),
    )
    array = client_of(transport).array(KEY)
    assert {n: element.state for n, element in array.elements.items()} == {
        0: S.COMPLETED,
        1: S.RUNNING,
        2: S.FAILED,
        3: S.CANCELLED,
        4: S.UNKNOWN,
        5: S.UNKNOWN,
        6: S.UNKNOWN,
        7: S.PENDING,
    }
    assert (array.alive, array.pending, array.running, array.unknown) == (2, 1, 1, False)
    assert [array.elements[n].exit_code for n in (0, 1, 2, 3)] == ["0:0", "", "3:0", "0:15"]
    assert (array.elements[2].node, array.elements[7].reason) == ("n3", "Resources")
    assert array.counts()["FAILED"] == 1
    assert transport.commands == [
        """squeue -h -u "$(id -un)" -r -t all -j 12 -o '%i|%T|%N|%r|%V|%j'""",
        'sacct -nXPD -u "$(id -un)" -j 12 -o JobID,State,NodeList,ExitCode,Submit,JobName',
    ]


def test_an_array_that_ended_has_its_exit_codes() -> None:
    array = client_of(
        Scripted(squeue=NO_SUCH_JOB, sacct=slurm_lines("12_0|TIMEOUT|n1|0:1\n"))
    ).array(KEY)
    assert (array.alive, array.unknown, array.elements[0].exit_code) == (0, False, "0:1")


@pytest.mark.parametrize("records", ["", "12_0|RUNNING|n1|0:0\n"])
def test_an_array_that_slurm_does_not_show_is_unknown_and_later_counts_as_ended(
    records: str, caplog: pytest.LogCaptureFixture
) -> None:
    time = Time()
    client = client_of(Scripted(squeue=NO_SUCH_JOB, sacct=slurm_lines(records)), time)
    assert client.array(KEY).unknown
    time.now += 100
    assert client.array(KEY).unknown
    time.now += 100
    with caplog.at_level(logging.WARNING):
        array = client.array(KEY)
    assert (array.unknown, array.alive) == (False, 0)
    assert "its end was never recorded" in caplog.text


def test_the_unknown_time_restarts_when_the_array_is_seen() -> None:
    time = Time()
    transport = Scripted(squeue=NO_SUCH_JOB, sacct=slurm_lines(""))
    client = client_of(transport, time)
    assert client.array(KEY).unknown
    time.now += 119
    transport.answers["squeue"] = slurm_lines("12_0|RUNNING|n|None\n")
    assert client.array(KEY).alive == 1
    transport.answers["squeue"] = NO_SUCH_JOB
    time.now += 119
    assert client.array(KEY).unknown


def test_a_new_record_of_the_array_as_one_job_is_not_an_element() -> None:
    transport = Scripted(
        squeue=slurm_lines("42_0|COMPLETED|n1|None\n42_1|FAILED|n1|NonZeroExitCode\n"),
        sacct=slurm_lines("42|FAILED|n1|6:0\n"),
    )
    array = client_of(transport).array(ArrayKey("42", "job.a1b2"))
    assert (array.counts(), array.alive, array.unknown) == (
        {"COMPLETED": 1, "FAILED": 1},
        0,
        False,
    )
    assert array.elements[0].exit_code == ""
    transport.answers["squeue"] = NO_SUCH_JOB
    assert client_of(transport).array(ArrayKey("42", "job.a1b2")).unknown


def test_a_state_of_a_later_slurm_keeps_the_array_alive() -> None:
    transport = Scripted(squeue=slurm_lines("12_0|HIBERNATING|n1|None\n"), sacct=slurm_lines(""))
    assert client_of(transport).array(KEY).alive == 1


def test_a_line_that_is_not_understood_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    queue = CommandResult(0, slurm_lines("12_0|RUNNING|n1|None\n").stdout + "what?\n", "")
    transport = Scripted(squeue=queue, sacct=slurm_lines("12_x|A|B|C\n"))
    with caplog.at_level(logging.WARNING):
        assert client_of(transport).array(KEY).alive == 1
    assert "'what?'" in caplog.text
    assert "'12_x|A|B|C'" in caplog.text


def test_without_accounting_the_queue_decides() -> None:
    transport = Scripted(squeue=slurm_lines("12_0|RUNNING|n1|None\n"), sacct=NO_ACCOUNTING)
    assert client_of(transport).array(KEY).alive == 1
    transport.answers["squeue"] = NO_SUCH_JOB
    array = client_of(transport).array(KEY)
    assert (array.alive, array.unknown, array.elements) == (0, False, {})


def test_if_sacct_fails_the_queue_still_shows_what_is_alive() -> None:
    broken = CommandResult(1, "", "sacct: error: Problem talking to the database\n")
    transport = Scripted(squeue=slurm_lines("12_0|RUNNING|n1|None\n"), sacct=broken)
    assert client_of(transport).array(KEY).alive == 1
    transport.answers["squeue"] = NO_SUCH_JOB
    with pytest.raises(ServiceError, match="sacct failed: Problem talking to the database"):
        client_of(transport).array(KEY)


def test_a_failed_squeue_is_an_error() -> None:
    down = CommandResult(1, "", "slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(ServiceError, match="Unable to contact slurm controller"):
        client_of(Scripted(squeue=down)).array(KEY)


def test_the_version_is_slurms() -> None:
    assert (
        client_of(Scripted(sbatch=CommandResult(0, "slurm-wlm 22.05.8\n", ""))).version()
        == "slurm-wlm 22.05.8"
    )
    absent = CommandResult(127, "", "sh: 1: sbatch: not found\n")
    with pytest.raises(UserError, match="sbatch: not found; make it available"):
        client_of(Scripted(sbatch=absent)).version()


def test_arrays_are_found_by_their_names(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path / "slurm")
    client = SlurmClient(slurm.transport(), "x")
    assert client.find(["a"]) == {}
    (slurm.folder / "ended").write_text("7 a\n5 a\n6 b\n")
    assert client.find(["a", "c"]) == {"a": "5"}
    (slurm.folder / "jobs").write_text("12 a\n9 a\n")
    assert client.find(["a", "b"]) == {"a": "9", "b": "6"}
    slurm.set("squeue-down")
    with pytest.raises(ServiceError, match="Unable to contact"):
        client.find(["a"])


def test_an_array_whose_id_is_not_known_is_looked_up_by_its_name(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path / "slurm")
    array = SlurmClient(slurm.transport(), "x").array(ArrayKey("", "never-submitted"))
    assert (array.unknown, array.alive) == (True, 0)


def test_a_file_is_uploaded_once_and_completely(tmp_path: Path) -> None:
    transport = BreakingTransport(LocalTransport(), -1, after=False)
    client = SlurmClient(transport, str(tmp_path / "remote dir"))
    data = os.urandom(300_000)
    name = f"worker-{hashlib.sha256(data).hexdigest()}.pyz"
    path = Path(client.put_file(name, data))
    assert (path.parent, path.name) == (tmp_path / "remote dir", name)
    assert path.read_bytes() == data
    before, made = transport.commands, path.stat().st_ino
    assert Path(client.put_file(name, data)) == path
    assert (transport.commands - before, path.stat().st_ino) == (1, made)
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_a_file_of_another_size_is_uploaded_again(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"half")
    assert (
        Path(SlurmClient(LocalTransport(), str(tmp_path)).put_file("f", b"whole")).read_bytes()
        == b"whole"
    )


@pytest.mark.parametrize("tools", ["sha256sum", "openssl", "none"])
def test_a_file_of_the_same_size_with_other_content_is_uploaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: str
) -> None:
    programs = {"sh", "ls", "id", "mkdir", "cat", "wc", "mv", "rm", "chmod", *({tools} - {"none"})}
    (tmp_path / "bin").mkdir()
    for name in programs:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"there is no {name} here")
        (tmp_path / "bin" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    remote = tmp_path / "remote"
    remote.mkdir(0o700)
    (remote / "f").write_bytes(b"other")
    client = SlurmClient(LocalTransport(), str(remote))
    assert Path(client.put_file("f", b"whole")).read_bytes() == b"whole"
    made = (remote / "f").stat().st_ino
    client.put_file("f", b"whole")
    same = (remote / "f").stat().st_ino == made
    assert same == (tools != "none"), "where nothing can tell, it is put again"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_uploaded_and_submitted_files_are_private_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm")
    before = os.umask(umask)
    try:
        client = SlurmClient(slurm.transport(), str(tmp_path / "remote"))
        client.put_file("f", b"x")
        client.put_secret("job", "credentials.json", b"x")
        client.submit("name", "#!/bin/sh\n#SBATCH --job-name=name\n", "job")
    finally:
        os.umask(before)
    found = [tmp_path / "remote", *(tmp_path / "remote").rglob("*")]
    assert {"f", "credentials.json", "script.sh", "id"} <= {path.name for path in found}
    for path in found:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_job_folders_that_earlier_releases_left_open_become_private(tmp_path: Path) -> None:
    (tmp_path / "remote" / "jobs").mkdir(parents=True)
    SlurmClient(LocalTransport(), str(tmp_path / "remote")).put_file("f", b"x")
    assert stat.S_IMODE((tmp_path / "remote" / "jobs").stat().st_mode) == 0o700


def test_the_accounts_folders_lose_their_groups_write_permission(tmp_path: Path) -> None:
    """As a umask of 002 leaves them: nobody else need be in that group."""
    slurm = FakeSlurm(tmp_path / "slurm")
    parts = [tmp_path / part for part in ("lab", "lab/jobs", "lab/jobs/j", "lab/jobs/j/name")]
    for part in parts:
        part.mkdir()
        part.chmod(0o775)
    client = SlurmClient(slurm.transport(), str(parts[0]))
    assert client.submit("name", "#!/bin/sh\n#SBATCH --job-name=name\n", "j") == "101"
    assert [part for part in parts if part.stat().st_mode & 0o022] == []


def test_a_parent_folder_that_a_group_may_write_into_is_refused_and_not_changed(
    tmp_path: Path,
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab").chmod(0o2775)
    client = SlurmClient(LocalTransport(), str(tmp_path / "lab" / "mine"))
    with pytest.raises(UserError, match="other users can write into"):
        client.put_file("f", b"x")
    assert stat.S_IMODE((tmp_path / "lab").stat().st_mode) == 0o2775


@pytest.mark.parametrize(
    ("part", "bits"),
    [
        *product(["lab", "lab/jobs", "lab/jobs/job"], [0o775, 0o757, 0o777]),
        *product(["lab/jobs/job/name"], [0o757, 0o777]),
    ],
)
def test_a_folder_into_which_others_may_write_is_refused_in_one_line(
    tmp_path: Path, part: str, bits: int
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm")
    (tmp_path / "lab" / "jobs" / "job" / "name").mkdir(parents=True)
    client = SlurmClient(slurm.transport(), str(tmp_path / "lab"))
    client.put_file("f", b"x")
    (tmp_path / part).chmod(bits)
    with pytest.raises(UserError) as raised:
        client.submit("name", "#!/bin/sh\n#SBATCH --job-name=name\n", "job")
    where = re.escape(str(tmp_path / part))
    assert re.fullmatch(
        f"cluster.remote_dir: other users can write into '{where}' [^\n]*chmod go-w on it, or "
        "name a folder [^\n]*",
        str(raised.value),
    )
    assert slurm.lines("calls") == []


@pytest.mark.parametrize("name", ["with space", "ümlaut", "a'b", 'a"b', "$HOME", "-x", "a\nb"])
def test_a_folder_of_any_name_is_checked(tmp_path: Path, name: str) -> None:
    client = SlurmClient(LocalTransport(), str(tmp_path / name))
    if "\n" in name:
        # What can't be read of it for certain is refused.
        with pytest.raises(UserError, match=r"cluster\.remote_dir"):
            client.put_file("f", b"x")
        return
    assert Path(client.put_file("f", b"x")).read_bytes() == b"x"
    (tmp_path / name).chmod(0o777)
    with pytest.raises(UserError, match="other users can write into"):
        client.put_file("g", b"x")


def test_the_remote_folder_is_below_home_unless_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".airflow-slurm", "~/.airflow-slurm"):
        path = SlurmClient(LocalTransport(), name).put_file("f", b"x")
        assert path == f"{tmp_path}/.airflow-slurm/f"


def records(*lines: str) -> CommandResult:
    return CommandResult(0, "".join(f"{line}\n" for line in lines), "")


def test_an_array_that_has_another_jobs_number_is_unknown() -> None:
    """Slurm has begun again at its first id: somebody else's array has ours now."""
    transport = Scripted(
        squeue=records("12_0|RUNNING|n1|None|2026-11-30T12:00:00|theirs"),
        sacct=records("12_0|RUNNING|n1|0:0|2026-11-30T12:00:00|theirs"),
    )
    array = client_of(transport).array(KEY)
    assert (array.unknown, array.alive, array.elements) == (True, 0, {})


def test_an_ended_array_keeps_its_state_when_slurm_reuses_its_number() -> None:
    transport = Scripted(
        squeue=records(
            "12|RUNNING|n1|None|2026-11-30T12:00:00|a|name",
            "12+0|RUNNING|n1|None|2026-11-30T12:00:00|job.a1b2",
            "12_3|PENDING||Resources|2026-11-30T12:00:00|job.a1b2.1",
        ),
        sacct=records(
            "12_0|COMPLETED|n1|0:0|2026-11-20T12:00:00|job.a1b2",
            "12_1|COMPLETED|n1|0:0|2026-11-20T12:00:00|job.a1b2",
            "12|FAILED|n1|6:0|2026-11-30T12:00:00|a|name",
            "12_1|FAILED|n1|6:0|2026-11-30T12:00:00|theirs",
        ),
    )
    array = client_of(transport).array(KEY)
    assert (array.counts(), array.alive, array.unknown) == ({"COMPLETED": 2}, 0, False)


def test_two_arrays_with_the_same_number_are_separated_by_name() -> None:
    later = ArrayKey("12", "job.ffff")
    transport = Scripted(
        squeue=records("12_0|RUNNING|n1|None|2026-11-30T12:00:00|job.ffff"),
        sacct=records(
            "12_0|FAILED|n1|3:0|2026-11-20T12:00:00|job.a1b2",
            "12_0|RUNNING|n1|0:0|2026-11-30T12:00:00|job.ffff",
        ),
    )
    arrays = client_of(transport).arrays([KEY, later])
    assert arrays[KEY].counts() == {"FAILED": 1}
    assert arrays[later].counts() == {"RUNNING": 1}


def test_of_a_requeued_elements_records_the_latest_start_counts() -> None:
    transport = Scripted(
        squeue=NO_SUCH_JOB,
        sacct=records(
            "12_0|COMPLETED|n2|0:0|2026-11-30T13:00:00|job.a1b2",
            "12_0|REQUEUED|n1|0:0|2026-11-30T12:00:00|job.a1b2",
        ),
    )
    array = client_of(transport).array(KEY)
    assert (array.elements[0].state, array.elements[0].node) == (S.COMPLETED, "n2")


def test_records_of_another_job_are_never_taken_for_ours() -> None:
    records_of = records(
        "12_0|COMPLETED|n1|0:0|00:01:00|1|00:30|1G||2026-11-20T12:00:00|job.a1b2",
        "12_0.batch|COMPLETED|n1|0:0|00:01:00|1|00:30|1G|100M|2026-11-20T12:00:00|batch",
        "12_0|OUT_OF_MEMORY|n1|0:125|10:00:00|64|10:00:00|64G||2026-11-30T12:00:00|theirs",
        "12_0.batch|OUT_OF_MEMORY|n1|0:125|10:00:00|64|10:00|64G|60G|2026-11-30T12:00:00|batch",
        "12_0.0|FAILED|n1|1:0|00:01:00|1|00:30|2G|2G|2026-11-30T12:00:00|job.a1b2",
    )
    (record,) = client_of(Scripted(sacct=records_of)).records([KEY])
    assert (record.state, record.restart, record.max_rss) == (S.COMPLETED, 0, 100 * 2**20)
    assert (record.cpus, record.elapsed_s) == (1, 60)


@given(
    foreign=st.lists(
        st.tuples(
            st.sampled_from(["12", "12_0", "12_1", "12_[0-9%2]", "12+0", "12_0.batch", "13_0"]),
            st.sampled_from(["theirs", "", "job.a1b", "job.a1b2.1", "JOB.A1B2", "a|job.a1b2"]),
            st.integers(0, 3),
        )
    )
)
def test_lines_of_other_jobs_never_change_an_arrays_lines(
    foreign: list[tuple[str, str, int]],
) -> None:
    own = ["12_0|COMPLETED|n1|0:0|2026-11-20|job.a1b2", "12_1|FAILED|n1|3:0|2026-11-20|job.a1b2"]
    lines = list(own)
    for job, name, place in foreign:
        # Steps follow the line of their job.
        head = [f"{job.partition('.')[0]}|RUNNING|n9|9:0|2026-11-30|{name}"]
        step = [f"{job}|RUNNING|n9|9:0|2026-11-30|batch"] if "." in job else []
        lines[place:place] = [*head, *step]
    text = "\n".join(lines)
    assert sorted(split_by_array(text, [KEY], 4)[KEY].splitlines()) == sorted(
        line.rsplit("|", 2)[0] for line in own
    )
