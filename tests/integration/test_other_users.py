"""Another user of the cluster tries to run code as the user, to read, and to be in the way.

A real second account of the machine that the stack's nodes and login node share. Each test
keeps a sentence of SECURITY.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import stat
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services, open_services, open_transport
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.workers import Workers
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.embedded.transport import EmbeddedTransport
from airflow_slurm_provider.slurm.transport import CommandResult, LocalTransport, Transport
from slurm_worker import zipapp
from slurm_worker.errors import UserError
from tests.integration.slurm.conftest import script
from tests.stack.settings import ROOT, Mode, Settings
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]

ITEMS = 20
#: Of the system, which every account may run.
PYTHON = "/usr/bin/python3"
UNTIL_S = 60.0

#: The other user guesses the names of the worker's folders, opens them to all, and lays its own
#: handler where the worker is about to look for the user's. Tells what it saw and took.
TAKE_OVER = """
import glob, os, shutil, sys
scratch, victim, code = sys.argv[1:]
for pid in range(os.getpid(), os.getpid() + 3000):
    os.mkdir(f"{scratch}/slurm-worker-{victim}-{pid}")
    os.chmod(f"{scratch}/slurm-worker-{victim}-{pid}", 0o777)
print("ready", flush=True)
os.umask(0)
seen = set()
while True:
    for found in glob.glob(f"{scratch}/slurm-worker-{victim}-*/*"):
        if os.lstat(found).st_uid == os.getuid() or found in seen:
            continue
        seen.add(found)
        print("saw", found, flush=True)
        try:
            os.rename(found, found + ".moved")
            shutil.copytree(code, found)
            os.chmod(found, 0o777)
            print("took", found, flush=True)
        except OSError:
            pass
"""


@dataclass(frozen=True)
class Account:
    """A user of the machine, and what it can do."""

    name: str

    @property
    def entry(self) -> pwd.struct_passwd:
        return pwd.getpwnam(self.name)

    def start(self, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
        entry = self.entry
        return subprocess.Popen(
            [str(each) for each in words],
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "HOME": entry.pw_dir, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words, **environment) as process:
            out, err = process.communicate(timeout=100)
            return subprocess.CompletedProcess(words, process.returncode, out, err)

    def shell(self, program: str, *words: str | Path, **environment: str) -> str:
        """What a program that must succeed prints."""
        ended = self.run("sh", "-ec", program, "sh", *words, **environment)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@dataclass(frozen=True)
class Lax:
    """A transport of an account whose umask leaves more to others."""

    inner: Transport
    umask: str

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        return self.inner.run(f"umask {self.umask}; {command}", stdin, timeout)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture(scope="module")
def settings(stack: Mapping[str, str]) -> Settings:
    found = remembered_settings(state_folder(ROOT))
    assert found is not None
    if found.mode is not Mode.SLURM:
        pytest.skip("the embedded stack runs as one user")
    return found


@pytest.fixture
def user(settings: Settings) -> Account:
    """Whose jobs are at stake."""
    return Account(settings.user)


@pytest.fixture
def other(settings: Settings) -> Account:
    """Who attacks."""
    return Account(settings.other_user)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp: everybody may write into it, and keeps what is theirs."""
    with tempfile.TemporaryDirectory(prefix="other-users-") as folder:
        path = Path(folder)
        path.chmod(0o1777)
        yield path


@pytest.fixture
def services(stack: Mapping[str, str], settings: Settings) -> Iterator[Services]:
    opened = open_services(load_site(stack["SLURMCTL_CONFIG"]))
    yield opened
    opened.close()


@pytest.fixture
def ssh(services: Services) -> Iterator[Transport]:
    transport = open_transport(services.site.cluster)
    yield transport
    transport.close()


@pytest.fixture
def planned(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A job that waits for a worker."""
    (tmp_path / "handler.py").write_text(
        "def handle(item, context):\n    return {'n': item['n']}\n"
    )
    (tmp_path / "items.jsonl").write_text(
        "".join(json.dumps({"id": f"k{n}", "n": n}) + "\n" for n in range(ITEMS))
    )
    config = load_config(
        {
            "job_id": f"others-{uuid.uuid4().hex[:10]}",
            "input": {"path": str(tmp_path / "items.jsonl"), "key": "id"},
            "bundle": 5,
            "handler": {"entry": "handler:handle", "code": str(tmp_path)},
        }
    )
    monkeypatch.setattr(api, "ensure_workers", lambda *_: Workers((), "", 0, "", reattached=True))
    api.submit(services, config, log=lambda _: None)
    return config


def worker(services: Services, config: Config, shared: Path) -> list[str]:
    """The command of a worker of the job, whose file every account may read."""
    file = shared / "worker.pyz"
    file.write_bytes(zipapp.build()[1])
    file.chmod(0o644)
    standing = services.jobs(config.spec.id).get()
    arguments = upload.worker_arguments(services, config.spec, standing.config, "000-1")
    return [PYTHON, str(file), *arguments]


def aws(stack: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in stack.items() if name.startswith("AWS_")}


def done(services: Services, config: Config) -> int:
    return sum(marker.ok for marker in services.store(config.spec.id).markers())


def test_another_user_can_not_put_a_handler_into_a_workers_folder(
    services: Services,
    planned: Config,
    user: Account,
    other: Account,
    shared: Path,
    stack: Mapping[str, str],
) -> None:
    marker = shared / "ran-as"
    evil = shared / "evil"
    code = evil / f"code-{upload.pack_code(planned)[0][:16]}"
    program = (
        f"import os\ndef handle(*_):\n    open({str(marker)!r}, 'w').write(str(os.getuid()))\n"
    )
    other.shell('mkdir -p "$1" && printf "%b" "$2" > "$1/handler.py"', code, program)
    command = worker(services, planned, shared)
    attack = other.start(PYTHON, "-c", TAKE_OVER, shared, str(user.entry.pw_uid), evil)
    try:
        assert attack.stdout is not None
        assert attack.stdout.readline() == "ready\n"
        ended = user.run(*command, TMPDIR=str(shared), **aws(stack))
    finally:
        attack.kill()
    told = attack.communicate()[0]
    assert ended.returncode == 0, ended.stderr
    assert not marker.exists(), "it ran code as the user"
    assert told == "", "it looked into the worker's folder"
    assert done(services, planned) == ITEMS


@pytest.mark.parametrize("what", ["folder", "link", "file", "fifo"])
def test_another_user_can_not_put_files_where_the_worker_unpacks_its_own(
    user: Account, other: Account, shared: Path, what: str
) -> None:
    digest, data = zipapp.build()
    file = shared / "worker.pyz"
    file.write_bytes(data)
    file.chmod(0o644)
    marker = shared / "ran-as"
    evil = shared / "evil"
    other.shell(
        'umask 0; mkdir -p "$1/$2/slurm_worker"; : > "$1/$2/slurm_worker/__init__.py"; '
        'echo "import os; os.mkdir(\'$3\')" > "$1/$2/slurm_worker/__main__.py"',
        evil,
        digest,
        marker,
    )
    taken = shared / f"slurm-worker-{user.entry.pw_uid}"
    put = {
        "folder": 'cp -r "$1" "$2"; chmod 777 "$2"',
        "link": 'ln -s "$1" "$2"',
        "file": ': > "$2"',
        "fifo": 'mkfifo -m 666 "$2"',
    }
    other.shell(put[what], evil, taken)
    for _ in range(2):
        ended = user.run(PYTHON, file, "run", "--help", TMPDIR=str(shared))
        assert ended.returncode == 0, ended.stderr
    assert not marker.exists()
    made = [each for each in shared.iterdir() if each.stat().st_uid == user.entry.pw_uid]
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o700], "and it is used again"


@pytest.mark.parametrize("whose", ["theirs", "everybody's"])
def test_a_worker_uses_no_temporary_folder_that_another_user_can_rename_things_in(
    services: Services,
    planned: Config,
    user: Account,
    other: Account,
    shared: Path,
    stack: Mapping[str, str],
    whose: str,
) -> None:
    temporary = shared / "tmp"
    if whose == "theirs":
        other.shell('mkdir -m 1777 "$1"', temporary)
    else:
        temporary.mkdir()
        temporary.chmod(0o777)
    command = worker(services, planned, shared)
    unpacking = user.run(*command, TMPDIR=str(temporary), **aws(stack))
    scratch = user.run(*command, "--scratch", temporary, TMPDIR=str(shared), **aws(stack))
    for ended in (unpacking, scratch):
        assert ended.returncode == 75
        assert str(temporary) in ended.stderr
        assert "Traceback" not in ended.stderr
    assert done(services, planned) == 0


def other_users_folder(user: Account, other: Account, place: Path) -> None:
    other.shell('mkdir -m 777 "$1"', place)


def folder_in_another_users(user: Account, other: Account, place: Path) -> None:
    other.shell('mkdir -m 777 "$1"', place.parent)
    user.shell('mkdir -m 700 "$1"', place)


def folder_in_an_open_one(user: Account, other: Account, place: Path) -> None:
    place.parent.mkdir()
    place.parent.chmod(0o777)
    user.shell('mkdir -m 700 "$1"', place)


def folder_in_one_of_a_group(user: Account, other: Account, place: Path) -> None:
    user.shell('mkdir -m 2775 "$1"; mkdir -m 700 "$2"', place.parent, place)


def folder_of_everybody(user: Account, other: Account, place: Path) -> None:
    user.shell('mkdir -m 1777 "$1"', place)


def link_of_another_user(user: Account, other: Account, place: Path) -> None:
    # Outside a sticky folder the kernel follows any link.
    user.shell('mkdir -m 700 "$1"', place.parent.with_name("private"))
    place.parent.mkdir()
    place.parent.chmod(0o777)
    other.shell('ln -s "$1" "$2"', place.parent.with_name("private"), place)
    place.parent.chmod(0o755)


def lock_that_is_held(user: Account, other: Account, place: Path) -> None:
    user.shell('mkdir -m 777 "$1"', place)
    other.shell(
        'mkdir -p "$1/jobs/f/name/attempt.1"; date +%s > "$1/jobs/f/name/attempt.1/at"', place
    )


@pytest.mark.parametrize(
    "prepare",
    [
        other_users_folder,
        folder_in_another_users,
        folder_in_an_open_one,
        folder_in_one_of_a_group,
        folder_of_everybody,
        link_of_another_user,
        lock_that_is_held,
    ],
)
def test_a_remote_folder_that_another_user_can_change_is_refused(
    ssh: Transport,
    user: Account,
    other: Account,
    shared: Path,
    prepare: Callable[[Account, Account, Path], None],
) -> None:
    place = shared / "above" / "lab"
    if prepare in (other_users_folder, folder_of_everybody, lock_that_is_held):
        place = shared / "lab"
    prepare(user, other, place)
    client = SlurmClient(ssh, str(place))
    for ask in (
        lambda: client.put_file("worker.pyz", b"x"),
        lambda: client.put_secret("f", "credentials.json", b"x"),
        lambda: client.submit("name", script("name", "true"), "f"),
        lambda: client.survey().try_folder("x"),
    ):
        with pytest.raises(UserError, match=r"^cluster\.remote_dir: .*name a folder of this acc"):
            ask()
    left = [each.name for each in shared.rglob("*") if each.is_file()]
    assert left == (["at"] if prepare is lock_that_is_held else [])


def test_a_remote_folder_that_its_group_may_write_into_is_closed_to_it(
    ssh: Transport, user: Account, other: Account, shared: Path
) -> None:
    """As a umask of 002 makes it; what the group has put there meanwhile is not used."""
    place = shared / "lab"
    group = pwd.getpwnam(other.name).pw_gid
    user.shell('mkdir -m 770 "$1"', place)
    os.chown(place, -1, group)
    other.shell('mkdir -m 777 "$1/jobs"; echo forged > "$1/worker.pyz"', place)
    client = SlurmClient(ssh, str(place))
    with pytest.raises(UserError, match=r"lab/jobs' belongs to another user"):
        client.put_file("worker.pyz", b"x")
    assert other.run("touch", place / "more").returncode
    (place / "jobs").rmdir()
    assert Path(client.put_file("worker.pyz", b"x")).read_bytes() == b"x"
    assert (place / "worker.pyz").stat().st_uid == user.entry.pw_uid


@pytest.mark.parametrize("umask", ["000", "022"])
@pytest.mark.parametrize("way", ["ssh", "local"])
def test_another_user_can_read_no_script_log_or_credential_whatever_the_umask(
    ssh: Transport,
    other: Account,
    shared: Path,
    stack: Mapping[str, str],
    way: str,
    umask: str,
) -> None:
    remote = shared / "lab"
    client = SlurmClient(Lax(ssh if way == "ssh" else LocalTransport(), umask), str(remote))
    client.put_file("worker.pyz", b"x")
    client.put_secret("f", "credentials.json", b"x")
    name = f"test.{uuid.uuid4().hex[:12]}"
    array = client.submit(name, script(name, "echo said"), "f")
    deadline = time.monotonic() + UNTIL_S
    while "said" not in client.output(name, "f", 0, 10):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found = [remote, *remote.rglob("*")]
    assert {"script.sh", "worker-0.log", "id", "credentials.json", "worker.pyz"} <= {
        each.name for each in found
    }
    modes = {str(each): stat.S_IMODE(each.stat().st_mode) for each in found}
    wanted = {str(each): 0o700 if each.is_dir() else 0o600 for each in found}
    assert modes == wanted
    for each in found:
        looked = other.run("ls" if each.is_dir() else "cat", each)
        assert looked.returncode, f"{each} can be read"
    asked = other.run(
        "scontrol", "write", "batch_script", f"{array}_0", "-", SLURM_CONF=stack["SLURM_CONF"]
    )
    assert "#SBATCH" not in asked.stdout


def test_another_user_can_not_read_a_workers_environment(
    ssh: Transport, user: Account, other: Account
) -> None:
    client = SlurmClient(ssh, ".airflow-slurm")
    name = f"test.{uuid.uuid4().hex[:12]}"
    array = client.submit(name, script(name, "exec sleep 60"), "tests")
    try:
        deadline = time.monotonic() + UNTIL_S
        while not (mine := processes_of(array)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for pid in mine:
            assert other.run("cat", f"/proc/{pid}/environ").returncode
    finally:
        client.cancel([ArrayKey(array, name)])


def test_a_folder_of_the_embedded_cluster_that_another_user_made_is_refused(
    other: Account, shared: Path
) -> None:
    other.shell('mkdir -m 777 "$1" "$1/bin"; echo "#!/bin/sh" > "$1/bin/sbatch"', shared / "own")
    with pytest.raises(UserError, match=r"^cluster\.embedded_dir: .*belongs to another user"):
        EmbeddedTransport(shared / "own")


def test_a_worker_file_that_was_changed_on_the_way_does_not_run(
    ssh: Transport, user: Account, shared: Path
) -> None:
    """Whoever may have done it: the digest is in the script, which Slurm keeps."""
    data = zipapp.build()[1]
    client = SlurmClient(ssh, str(shared / "lab"))
    path = Path(client.put_file("worker.pyz", data))
    command = [PYTHON, "-c", zipapp.LAUNCH, path, hashlib.sha256(data).hexdigest(), "--version"]
    assert user.run(*command).returncode == 0
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    ended = user.run(*command)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "is not the file that was submitted" in ended.stderr
    assert Path(client.put_file("worker.pyz", data)).read_bytes() == data


def processes_of(array: str) -> list[int]:
    """The processes of an array's elements, as root sees them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_ARRAY_JOB_ID={array}".encode() in environment:
            found.append(int(folder.name))
    return found
