"""The user of a chaos round: runs `slurmctl`, has it killed at random moments, and runs it again.

A command is a real process. It is killed by SIGKILL at a moment that the seed chooses, within the
time that the same command took before. Then the user repeats it until it succeeds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from airflow_slurm_provider.cli.app import ExitCode
from tests.chaos.faults.tally import Tally

_SLURMCTL = Path(sys.executable).with_name("slurmctl")
_FIRST_GUESS_S = 3.0
_PAUSE_S = 1.0
_KILL_TRIES = 3
_LONGEST_S = 150.0
_DEADLINE_S = 300.0


class Verb(str, Enum):
    """A command that is killed."""

    SUBMIT = "submit"
    PAUSE = "pause"
    RESUME = "resume"
    WORKERS = "workers"
    RETRY = "retry"
    AGGREGATE = "aggregate"
    CANCEL = "cancel"

    @property
    def killed(self) -> str:
        """The kind of fault, as it is counted."""
        return f"slurmctl {self.value} killed"


#: Commands that two users may run at once.
_TWICE = (Verb.SUBMIT, Verb.RESUME, Verb.RETRY, Verb.AGGREGATE, Verb.CANCEL)


class UserGaveUpError(Exception):
    """A command did not succeed in time, however often it was repeated."""


@dataclass
class User:
    """Runs commands, one after the other.

    Args:
        environment: of the commands; it names the site file.
        rng: chooses the moments.
        tally: counts the kills.
        say: called with a line for each kill.
    """

    environment: Mapping[str, str]
    rng: random.Random
    tally: Tally
    say: Callable[[str], None]
    #: What a command said that it must not say; the round fails with it.
    problems: list[str] = field(default_factory=list)
    #: Commands by how they ended.
    ended: Counter[str] = field(default_factory=Counter)
    _took: dict[str, float] = field(default_factory=dict)
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(
        self, verb: Verb, *arguments: str | Path, kills: int = 0, also: Collection[int] = ()
    ) -> dict[str, Any]:
        """Run a command, killed so often first; the document that it prints in the end.

        After the kills, a second user runs the same command at the same time, where two may.
        `also` has exit codes that are as good as success. The document is empty then.

        Raises:
            UserGaveUpError: if it does not succeed.
        """
        for _ in range(kills):
            # It may be quicker than the moment of its death.
            for _ in range(_KILL_TRIES):
                if self._kill(verb, arguments):
                    break
        beside = self._start(verb, arguments) if kills and verb in _TWICE else None
        try:
            return self._repeat(verb, arguments, also)
        finally:
            if beside is not None:
                code, _, err = self._finish(beside)
                self.ended[f"{verb.value} {code}"] += 1
                self._judge(verb, code, err, also)

    def close(self) -> None:
        """End commands that still run."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _repeat(
        self, verb: Verb, arguments: tuple[str | Path, ...], also: Collection[int]
    ) -> dict[str, Any]:
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            began = time.monotonic()
            code, out, err = self._finish(self._start(verb, arguments))
            self.ended[f"{verb.value} {code}"] += 1
            self._judge(verb, code, err, also)
            if code == ExitCode.OK:
                self._took[verb] = time.monotonic() - began
                document: dict[str, Any] = json.loads(out)
                return document
            if code in also:
                return {}
            self.say(f"slurmctl {verb.value} ended with {code}: {err.strip()[-300:]}")
            if time.monotonic() > deadline:
                raise UserGaveUpError(f"slurmctl {verb.value} ended with {code}: {err[-500:]}")
            time.sleep(_PAUSE_S)

    def _kill(self, verb: Verb, arguments: tuple[str | Path, ...]) -> bool:
        after_s = self.rng.uniform(0.2, 1.0) * self._took.get(verb, _FIRST_GUESS_S)
        process = self._start(verb, arguments)
        try:
            process.wait(timeout=after_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        code, _, err = self._finish(process)
        self.ended[f"{verb.value} {code}"] += 1
        if code == -signal.SIGKILL:
            self.tally.add(verb.killed, after=round(after_s, 2))
            self.say(f"{verb.killed} after {after_s:.1f} s")
            return True
        # It was quicker, as on a machine that was busy before.
        self._took[verb] = 0.7 * self._took.get(verb, _FIRST_GUESS_S)
        self._judge(verb, code, err, (ExitCode.USER_ERROR,) if verb is Verb.WORKERS else ())
        return False

    def _judge(self, verb: Verb, code: int, err: str, also: Collection[int]) -> None:
        """Only services fail here, so nothing may blame the user or be a bug."""
        if code not in (ExitCode.OK, ExitCode.SERVICE_ERROR, *also) or "Traceback" in err:
            self.problems.append(f"slurmctl {verb.value} ended with {code}: {err[-1500:]}")

    def _start(self, verb: Verb, arguments: tuple[str | Path, ...]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(_SLURMCTL), verb.value, *map(str, arguments), "--json"],
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def _finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        try:
            out, err = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            err += f"\nit did not end in {_LONGEST_S:.0f} s"
            return ExitCode.BUG, out, err
        return process.returncode, out, err
