"""The login node in virtual time: our programs for it, and the transport that the client uses.

`SlurmClient` sends the shell programs of `slurm/submission.py`. This twin recognizes each by its
text and does the same, one step after the other. So processes of several callers overlap, are
paused, and die between any two steps. A connection that breaks does not stop a program.
`tests/unit/simulator/test_login_node.py` compares the twin with the real programs.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.slurm.submission import CANCELLED, STALE_ATTEMPT_S, SubmitExit
from airflow_slurm_provider.slurm.transport import CommandResult
from slurm_worker.errors import ServiceError
from slurm_worker.node import slurm_variables
from tests.simulator.engine.schedule import Host, Schedule, SimPending
from tests.simulator.engine.seen import Seen
from tests.simulator.slurm import account
from tests.simulator.slurm.cluster import ACCOUNT, ArrayElement, Controller, SubmitRefused
from tests.simulator.stores.network import Network

_HOME = "/home/lab"
_PART = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s'\"]+")
_WORD = re.compile(rf"(?:{_PART.pattern})+")
#: The name of a submission's second array, or a later one: a number follows the token.
_LATER_ARRAY = re.compile(r"\.[0-9a-f]{12}\.[0-9]+$")
#: Mean seconds of a step of a program, and of a request to the controller.
_STEP_S, _REQUEST_S = 0.002, 0.02
_DOWN = "Unable to contact slurm controller (connect failure)"
_TIMED_OUT = "Socket timed out on send/recv operation"
_NO_DATABASE = "sacct: error: Problem talking to the database: Connection refused"
_DISABLED = "Slurm accounting storage is disabled"
_ALL = tuple(ElementState)


@dataclass(frozen=True, slots=True)
class SlurmFaults:
    """Chances per request to the controller, until `until` of simulated time."""

    lost_request: float = 0.0  #: `sbatch` does not reach it
    lost_reply: float = 0.0  #: `sbatch` is carried out, and its reply is lost
    until: float = 0.0
    #: `sbatch` refuses a submission's second array, or a later one: other jobs of the account
    #: came first. So two callers of a submission may make different numbers of arrays.
    full: float = 0.0


class _Exit(Exception):
    def __init__(self, code: int, out: str = "", error: str = "") -> None:
        self.result = CommandResult(int(code), out, error)


class LoginNode:
    """The files of one account and the programs that run there."""

    def __init__(
        self,
        schedule: Schedule,
        rng: random.Random,
        controller: Controller,
        faults: SlurmFaults = SlurmFaults(),
        seen: Seen | None = None,
    ) -> None:
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()
        self.controller = controller
        self.host = Host("login")
        self._schedule = schedule
        self._rng = rng
        self.faults = faults
        self._seen = seen or Seen()
        #: The account's own variables, which each command gets unless they are removed.
        self.variables: Mapping[str, str] = {}
        self._submits = 0
        self._programs: dict[str, Callable[[list[str], bytes], str]] = {
            submission.MAKE_FOLDER: self._make_folder,
            submission.HAS_FILE: self._has_file,
            submission.PUT_FILE: self._put_file,
            submission.PUT_SCRIPT: self._put_script,
            submission.WITHDRAW: self._withdraw,
            submission.TAIL: self._tail,
        }

    def restart(self) -> None:
        """Every program dies; files stay."""
        self._schedule.kill(self.host)
        self.host = Host("login")

    def execute(
        self, command: str, stdin: bytes, variables: Mapping[str, str] = MappingProxyType({})
    ) -> CommandResult:
        """Run a command of the client to its end, with these variables of the account."""
        words = _words(command)
        try:
            return CommandResult(0, self._run(words, stdin, variables), "")
        except _Exit as ended:
            return ended.result

    def _run(self, words: list[str], stdin: bytes, variables: Mapping[str, str]) -> str:
        self._step()
        if words[:3] == ["sh", "-c", submission.CANCEL]:
            return self._cancel(words[4:], variables)
        if words[:2] == ["sh", "-c"]:
            return self._programs[words[2]](words[4:], stdin)
        if words[:3] == ["sh", "-s", "--"] and stdin == submission.SUBMIT.encode():
            return _Submission(self, variables, *words[3:]).run()
        if words == ["sbatch", "--version"]:
            return "slurm 22.05.8\n"
        if words == ["scontrol", "show", "config"]:
            self.request()
            return f"MaxArraySize            = {self.controller.rules.max_array_size}\n"
        if words[0] == "squeue":
            return self._squeue(words[1:], variables)
        if words[0] == "scancel":
            for slurm_job_id in words[1:]:
                self.request()
                self.scancel(variables, "", slurm_job_id)
            return ""
        if words[0] == "sacct":
            return self._sacct(words[1:])
        raise AssertionError(f"the login node's twin does not know {words}")

    # --- steps ------------------------------------------------------------------

    def _step(self) -> None:
        self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _STEP_S)

    def pause(self, seconds: float) -> None:
        """``sleep``."""
        self._schedule.sleep(seconds)

    def time(self) -> int:
        """``date +%s``."""
        return int(self._schedule.now)

    def request(self) -> None:
        """A query of the controller.

        Raises:
            _Exit: if it does not answer.
        """
        self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _REQUEST_S)
        if self._schedule.now < self.controller.down_until:
            raise _Exit(1, error=f"slurm_load_jobs error: {_DOWN}")

    def write(self, path: str, data: bytes | str) -> None:
        """Write a file."""
        self._step()
        self.files[path] = data.encode() if isinstance(data, str) else data

    def read(self, path: str) -> str:
        """A file's text; empty where there is none."""
        self._step()
        return self.files.get(path, b"").decode()

    def link(self, path: str, data: str) -> None:
        """Write a file that does not exist yet; `ln` decides."""
        self._step()
        self.files.setdefault(path, data.encode())

    def sbatch(self, name: str, place: str, variables: Mapping[str, str]) -> tuple[int, str, str]:
        """Exit code, output and error."""
        self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _REQUEST_S)
        fault = self._fault()
        if fault == "lost_request" or self._schedule.now < self.controller.down_until:
            return 1, "", f"sbatch: error: Batch job submission failed: {_DOWN}"
        script = self.files[f"{place}/script.sh"].decode()
        if self._is_full(name):
            return 1, "", "sbatch: error: AssocMaxSubmitJobLimit"
        try:
            made = self.controller.submit(name, script, place, account.array_option(variables))
        except SubmitRefused as refused:
            return 1, "", str(refused)
        if fault == "lost_reply":
            self._schedule.sleep(60.0)
            return 1, "", f"sbatch: error: Batch job submission failed: {_TIMED_OUT}"
        self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _REQUEST_S)
        return 0, f"{made}\n", ""

    def _is_full(self, name: str) -> bool:
        """Whether other jobs of the account have taken the place of an array."""
        event = f"sbatch {self._submits}"
        return (
            self._schedule.now <= self.faults.until
            and _LATER_ARRAY.search(name) is not None
            and self._seen.rng_of(f"{event} full").random() < self.faults.full
            and self._seen.happens(event, "account full")
        )

    def _fault(self) -> str:
        if self._schedule.now > self.faults.until:
            return ""
        self._submits += 1
        dice = self._seen.rng_of(f"sbatch {self._submits}").random()
        for name in ("lost_request", "lost_reply"):
            dice -= getattr(self.faults, name)
            if dice < 0:
                happens = self._seen.happens(f"sbatch {self._submits}", name)
                return name if happens else ""
        return ""

    # --- programs ---------------------------------------------------------------

    def _make_folder(self, words: list[str], _stdin: bytes) -> str:
        base = f"{_HOME}/{words[0]}"
        self.folders.add(base)
        return f"{base}\n"

    def _has_file(self, words: list[str], _stdin: bytes) -> str:
        base, name, digest = words
        data = self.files.get(f"{base}/{name}")
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise _Exit(1)
        return ""

    def _put_file(self, words: list[str], stdin: bytes) -> str:
        place, name, size, token = words
        self.folders.add(place)
        if len(stdin) != int(size):
            raise _Exit(1)
        self.write(f"{place}/{name}.{token}", stdin)
        self.write(f"{place}/{name}", self.files.pop(f"{place}/{name}.{token}"))
        return ""

    def _put_script(self, words: list[str], stdin: bytes) -> str:
        place, size, _token = words
        self.folders.add(place)
        known = self.read(f"{place}/id")
        if known:
            return known
        if len(stdin) != int(size):
            raise _Exit(1)
        self.write(f"{place}/script.sh", stdin)
        return ""

    def _withdraw(self, words: list[str], _stdin: bytes) -> str:
        place, _token, *pairs = words
        lines = []
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            folder = f"{place}/{name}"
            self.folders.add(folder)
            if not self.read(f"{folder}/id"):
                self.link(f"{folder}/id", f"{value}\n")
            lines.append(f"{name}|{self.read(f'{folder}/id').strip()}\n")
        return "".join(lines)

    def _cancel(self, names: list[str], variables: Mapping[str, str]) -> str:
        for name in names:
            self.request()
            self.scancel(variables, name)
        return ""

    def scancel(self, variables: Mapping[str, str], name: str, slurm_job_id: str = "") -> None:
        """What ``scancel`` does at the controller."""
        if not account.cancels_nothing(variables):
            self.controller.cancel(name, slurm_job_id)

    def _tail(self, words: list[str], _stdin: bytes) -> str:
        place, name, lines = words
        kept = self.read(f"{place}/{name}").splitlines(keepends=True)
        return "".join(kept[-int(lines) :])

    # --- squeue and sacct -------------------------------------------------------

    def _squeue(self, words: list[str], variables: Mapping[str, str]) -> str:
        options = _options(words)
        self.request()
        states = options["-t"].split(",") if options.get("-t", "all") != "all" else None
        shown = [
            element
            for element in self.controller.queue()
            if _chosen(element, options)
            and (states is None or element.state.value in states)
            and not account.hides_jobs(variables)
        ]
        self._count("queue", options)
        if options.get("-j") and not shown:
            raise _Exit(1, error="slurm_load_jobs error: Invalid job id specified")
        return "".join(f"{_in_format(options['-o'], element)}\n" for element in shown)

    def _sacct(self, words: list[str]) -> str:
        options = _options(words)
        if not self.controller.rules.accounting:
            raise _Exit(1, error=_DISABLED)
        self.request()
        if self._schedule.now < self.controller.accounting_down_until:
            raise _Exit(1, error=_NO_DATABASE)
        self._count("accounting", options)
        records = [found for found in self.controller.accounted() if _chosen(found[0], options)]
        if "D" not in words[0]:
            # Without -D, the latest start of each element.
            latest = {found[0].name: found for found in records}
            records = list(latest.values())
        fields = options["-o"].split(",")
        lines = []
        for element, start, state, exit_code in records:
            ended = start.ended if start.ended is not None else self._schedule.now
            values = {
                "JobID": element.name,
                "JobName": element.array.name,
                "State": state.value,
                "NodeList": "n1",
                "ExitCode": exit_code,
                "Elapsed": _duration(ended - start.at),
                "AllocCPUS": "1",
                "TotalCPU": "00:00:01",
                "ReqMem": "1G",
                "MaxRSS": "",
                "Submit": f"{start.at:015.3f}",
            }
            lines.append("|".join(values[name] for name in fields))
        return "".join(f"{line}\n" for line in lines)

    def _count(self, query: str, options: dict[str, str]) -> None:
        """Count what an answer shows late, no longer, or in part."""
        arrays = [
            [element for element in array.elements if _chosen(element, options)]
            for array in self.controller.arrays
        ]
        kinds = _QUEUE if query == "queue" else _ACCOUNTING
        for kind, shows in kinds.items():
            self._seen.faults[kind] += any(shows(self.controller, array) for array in arrays)


def _partly_pending(_controller: Controller, elements: list[ArrayElement]) -> bool:
    states = {element.state for element in elements}
    return {ElementState.PENDING, ElementState.RUNNING} <= states


def _purged(controller: Controller, elements: list[ArrayElement]) -> bool:
    return any(controller.has_purged(element) for element in elements)


def _late(controller: Controller, elements: list[ArrayElement]) -> bool:
    return any(controller.is_late(start) for element in elements for start in element.starts)


def _started_again(_controller: Controller, elements: list[ArrayElement]) -> bool:
    return any(element.restarts for element in elements)


#: What an answer may show, for the record of a run.
_Shows = Callable[[Controller, list[ArrayElement]], bool]
_QUEUE: dict[str, _Shows] = {"array partly pending": _partly_pending, "element purged": _purged}
_ACCOUNTING: dict[str, _Shows] = {
    "accounting late": _late,
    "element started again": _started_again,
}


class _Submission:
    """The program `submission.SUBMIT`."""

    def __init__(
        self, node: LoginNode, variables: Mapping[str, str], place: str, name: str, token: str
    ) -> None:
        self._node = node
        self._variables = variables
        self._place = place
        self._name = name
        self._token = token

    def run(self) -> str:
        node, place = self._node, self._place
        if place not in node.folders:
            raise _Exit(SubmitExit.NO_FOLDER)
        if node.read(f"{place}/id"):
            return self._answer()
        before = self._last_attempt()
        if before and not self._is_over(before) and self._is_young(before):
            return self._wait_for_other()
        mine = before + 1
        if f"{place}/attempt.{mine}" in node.folders:
            raise _Exit(SubmitExit.WAIT)
        node.folders.add(f"{place}/attempt.{mine}")
        node.write(f"{place}/attempt.{mine}/at", str(node.time()))
        if before:
            found = self._looked_up_or_unsure(mine)
            if found:
                return self._keep(found, ours=False)
            if any(path.startswith(f"{place}/worker-") for path in node.files):
                self._give_up(mine)
                raise _Exit(SubmitExit.UNTRACEABLE)
        if self._last_attempt() != mine:
            raise _Exit(SubmitExit.WAIT)
        return self._run_sbatch(mine)

    def _wait_for_other(self) -> str:
        """Another caller runs sbatch now, or was killed."""
        try:
            found = self._look_up()
        except _Exit:
            found = ""
        if not found:
            raise _Exit(SubmitExit.WAIT)
        return self._keep(found, ours=False)

    def _looked_up_or_unsure(self, mine: int) -> str:
        try:
            return self._look_up()
        except _Exit:
            self._give_up(mine)
            raise _Exit(SubmitExit.UNSURE) from None

    def _give_up(self, attempt: int) -> None:
        self._node.write(f"{self._place}/attempt.{attempt}/over", "")

    def _run_sbatch(self, mine: int) -> str:
        code, out, error = self._node.sbatch(self._name, self._place, self._exported)
        if code == 0:
            return self._keep(out.strip(), ours=True)
        if _DOWN in error or _TIMED_OUT in error:
            raise _Exit(SubmitExit.UNSURE, error=error)
        try:
            found = self._look_up()
        except _Exit:
            raise _Exit(SubmitExit.UNSURE, error=error) from None
        if found:
            return self._keep(found, ours=False)
        self._give_up(mine)
        raise _Exit(SubmitExit.REFUSED, error=error)

    def _keep(self, made: str, *, ours: bool) -> str:
        self._node.link(f"{self._place}/id", f"{made}\n")
        if self._node.read(f"{self._place}/id").strip() != made and ours:
            self._undo(made)
        return self._answer()

    def _answer(self) -> str:
        node = self._node
        for path in [p for p in node.files if p.startswith(f"{self._place}/stray.")]:
            self._undo(path.rpartition(".")[2])
            node.files.pop(path, None)
        kept = node.read(f"{self._place}/id").strip()
        if kept == CANCELLED:
            self._undo("")
            raise _Exit(SubmitExit.CANCELLED)
        return f"{kept}\n"

    def _undo(self, made: str) -> None:
        for pause in range(3):
            self._node.pause(float(pause))
            try:
                self._node.request()
                self._node.scancel(self._variables, self._name, made)
                self._node.request()
            except _Exit:
                continue
            waiting = (ElementState.PENDING, ElementState.RUNNING)
            left = (
                str(element.array.slurm_job_id)
                for element in self._queued()
                if element.state in waiting
            )
            if not any(made in ("", slurm_job_id) for slurm_job_id in left):
                return
        if made:
            self._node.write(f"{self._place}/stray.{made}", "")
        raise _Exit(SubmitExit.UNSURE, error=f"scancel did not end array {made}")

    def _look_up(self) -> str:
        """The array's id, from the queue or the accounting; empty where Slurm has none.

        Raises:
            _Exit: if either does not answer.
        """
        node, controller = self._node, self._node.controller
        node.request()
        found = {element.array.slurm_job_id for element in self._queued()}
        if not found and controller.rules.accounting:
            node.request()
            if node.time() < controller.accounting_down_until:
                raise _Exit(1, error=_NO_DATABASE)
            records = (record[0].array for record in controller.accounted())
            found = {array.slurm_job_id for array in records if array.name == self._name}
        return str(min(found)) if found else ""

    def _queued(self) -> Iterator[ArrayElement]:
        """The elements of this name that ``squeue`` shows."""
        if not account.hides_jobs(self._variables):
            for element in self._node.controller.queue():
                if element.array.name == self._name:
                    yield element

    @property
    def _exported(self) -> dict[str, str]:
        """The environment of ``sbatch``."""
        known = self._variables
        return {name: known[name] for name in submission.EXPORTED if name in known}

    def _last_attempt(self) -> int:
        number = 0
        while f"{self._place}/attempt.{number + 1}" in self._node.folders:
            number += 1
        return number

    def _is_over(self, attempt: int) -> bool:
        return f"{self._place}/attempt.{attempt}/over" in self._node.files

    def _is_young(self, attempt: int) -> bool:
        path = f"{self._place}/attempt.{attempt}/at"
        if path not in self._node.files:
            self._node.write(path, str(self._node.time()))
        return self._node.time() - int(self._node.files[path]) <= STALE_ATTEMPT_S


class SimTransport:
    """`transport.Transport` of one process to the login node.

    Args:
        schedule: the simulated time.
        node: the login node.
        network: the connection to it.
    """

    def __init__(self, schedule: Schedule, node: LoginNode, network: Network) -> None:
        self._schedule = schedule
        self._node = node
        self._network = network

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """See `Transport.run`."""
        fault = self._network.fault_once("cluster")
        if fault == "lost_request":
            self._schedule.sleep(5.0)
            raise ServiceError("cluster: the connection broke")
        pending: SimPending[CommandResult] = SimPending(self._schedule)
        node = self._node
        # As the real transports do.
        variables = slurm_variables.cleaned(node.variables)
        self._schedule.spawn(
            node.host, lambda: pending.run(lambda: node.execute(command, stdin, variables))
        )
        if not pending.wait(timeout) or fault == "lost_reply":
            raise ServiceError("cluster: the connection broke")
        result = pending.result()
        self._network.answer(_name_of(command))
        return result

    def close(self) -> None:
        """Nothing is open."""


def _words(command: str) -> list[str]:
    """As `shlex.split`, which reads a program character by character."""
    return [
        "".join(part[1:-1] if part[0] in "'\"" else part for part in _PART.findall(word))
        for word in _WORD.findall(command)
    ]


def _name_of(command: str) -> str:
    word = command.partition(" ")[0]
    return "cluster" if word == "sh" else word


def _options(words: list[str]) -> dict[str, str]:
    """The options of ``squeue`` and ``sacct`` that the client uses, with their values."""
    found: dict[str, str] = {}
    reading: Iterator[str] = iter(words)
    for word in reading:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = value
        elif word in ("-u", "-t", "-j", "-o", "-S"):
            found[word] = next(reading)
    return found


def _chosen(element: ArrayElement, options: dict[str, str]) -> bool:
    if options.get("-u") != "$(id -un)":
        raise AssertionError(f"a query asks for the jobs of everybody, not of {ACCOUNT} alone")
    names, ids = options.get("--name"), options.get("-j")
    return (names is None or element.array.name in names.split(",")) and (
        ids is None or str(element.array.slurm_job_id) in ids.split(",")
    )


def _in_format(text: str, element: ArrayElement) -> str:
    values = {
        "%i": element.name,
        "%F": str(element.array.slurm_job_id),
        "%T": element.state.value,
        "%N": "n1" if element.state is ElementState.RUNNING else "",
        "%r": "None" if element.state is ElementState.RUNNING else "Priority",
        "%V": f"{element.array.submitted:015.3f}",
        "%j": element.array.name,
    }
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _duration(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole % 3600 // 60:02}:{whole % 60:02}"
