"""The conditional updates of the table, one function each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.keys import JobState, SubmitState, TaskState
from slurm_worker.protocol.ports import Statement, Value

_VALUE = re.compile(r":(\w+)")
#: Values that are the same in all texts. Jobs and rounds have the same names of states.
_FIXED: dict[str, Value] = {
    state.value: state.value for states in (TaskState, JobState, SubmitState) for state in states
}
_FIXED |= {"crashed": ErrorClass.WORKER_CRASH.value, "yes": True, "zero": 0, "one": 1, "none": []}


def statement(name: str, update: str, condition: str, values: Mapping[str, Value]) -> Statement:
    """A statement with these values, and with the fixed ones that its texts use."""
    used = _FIXED.keys() & _VALUE.findall(f"{update} {condition}")
    return Statement(name, update, condition, {**{n: _FIXED[n] for n in used}, **values})
