"""The login node: the cluster's ordinary user, and an sshd on loopback that lets in its key.

As root. Writes below ``ssh/`` and the user's home; changes the machine's users only by
adding this one and another who has nothing, or by giving it this checkout's home.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

from tests.stack.process import Service, run
from tests.stack.settings import ACCESS_KEY, LOOPBACK, REGION, SECRET_KEY, Settings, StackError

_SSHD = "/usr/sbin/sshd"
_CONFIG = """\
Port {port}
ListenAddress {loopback}
HostKey {ssh}/host_ed25519
AuthorizedKeysFile {ssh}/authorized_keys
PidFile none
AllowUsers {user}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PrintMotd no
LogLevel VERBOSE
MaxStartups 100
MaxSessions 100
SetEnv SLURM_CONF={slurm_conf}
"""


def user_key(settings: Settings) -> Path:
    """The private key that opens the user's account."""
    return settings.state / "ssh" / "id_ed25519"


def host_key(settings: Settings) -> str:
    """The login node's public key: its type and text."""
    return _public(settings.state / "ssh" / "host_ed25519")


def known_hosts(settings: Settings) -> Path:
    """A file that knows the login node."""
    return settings.state / "ssh" / "known_hosts"


def prepare_keys(settings: Settings) -> None:
    """Make the keys and the files that name them, as far as they are absent."""
    folder = settings.folder("ssh")
    for name in ("id_ed25519", "host_ed25519"):
        if not (folder / name).exists():
            comment = f"development stack, {name}"
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", folder / name])
    (folder / "authorized_keys").write_text(_public(user_key(settings)) + "\n")
    port = settings.ports["sshd"]
    known_hosts(settings).write_text(f"[{LOOPBACK}]:{port} {host_key(settings)}\n")


def prepare_user(settings: Settings) -> None:
    """Create the user, with its home in the stack and credentials for the nodes in it.

    Raises:
        StackError: if the user has another home and is at work.
    """
    home = settings.home
    settings.folder("home")
    try:
        found = pwd.getpwnam(settings.user)
    except KeyError:
        # '*' also means no password, but unlike '!' it does not lock the account for sshd.
        run(["useradd", "-M", "-d", home, "-s", "/bin/bash", "-p", "*", settings.user])
    else:
        _check_ordinary(found)
        if found.pw_dir != str(home):
            _move_home(settings.user, home)
        run(["usermod", "-p", "*", settings.user])
    entry = pwd.getpwnam(settings.user)
    home.mkdir(exist_ok=True)
    _own(home, entry, 0o755)
    aws = home / ".aws"
    aws.mkdir(exist_ok=True)
    _own(aws, entry, 0o700)
    credentials = aws / "credentials"
    credentials.touch(mode=0o600)
    credentials.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        f"region = {REGION}\n"
    )
    _own(credentials, entry, 0o600)


def prepare_other_user(settings: Settings) -> None:
    """Have another ordinary user on the nodes, without a home, a key or any right."""
    try:
        found = pwd.getpwnam(settings.other_user)
    except KeyError:
        run(["useradd", "-M", "-N", "-d", "/nonexistent", "-s", "/bin/sh", settings.other_user])
    else:
        _check_ordinary(found)


def sshd(settings: Settings, slurm_conf: Path) -> Service:
    """The login node's sshd; its sessions find Slurm's configuration."""
    folder = settings.folder("ssh")
    config = folder / "sshd_config"
    config.write_text(
        _CONFIG.format(
            port=settings.ports["sshd"],
            loopback=LOOPBACK,
            ssh=folder,
            user=settings.user,
            slurm_conf=slurm_conf,
        )
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd separates its privileges there
    return Service(
        name="sshd",
        argv=(_SSHD, "-D", "-e", "-f", str(config)),
        port="sshd",
        needs="openssh-server",
    )


def ssh_command(settings: Settings) -> list[str]:
    """What logs in as the user, for a command to follow."""
    return [
        *("ssh", "-F", "none", "-p", str(settings.ports["sshd"]), "-i", str(user_key(settings))),
        *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"),
        *("-o", f"UserKnownHostsFile={known_hosts(settings)}", f"{settings.user}@{LOOPBACK}"),
    ]


def _check_ordinary(entry: pwd.struct_passwd) -> None:
    if entry.pw_uid < 1000:
        raise StackError(
            f"STACK_USER: {entry.pw_name!r} is a user of the system; name an ordinary one, "
            "or one that does not exist yet"
        )


def _move_home(user: str, home: Path) -> None:
    ended = subprocess.run(
        ["usermod", "-d", str(home), user], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise StackError(
            f"{user}: its home can't be set to {home}: {ended.stderr.strip()}; stop the other "
            "checkout's stack (make stack-down there), or choose another user with STACK_USER"
        )


def _own(path: Path, entry: pwd.struct_passwd, mode: int) -> None:
    os.chown(path, entry.pw_uid, entry.pw_gid)
    path.chmod(mode)


def _public(private: Path) -> str:
    kind, text = private.with_name(private.name + ".pub").read_text().split()[:2]
    return f"{kind} {text}"
