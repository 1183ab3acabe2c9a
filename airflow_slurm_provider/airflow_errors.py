"""Our errors and messages as Airflow's.

Airflow retries an error only if another try may succeed. A task's log shows control characters
of items, handlers and Slurm as escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.printable import printable_lines


def task_log(operator: Any) -> Callable[[str], None]:
    """Write lines to the log of a task, sensor or trigger."""
    return lambda text: operator.log.info("%s", printable_lines(text))


@contextmanager
def as_airflow_failures() -> Iterator[None]:
    """Translate; a `ServiceError` is retryable even where it is a `UserError` as well."""
    try:
        yield
    except ServiceError as error:
        raise AirflowException(str(error)) from error
    except UserError as error:
        # The message is complete; its cause would be noise in a task's log.
        raise AirflowFailException(str(error)) from None
