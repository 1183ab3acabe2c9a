"""What handlers and Slurm say reaches a task's log without its control characters."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.operators.deferral import progress_of
from slurm_worker.errors import UserError
from tests.unit.worker.test_printable import HOSTILE, is_visible


class Operator:
    log = logging.getLogger("task")


def test_a_line_in_a_tasks_log_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        task_log(Operator())(f"100 % {HOSTILE}")
    assert caplog.messages[0].startswith(r"100 % a\x1b[2J")
    assert is_visible(caplog.messages[0])


@pytest.mark.parametrize("event", [{"status": "stalled", "message": HOSTILE}, {HOSTILE: 1}, None])
def test_why_a_task_fails_is_shown(event: Any) -> None:
    with pytest.raises(AirflowException) as caught:
        progress_of(event)
    assert is_visible(str(caught.value))


def test_an_error_of_ours_is_shown() -> None:
    with pytest.raises(AirflowFailException) as caught, as_airflow_failures():
        raise UserError(HOSTILE)
    assert is_visible(str(caught.value))
