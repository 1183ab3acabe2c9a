"""Slurm's job states, as ``squeue`` and ``sacct`` print them.

Source: SchedMD, "Job State Codes" (job_state_codes.html). A flag is printed instead of the base
state. A state that this release doesn't know counts as alive, with one warning.
"""

from __future__ import annotations

import logging
from enum import Enum
from functools import lru_cache

from slurm_worker.errors import ErrorClass

log = logging.getLogger(__name__)


class ElementState(str, Enum):
    """State of one array element."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    REVOKED = "REVOKED"
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    EXPEDITING = "EXPEDITING"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    POWER_UP_NODE = "POWER_UP_NODE"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SIGNALING = "SIGNALING"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    UPDATE_DB = "UPDATE_DB"
    UNKNOWN = "UNKNOWN"  #: a state that this release doesn't know; counts as alive

    @property
    def terminal(self) -> bool:
        """Whether the element will not run again by itself."""
        return self in _TERMINAL

    @property
    def error_class(self) -> ErrorClass | None:
        """Why the element's worker died; None where the state is not a failure."""
        return _ERROR_CLASSES.get(self)


_ERROR_CLASSES = {
    ElementState.OUT_OF_MEMORY: ErrorClass.OUT_OF_MEMORY,
    ElementState.TIMEOUT: ErrorClass.WALLTIME,
    ElementState.DEADLINE: ErrorClass.WALLTIME,
    ElementState.PREEMPTED: ErrorClass.PREEMPTED,
    ElementState.REQUEUED: ErrorClass.PREEMPTED,
    ElementState.NODE_FAIL: ErrorClass.NODE_FAILURE,
    ElementState.BOOT_FAIL: ErrorClass.NODE_FAILURE,
    ElementState.CANCELLED: ErrorClass.CANCELLED,
    ElementState.FAILED: ErrorClass.WORKER_CRASH,
}

#: A requeued element's start has failed, and the element will run again.
_TERMINAL = {*_ERROR_CLASSES, ElementState.COMPLETED, ElementState.REVOKED} - {
    ElementState.REQUEUED
}


@lru_cache(maxsize=256)
def parse_state(text: str) -> ElementState:
    """The state in ``RUNNING``, ``CANCELLED by 1001`` or ``OUT_OF_ME+``."""
    word, cut, _ = text.strip().split(" ")[0].upper().partition("+")
    if word in ElementState.__members__:
        return ElementState(word)
    found = [state for state in ElementState if cut and state.value.startswith(word)]
    if len(found) == 1:
        return found[0]
    # The cache makes this one warning per word.
    log.warning("Slurm printed an unknown state: %r; it counts as alive", text)
    return ElementState.UNKNOWN
