"""What all tests share: the development stack, for those marked ``stack``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings

from tests.stack.demo import read_environment
from tests.stack.settings import ROOT
from tests.stack.stack import problems
from tests.stack.state_folder import state_folder

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def stack() -> Iterator[Mapping[str, str]]:
    """The environment of the stack that is up, put into this process's own as well."""
    found = problems(state_folder(ROOT))
    if found:
        pytest.fail(f"{'; '.join(found)}: bring the stack up first (make stack-up)", pytrace=False)
    variables = read_environment()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield dict(os.environ)


@pytest.fixture(autouse=True)
def _stack_for_marked_tests(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("stack"):
        request.getfixturevalue("stack")
