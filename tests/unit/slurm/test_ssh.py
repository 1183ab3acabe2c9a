"""One SSH connection serves all threads, is opened again when it broke, with pauses."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from airflow_slurm_provider.slurm.ssh import SshTransport, open_paramiko
from slurm_worker.errors import HostUnreachable, ServiceError, UserError
from tests.unit.slurm.fake_slurm import Time
from tests.unit.slurm.ssh_server import LoginNode, closed_port, connect


@pytest.fixture
def time() -> Time:
    return Time()


# --- one connection


def test_all_threads_share_one_connection(node: LoginNode, ssh: SshTransport) -> None:
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda n: ssh.run(f"sleep 0.1; echo {n}").stdout, range(40)))
    assert results == [f"{n}\n" for n in range(40)]
    assert (node.connections, node.logins) == (1, ["lab"])
    assert 1 < node.most_sessions < 10, "sshd allows 10 sessions on a connection"


def test_a_connection_that_broke_between_commands_is_replaced_at_once(
    node: LoginNode, ssh: SshTransport
) -> None:
    assert ssh.run("echo 1").code == 0
    node.cut()
    assert ssh.run("echo 2").stdout == "2\n"
    assert node.connections == 2


def test_a_connection_that_breaks_within_a_command_is_an_error_and_replaced(
    node: LoginNode, ssh: SshTransport
) -> None:
    ssh.run("true")
    threading.Timer(0.3, node.cut).start()
    with pytest.raises(ServiceError, match=r"the SSH connection to 127.0.0.1 broke .*try again"):
        ssh.run("sleep 2; echo never")
    assert ssh.run("echo again").stdout == "again\n"


def test_the_ssh_library_adds_no_line_to_our_errors() -> None:
    program = (
        "import logging, airflow_slurm_provider.slurm.ssh; "
        "logging.getLogger('paramiko.transport').error('Socket exception: reset by peer')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stderr == ""


def test_a_timeout_does_not_break_other_commands_on_the_connection(
    node: LoginNode, ssh: SshTransport
) -> None:
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(ssh.run, "sleep 1.5; echo beside")
        with pytest.raises(ServiceError, match=r"127\.0\.0\.1: no answer within"):
            ssh.run("sleep 5", timeout=0.5)
        assert beside.result().stdout == "beside\n"
    assert ssh.run("echo next").stdout == "next\n"
    assert node.connections == 2


def test_a_late_failure_on_the_old_connection_leaves_the_new_one_alone(
    node: LoginNode, ssh: SshTransport
) -> None:
    def fail(seconds: float) -> None:
        with pytest.raises(ServiceError, match="no answer"):
            ssh.run("sleep 5", timeout=seconds)

    ssh.run("true")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(fail, 1.0)
        fail(0.3)
        assert ssh.run("echo new").stdout == "new\n"
        late.result()
    assert ssh.run("echo still").stdout == "still\n"
    assert node.connections == 2


def test_after_a_timeout_the_next_command_uses_a_new_connection(
    node: LoginNode, ssh: SshTransport
) -> None:
    node.silent = True
    with pytest.raises(ServiceError, match="no answer"):
        ssh.run("true", timeout=0.3)
    node.silent = False
    assert ssh.run("echo back").stdout == "back\n"


def test_a_refused_session_is_tried_again_on_the_same_connection(
    node: LoginNode, time: Time
) -> None:
    def one_ends(seconds: float) -> None:
        time.sleep(seconds)
        node.refuse_sessions = len(time.slept) < 3

    ssh = SshTransport(lambda: connect(node), sleep=one_ends)
    node.refuse_sessions = True
    assert ssh.run("echo on").stdout == "on\n"
    assert (node.connections, len(time.slept)) == (1, 3)
    ssh.close()


def test_a_node_that_refuses_sessions_for_long_is_an_error(node: LoginNode, time: Time) -> None:
    ssh = SshTransport(lambda: connect(node), sleep=time.sleep)
    node.refuse_sessions = True
    with pytest.raises(ServiceError, match="refuses more sessions"):
        ssh.run("true")
    assert (node.connections, 5 < time.now < 20) == (1, True)
    ssh.close()


def test_the_output_of_a_command_that_does_not_read_its_input_arrives(ssh: SshTransport) -> None:
    result = ssh.run("echo no space >&2; exit 4", b"x" * 5_000_000)
    assert (result.code, result.stderr) == (4, "no space\n")


def test_output_of_start_up_files_is_not_part_of_the_commands_output(
    node: LoginNode, ssh: SshTransport
) -> None:
    node.start_up = b"echo hello; printf 'no locale, no end of line' >&2; "
    result = ssh.run("cat; echo oh >&2; exit 4", b"said")
    assert (result.code, result.stdout, result.stderr) == (4, "said", "oh\n")


def test_output_of_start_up_files_that_end_the_login_is_reported(
    node: LoginNode, ssh: SshTransport
) -> None:
    node.start_up = b"echo the account has expired >&2; exit 1; "
    assert ssh.run("true").stderr == "the account has expired\n"


def test_a_closed_transport_opens_again_when_used(node: LoginNode, ssh: SshTransport) -> None:
    ssh.run("true")
    ssh.close()
    ssh.close()
    assert ssh.run("echo 1").stdout == "1\n"
    assert node.connections == 2


# --- tries to connect


class Refusing:
    def __init__(self, error: Exception) -> None:
        self.error = error
        self.tries = 0

    def __call__(self) -> paramiko.SSHClient:
        self.tries += 1
        raise self.error


def test_a_broken_network_is_tried_again_with_growing_pauses(time: Time) -> None:
    refusing = Refusing(ConnectionRefusedError("no"))
    ssh = SshTransport(refusing, time.clock)
    for _ in range(3600):
        with pytest.raises(ServiceError):
            ssh.run("true")
        time.now += 1
    assert 3600 / 60 < refusing.tries < 3600 / 30 + 10
    assert refusing.tries > 10


def test_a_refused_login_is_not_tried_again_for_ten_minutes(time: Time) -> None:
    refusing = Refusing(paramiko.AuthenticationException("Authentication failed."))
    ssh = SshTransport(refusing, time.clock)
    for _ in range(500):
        with pytest.raises(UserError, match=r"the login was refused .*check user, key and agent"):
            ssh.run("true")
        time.now += 1
    assert refusing.tries == 1
    time.now += 600
    with pytest.raises(UserError):
        ssh.run("true")
    assert refusing.tries == 2


def test_each_call_during_a_pause_raises_a_new_error(time: Time) -> None:
    ssh = SshTransport(Refusing(OSError("no route")), time.clock)
    errors = []
    for _ in range(2):
        with pytest.raises(HostUnreachable, match="no route") as caught:
            ssh.run("true")
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_a_host_that_was_reached_before_is_never_the_users_mistake(
    node: LoginNode, time: Time
) -> None:
    answers: list[Callable[[], paramiko.SSHClient]] = [
        lambda: connect(node),
        Refusing(ConnectionRefusedError("down")),
    ]
    ssh = SshTransport(lambda: answers.pop(0)(), time.clock)
    # With a clock that stands still no command runs out of time.
    assert ssh.run("true").code == 0
    node.cut()
    with pytest.raises(ServiceError) as caught:
        ssh.run("true")
    assert not isinstance(caught.value, UserError)


# --- open_paramiko


def test_an_unknown_host_is_refused_with_the_command_that_makes_it_known(node: LoginNode) -> None:
    node.known_hosts.write_text("")
    with pytest.raises(UserError) as caught:
        connect(node)
    assert str(caught.value) == (
        f"cluster.known_hosts: the key of '[127.0.0.1]:{node.port}' (ecdsa-sha2-nistp256) is not "
        f"known; compare and add it: ssh-keyscan -p {node.port} 127.0.0.1 >> known_hosts"
    )
    assert node.logins == []


def test_a_changed_host_key_is_refused(node: LoginNode) -> None:
    node.trust(paramiko.ECDSAKey.generate())
    with pytest.raises(UserError, match="is not the known one; if the node was reinstalled"):
        connect(node)
    assert node.logins == []


def test_a_named_known_hosts_file_replaces_the_users_own(
    node: LoginNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "known_hosts").write_text(node.known_hosts.read_text())
    monkeypatch.setenv("HOME", str(home))
    open_paramiko("127.0.0.1", node.port, "lab", str(node.key_file)).close()
    node.known_hosts.write_text("")
    with pytest.raises(UserError, match="is not known"):
        connect(node)


def test_a_refused_key_is_reported_with_host_user_and_file(node: LoginNode) -> None:
    with pytest.raises(UserError) as caught:
        connect(node, "somebody")
    assert not isinstance(caught.value, ServiceError)
    assert "'127.0.0.1' refused the login of somebody" in str(caught.value)
    assert f"check user and key_file '{node.key_file}'" in str(caught.value)
    assert node.logins == ["somebody"]


def test_a_named_key_is_the_only_one_tried(
    node: LoginNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    node.user_key.write_private_key_file(str(tmp_path / "home" / ".ssh" / "id_ecdsa"))
    other = tmp_path / "other"
    paramiko.ECDSAKey.generate().write_private_key_file(str(other))
    with pytest.raises(UserError, match="refused the login of lab"):
        open_paramiko("127.0.0.1", node.port, "lab", str(other), str(node.known_hosts))
    assert node.logins == ["lab"]


def test_a_key_file_that_holds_no_key_is_named(node: LoginNode) -> None:
    node.key_file.write_text("hello")
    with pytest.raises(UserError, match=r"cluster.key_file: .*key' is not a private key"):
        connect(node)


def test_an_encrypted_key_is_left_to_the_agent(
    node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    node.user_key.write_private_key_file(str(node.key_file), password="secret")
    with pytest.raises(UserError, match=r"in ssh-agent, where it is encrypted"):
        connect(node)


@pytest.mark.parametrize("field", ["key_file", "known_hosts"])
def test_a_file_that_is_not_there_is_named(field: str) -> None:
    with pytest.raises(UserError, match=f"cluster.{field}: there is no file '/nowhere/x'"):
        open_paramiko("127.0.0.1", 1, "lab", **{field: "/nowhere/x"})


def test_a_closed_port_is_reported(node: LoginNode) -> None:
    port = closed_port()
    with pytest.raises(HostUnreachable, match=f"'127.0.0.1' port {port} can't be reached"):
        open_paramiko("127.0.0.1", port, "lab", str(node.key_file), str(node.known_hosts))


def test_a_wrong_host_name_is_reported(node: LoginNode) -> None:
    with pytest.raises(HostUnreachable, match=r"'login.invalid' port 22 can't be reached"):
        open_paramiko("login.invalid", 22, "lab", str(node.key_file), str(node.known_hosts))


def test_a_port_without_ssh_is_an_error(node: LoginNode) -> None:
    keys = (str(node.key_file), str(node.known_hosts))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServiceError):
        open_paramiko("127.0.0.1", silent.getsockname()[1], "lab", *keys, timeout_s=0.5)
