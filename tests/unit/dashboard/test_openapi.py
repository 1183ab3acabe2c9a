"""The OpenAPI document is true: nothing that follows it, or breaks it, ends in an error of ours."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from airflow_slurm_provider.dashboard.auth import CSRF_COOKIE
from tests.unit.dashboard.conftest import SAME_ORIGIN, TOKEN, Dash

EXAMPLES = 12
CHECKS = [
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
    content_type_conformance,
]


def operations(dash: Dash) -> list[Any]:
    """Every operation of the document that the application gives, mostly about a job there is."""
    document = dash.json("/api/openapi.json")
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "job":
                    parameter["schema"] = {"type": "string", "enum": ["job-1", "nothing"]}
    schema = schemathesis.openapi.from_dict(document)
    schema.app = dash.app
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_ends_in_an_internal_error(done: Dash, mode: GenerationMode) -> None:
    found = operations(done)
    assert len(found) == 19
    for operation in found:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call(headers=SAME_ORIGIN, cookies={CSRF_COOKIE: TOKEN})
            case.validate_response(answer, checks=CHECKS)

        ask()


@pytest.mark.parametrize("job", ["job-1", "nothing"])
def test_a_service_that_is_away_never_ends_in_an_internal_error(done: Dash, job: str) -> None:
    for operation in operations(done):
        path = operation.path.format(job=job, task="000-00000000")
        body = {"workers": 1} if path.endswith("/workers") else {}
        for away in ("rows", "objects", "slurm"):
            done.forget_answers()
            for name in ("rows", "objects", "slurm"):
                getattr(done, name).away = name == away
            answer = done.get(path) if operation.method == "get" else done.post(path, body)
            assert answer.status_code < 500 or answer.status_code == 503, (path, away)
