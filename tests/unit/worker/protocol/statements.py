"""One statement of each function that makes them, with values of the right types."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType

from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import TaskId, TaskState
from slurm_worker.protocol.ports import Statement
from slurm_worker.protocol.statements import jobs, tasks
from slurm_worker.protocol.task_history import Crash, HistoryEntry, TaskEvent
from slurm_worker.rate_limits import statements as limit_statements

_ENTRY = HistoryEntry(1, TaskEvent.STOLEN, "w2", "w1")
_SAMPLES: dict[str, object] = {
    "int": 1,
    "str": "a",
    "bool": True,
    "TaskState": TaskState.FAILED,
    "ErrorClass": ErrorClass.NETWORK,
    "Crash": Crash(ErrorClass.TIMEOUT, 3),
    "HistoryEntry": _ENTRY,
    "Marker": Marker("j", TaskId("000-00000001"), 1, "w1", 5, 5, 5),
    "Sequence[HistoryEntry]": [_ENTRY],
    "Sequence[str]": ["1"],
    "Mapping[str, int]": {"a": 1},
}


def _functions(module: ModuleType) -> Iterator[Callable[..., Statement]]:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        own = function.__module__ == module.__name__ and not name.startswith("_")
        if own and inspect.signature(function).return_annotation == "Statement":
            yield function


def _made(function: Callable[..., Statement]) -> Statement:
    values = {
        name: _SAMPLES[str(parameter.annotation)]
        for name, parameter in inspect.signature(function).parameters.items()
    }
    return function(**values)


STATEMENTS = [
    _made(function) for module in (tasks, jobs, limit_statements) for function in _functions(module)
]
