"""The project's folder on the login node: what it holds is put there and read over a transport.

Each method costs one command, and the first one another: it makes the folder.
"""

from __future__ import annotations

import hashlib
import re
import uuid

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.transport import (
    CommandResult,
    Transport,
    error_text,
    unsafe_folder,
)
from slurm_worker.errors import ServiceError, UserError

#: Seconds for a program on the login node, which may wait for the controller.
PROGRAM_TIMEOUT_S = 120.0
#: More lines than a batch script has.
_ALL_LINES = "100000"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class RemoteFolder:
    """Files of one account on the login node; safe to share between threads.

    All methods raise `UserError` if another user can change the folder, and `ServiceError` if the
    cluster can't be reached. `folder` and `name` are those given to `SlurmClient.submit`.
    `remote_dir` is relative to the home folder unless absolute. The nodes must share it.
    """

    def __init__(self, transport: Transport, remote_dir: str) -> None:
        self._transport = transport
        self._remote_dir, self._made = remote_dir.removeprefix("~/"), ""

    def put_file(self, name: str, data: bytes) -> str:
        """Put a file into `remote_dir`; return its path.

        Skipped where a file of this name and SHA-256 exists. A partial upload is never visible.
        """
        check_name(name, "file")
        base, digest = self._base(), hashlib.sha256(data).hexdigest()
        if self._run(submission.HAS_FILE, base, name, digest).code:
            self._upload("file", base, name, data)
        return f"{base}/{name}"

    def put_secret(self, folder: str, name: str, data: bytes) -> str:
        """Put a file that only the account can read, replacing one of this name; return its path.

        The content is sent through standard input only.
        """
        check_name(name, "file")
        place = self._place(folder)
        self._upload(name, place, name, data)
        return f"{place}/{name}"

    def output(self, name: str, folder: str, element: int, lines: int) -> str:
        """The last lines that an element of an array wrote; empty where it wrote none."""
        return self._tail(self._place(folder, name), f"worker-{element}.log", str(lines))

    def script(self, name: str, folder: str) -> str:
        """The batch script of an array, as ``sbatch`` got it."""
        return self._tail(self._place(folder, name), "script.sh", _ALL_LINES)

    def _place(self, folder: str, name: str | None = None) -> str:
        """The folder of a job's submissions, or of the submission of this name."""
        check_name(folder, "folder")
        if name is not None:
            check_name(name, "job")
        return "/".join([self._base(), "jobs", folder, *([name] if name else [])])

    def _base(self) -> str:
        # No cached_property: before Python 3.12 all clusters' clients would share its lock.
        if not self._made:
            what = "making the remote folder"
            made = self._run_checked(what, submission.MAKE_FOLDER, self._remote_dir)
            self._made = made.strip()
        return self._made

    def _upload(self, what: str, place: str, name: str, data: bytes) -> None:
        values = (place, name, str(len(data)), new_token())
        self._run_checked(f"upload of {what}", submission.PUT_FILE, *values, stdin=data)

    def _tail(self, place: str, name: str, lines: str) -> str:
        return self._run_checked(f"reading {name}", submission.TAIL, place, name, lines)

    def _run(self, program: str, *arguments: str, stdin: bytes = b"") -> CommandResult:
        command = submission.one_line(program, *arguments)
        return self._transport.run(command, stdin, PROGRAM_TIMEOUT_S)

    def _run_checked(self, what: str, program: str, *arguments: str, stdin: bytes = b"") -> str:
        """Run a program; its output. An error names `what`."""
        result = self._run(program, *arguments, stdin=stdin)
        if result.code == submission.SubmitExit.UNSAFE:
            raise unsafe_folder(result)
        if result.code:
            raise ServiceError(f"cluster: {what} failed: {error_text(result)}")
        return result.stdout


def check_name(name: str, what: str) -> None:
    """Refuse a name that a shell, Slurm or a file system could misread.

    Raises:
        UserError: naming it.
    """
    if not _PLAIN.fullmatch(name):
        raise UserError(
            f"slurm: {name!r} can't be the name of a {what}; use letters, digits, '.', '_' and "
            "'-', at most 200 characters, a letter or digit first"
        )


def new_token() -> str:
    """A token that is drawn once."""
    return uuid.uuid4().hex[:12]
