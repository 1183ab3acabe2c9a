"""Our errors as Airflow's: what another try may cure is retried, what it can't is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from slurm_worker.errors import ServiceError, UserError


@contextmanager
def as_airflow_failures() -> Iterator[None]:
    """Translate; a `ServiceError` is retryable even where it is a `UserError` as well."""
    try:
        yield
    except ServiceError as error:
        raise AirflowException(str(error)) from error
    except UserError as error:
        # The line says it all; what it was raised from is noise in a task's log.
        raise AirflowFailException(str(error)) from None
