"""Slurm by its commands, over any transport; text in, plain objects out.

Submitting exactly once rests on the submission's folder on the login node, where
`mkdir` decides who runs ``sbatch``:

| submit.lock | id     | meaning, for whoever comes                                       |
| ----------- | ------ | ---------------------------------------------------------------- |
| absent      | absent | nobody ran sbatch: take the lock, run it, write the id            |
| present     | present| this is the array                                                |
| present     | absent | it runs right now, or whoever ran it died: wait for the id; look |
|             |        | the name up in squeue and sacct; after 90 s (the login node's    |
|             |        | clock, and sbatch itself is ended after 60 s) take over           |

A remote command goes on when the SSH connection dies, so a lost reply is found by the
next call as an id. Output is parsed from ``-o`` and ``-P`` text: the JSON forms change
between versions.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from airflow_slurm_provider.slurm.states import ElementState, parse_state
from airflow_slurm_provider.slurm.transport import CommandResult, Transport
from slurm_worker.errors import ServiceError, UserError

log = logging.getLogger(__name__)

_REFUSED, _LOCKED = 91, 92
_STALE_LOCK_S = 90
_POLL_S = 1.0
_VANISHED_AFTER_S = 120.0
_LONG_S = 120.0

#: What sbatch says when it doesn't know whether the controller took the job, or when
#: another time may do. Everything else is a refusal of these options.
_AMBIGUOUS = ("timed out", "contact slurm controller", "zero bytes", "connection refused")
_TEMPORARY = ("maxsubmit", "temporarily", "try again", "queue limit", "job submit limit")

_SUBMIT = f"""\
trap '' HUP PIPE
if [ -s id ]; then cat id; exit 0; fi
mkdir submit.lock 2>/dev/null || exit {_LOCKED}
if out=$(timeout 60 sbatch --parsable script.sh 2>err); then
  printf '%s\\n' "$out" > id.tmp && mv id.tmp id && cat id
  exit 0
fi
[ $? -eq 124 ] && echo "sbatch timed out" >> err
cat err >&2
exit {_REFUSED}
"""
_TAKE_OVER = f"""\
age=$(( $(date +%s) - $(stat -c %Y submit.lock 2>/dev/null || date +%s) ))
[ "$age" -gt {_STALE_LOCK_S} ] && mv submit.lock "stale.$$.$(date +%s)"
"""


@dataclass(frozen=True, slots=True)
class Element:
    """One element of an array, as Slurm shows it."""

    state: ElementState
    exit_code: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class ArrayState:
    """An array, as Slurm shows it.

    Args:
        unknown: neither ``squeue`` nor ``sacct`` knows it (yet): neither alive nor ended.
    """

    slurm_job_id: str
    elements: dict[str, Element] = field(default_factory=dict)
    unknown: bool = False

    @property
    def alive(self) -> int:
        """Elements that may still do something."""
        return sum(not element.state.terminal for element in self.elements.values())

    def counts(self) -> dict[str, int]:
        """Elements by state."""
        return dict(Counter(element.state.value for element in self.elements.values()))


class SlurmClient:
    """The commands of one cluster, as one user.

    Args:
        transport: runs the commands.
        remote_dir: the project's folder on the login node, relative to the home folder
            unless absolute; must lie on a file system that the nodes share.
    """

    def __init__(
        self,
        transport: Transport,
        remote_dir: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = transport
        self._remote_dir = remote_dir
        self._clock = clock
        self._sleep = sleep
        self._base = ""
        self._unknown_since: dict[str, float] = {}

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def version(self) -> str:
        """Slurm's version, such as ``slurm-wlm 22.05.8``.

        Raises:
            UserError: if there is no Slurm on the login node's PATH.
        """
        result = self._transport.run("sbatch --version")
        if result.code:
            raise UserError(
                "cluster: sbatch does not run on the login node: "
                f"{_last_line(result)}; make it available to non-interactive shells"
            )
        return result.stdout.strip()

    def put_file(self, name: str, data: bytes) -> str:
        """Put a file, whose name holds its digest, into `remote_dir`; return its path.

        Skipped where it is there already; a partial upload is never visible.
        """
        base = self._base_folder()
        quoted, size = shlex.quote(name), len(data)
        whole = f'[ "$(wc -c 2>/dev/null < {{}})" -eq {size} ]'
        inside = f"cd {shlex.quote(base)} && "
        if self._transport.run(inside + whole.format(quoted)).code:
            partial = f'"$$.{size}.tmp"'
            self._must(
                inside + f"cat > {partial} && {whole.format(partial)} && mv {partial} {quoted}",
                "upload",
                stdin=data,
            )
        return f"{base}/{name}"

    def submit(self, name: str, script: str, folder: str) -> str:
        """Submit `script` under `name` exactly once; return the array's job id.

        Called again with the same name, after whatever, it returns the same array.

        Args:
            name: the Slurm job's name, which holds the submission's token.
            script: the batch script.
            folder: groups submissions in `remote_dir`, such as the backfill's id.

        Raises:
            UserError: if Slurm refuses the script's options.
            ServiceError: if it can't be known now; calling again goes on.
        """
        place = f"{self._base_folder()}/jobs/{folder}/{name}"
        inside = f"mkdir -p {shlex.quote(place)} && cd {shlex.quote(place)} || exit 90\n"
        data = script.encode()
        self._must(
            inside + f'cat > "$$.tmp" && [ "$(wc -c < "$$.tmp")" -eq {len(data)} ] '
            '&& mv "$$.tmp" script.sh',
            "upload of the batch script",
            stdin=data,
        )
        deadline = self._clock() + 2 * _STALE_LOCK_S
        while self._clock() < deadline:
            result = self._transport.run(inside + _SUBMIT, timeout=_LONG_S)
            if result.code == 0:
                return _job_id(result.stdout)
            if result.code == _REFUSED:
                return self._after_refusal(inside, name, result)
            if result.code != _LOCKED:
                raise ServiceError(f"cluster: submission of {name}: {_last_line(result)}")
            found = self.find(name)
            if found:
                self._write_id(inside, found)
                return found
            self._transport.run(inside + _TAKE_OVER)
            self._sleep(_POLL_S)
        raise ServiceError(
            f"cluster: another submission of {name} neither ends nor gives up; try again, or "
            f"look into {place}"
        )

    def find(self, name: str) -> str | None:
        """The job of this name that Slurm knows, in its queue or its accounting."""
        quoted = shlex.quote(name)
        queued = self._transport.run(f'squeue -h -t all -u "$(id -un)" --name={quoted} -o %F')
        for line in queued.stdout.splitlines():
            return _job_id(line)
        ended = self._transport.run(f"sacct -nXP -S now-7days --name={quoted} -o JobID")
        for line in ended.stdout.splitlines():
            return _job_id(line)
        return None

    def array(self, slurm_job_id: str) -> ArrayState:
        """The array's elements: one ``squeue``, and one ``sacct`` where none is in the queue."""
        job = shlex.quote(slurm_job_id)
        queued = self._transport.run(f"squeue -h -r -t all -j {job} -o '%i|%T|%N'")
        elements = _elements(queued.stdout)
        if any(not element.state.terminal for element in elements.values()):
            self._unknown_since.pop(slurm_job_id, None)
            return ArrayState(slurm_job_id, elements)
        if queued.code and "invalid job id" not in queued.stderr.lower():
            raise ServiceError(f"cluster: squeue: {_last_line(queued)}")
        ended = self._transport.run(f"sacct -nXP -j {job} -o JobID,State,NodeList,ExitCode")
        recorded = _elements(ended.stdout)
        # Accounting lags: an element that the queue has seen end is not alive again.
        elements = {**recorded, **elements}
        if elements and all(element.state.terminal for element in elements.values()):
            return ArrayState(slurm_job_id, elements)
        return ArrayState(slurm_job_id, elements, unknown=self._still_unknown(slurm_job_id))

    def cancel(self, slurm_job_id: str) -> None:
        """Cancel the array; one that has ended is none the worse."""
        self._must(f"scancel {shlex.quote(slurm_job_id)}", "scancel")

    def _after_refusal(self, inside: str, name: str, result: CommandResult) -> str:
        """What sbatch's failure means: not taken for certain, or perhaps taken."""
        text = result.stderr.lower()
        if any(words in text for words in _AMBIGUOUS):
            # The controller may have the job; the lock stays until the name was looked for.
            for _ in range(10):
                found = self.find(name)
                if found:
                    self._write_id(inside, found)
                    return found
                self._sleep(_POLL_S)
            raise ServiceError(f"cluster: sbatch: {_last_line(result)}; submit again to go on")
        self._transport.run(inside + 'mv submit.lock "refused.$$.$(date +%s)"')
        message = f"slurm: sbatch refused the array: {_last_line(result)}"
        if any(words in text for words in _TEMPORARY):
            raise ServiceError(f"{message}; submit again later")
        raise UserError(f"{message}; correct the slurm section")

    def _write_id(self, inside: str, slurm_job_id: str) -> None:
        self._must(
            inside + f'echo {shlex.quote(slurm_job_id)} > "$$.id" && mv "$$.id" id', "note the id"
        )

    def _still_unknown(self, slurm_job_id: str) -> bool:
        since = self._unknown_since.setdefault(slurm_job_id, self._clock())
        if self._clock() - since < _VANISHED_AFTER_S:
            return True
        log.warning("neither squeue nor sacct knows array %s any more", slurm_job_id)
        return False

    def _base_folder(self) -> str:
        if not self._base:
            folder = shlex.quote(self._remote_dir)
            self._base = self._must(
                f"mkdir -p {folder} && cd {folder} && pwd", "make the remote folder"
            ).strip()
        return self._base

    def _must(self, command: str, what: str, stdin: bytes = b"") -> str:
        result = self._transport.run(command, stdin, _LONG_S)
        if result.code:
            raise ServiceError(f"cluster: {what} failed: {_last_line(result)}")
        return result.stdout


def _elements(text: str) -> dict[str, Element]:
    """Lines ``<job>_<element>|<state>|<node>[|<exit code>]`` by element."""
    found = {}
    for line in text.splitlines():
        words = line.split("|")
        if len(words) < 3:
            log.warning("Slurm printed a line that is not understood: %r", line)
            continue
        found[words[0].partition("_")[2] or "0"] = Element(
            parse_state(words[1]), words[3] if len(words) > 3 else "", words[2]
        )
    return found


def _job_id(text: str) -> str:
    """The id in ``123``, ``123;cluster``, ``123_4`` or ``123_[0-7%2]``."""
    word = text.strip().split(";")[0].partition("_")[0]
    if not word.isdigit():
        raise ServiceError(f"cluster: {text.strip()!r} holds no Slurm job id")
    return word


def _last_line(result: CommandResult) -> str:
    lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {result.code}"
