"""`make packages`: install the wheels in clean environments, and see that they work there.

    python -m tests.packaging                       # all of it, one after the other
    python -m tests.packaging --only lowest         # those whose name has this in it

| environment | installs | is asked for |
| --- | --- | --- |
| worker-PYTHON | the worker's wheel alone | no Airflow, its version, every module |
| python-PYTHON | both, with the newest for this Python | modules, `slurmctl`, provider, DAGs |
| airflow-VERSION | both, with the newest of this Airflow | the same |
| lowest | the lowest release of each thing that the wheels name | the same, and unit tests |

Airflow's own constraints are not used: what a user gets without them should work too. Prints a
line for each environment; exits with 1 where one fails.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.packaging.tools import PACKAGES, SMOKE, Environment, Failed, build, wheel
from tests.stack.settings import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
AIRFLOWS = ("3.0", "3.1", "3.2", "3.3")
#: Which all of these releases of Airflow take.
_AIRFLOWS_PYTHON = "3.12"
_LOWEST_PYTHON = "3.11"
_EXTRAS = ("aggregate", "dashboard", "sort")
#: What the unit tests below need beside the wheels.
_TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "jsonschema", "moto[dynamodb,s3]")
#: A walk through all layers; what only newer releases of Airflow have is tested with those.
_UNIT_TESTS = (
    "tests/unit/airflow/test_operators.py",
    "tests/unit/airflow/test_slurm_map.py",
    "tests/unit/worker/aggregate",
    "tests/unit/cli/test_commands.py",
    "tests/unit/coordinator/test_api.py",
    "tests/unit/slurm/test_script.py",
    "tests/unit/worker/node/test_worker.py",
)
_SHOWN = ("apache-airflow", "boto3", "pyarrow", "pydantic")


@dataclass(frozen=True, slots=True)
class Case:
    """An environment to try.

    Args:
        name: stable, for ``--only``.
        try_in: installs and asks, given the folder of the archives and one of its own; returns
            what is worth telling.
    """

    name: str
    try_in: Callable[[Path, Path], str]


def cases() -> Iterator[Case]:
    """All environments."""
    for python in PYTHONS:
        yield Case(f"worker-{python}", lambda dist, at, python=python: _worker(dist, at, python))
        yield Case(f"python-{python}", lambda dist, at, python=python: _newest(dist, at, python))
    for airflow in AIRFLOWS:
        yield Case(
            f"airflow-{airflow}",
            lambda dist, at, airflow=airflow: _newest(
                dist, at, _AIRFLOWS_PYTHON, f"apache-airflow=={airflow}.*"
            ),
        )
    yield Case("lowest", _lowest)


def _worker(dist: Path, folder: Path, python: str) -> str:
    alone = Environment.create(folder, python)
    alone.install(wheel(dist, "slurm_worker"))
    alone.check()
    if any("airflow" in each for each in alone.versions()):
        raise Failed("the worker's wheel brings Airflow")
    alone.run("python", "-m", "slurm_worker", "--help")
    said = alone.run("python", "-I", SMOKE, "modules", "slurm_worker")
    return f"{alone.run('slurm-worker', '--version').strip()}, {said.strip()}"


def _newest(dist: Path, folder: Path, python: str, *more: str) -> str:
    both = Environment.create(folder, python)
    both.install(*more, *_with_extras(dist))
    return _ask(both)


def _lowest(dist: Path, folder: Path) -> str:
    both = Environment.create(folder, _LOWEST_PYTHON)
    # Only what is named in the files themselves is taken at its lowest.
    extras = [word for extra in _EXTRAS for word in ("--extra", extra)]
    both.install(
        *("--resolution", "lowest-direct", "--no-sources", "--find-links", dist),
        *("-r", "pyproject.toml", *extras, "-r", "worker/pyproject.toml"),
        cwd=ROOT,
    )
    both.install("--no-deps", *(wheel(dist, each) for each in PACKAGES))
    said = _ask(both)
    both.install(*_TEST_TOOLS)
    return f"{said}; {_unit_tests(both, folder)}"


def _with_extras(dist: Path) -> list[str]:
    extras = {"slurm_worker": "aggregate,sort", "airflow_slurm_provider": ",".join(_EXTRAS)}
    return [
        f"{each.replace('_', '-')}[{extras[each]}] @ {wheel(dist, each).resolve().as_uri()}"
        for each in PACKAGES
    ]


def _ask(both: Environment) -> str:
    """Everything that both wheels together must be able to do."""
    both.check()
    said = both.run("python", "-I", SMOKE, "modules", *PACKAGES)
    modules = sum(
        int(line.split()[1])
        for line in said.splitlines()
        if line.partition(":")[0] in PACKAGES and line.endswith(" modules")
    )
    both.run("slurmctl", "--version")
    both.run("slurmctl", "--help")
    if "airflow-slurm-provider" not in both.run("airflow", "providers", "list", "-o", "plain"):
        raise Failed("airflow providers list doesn't know airflow-slurm-provider")
    both.run("python", "-I", SMOKE, "dags", ROOT / "example_dags")
    versions = both.versions()
    shown = ", ".join(f"{name} {versions.get(name, '?')}" for name in _SHOWN)
    return f"{shown}; {modules} modules, the provider and the example DAGs"


def _unit_tests(both: Environment, folder: Path) -> str:
    """Run unit tests against what is installed, beside a copy of what they read."""
    copy = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for each in ("tests", "docs", "example_dags"):
        shutil.copytree(ROOT / each, copy / each, ignore=ignored)
    for each in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / each, copy)
    said = both.run(
        *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", copy),
        *(copy / each for each in _UNIT_TESTS),
    )
    return said.splitlines()[-1]


def main() -> int:
    """Do as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.packaging", description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names of what is tried")
    wanted = parser.parse_args().only
    failed = 0
    with tempfile.TemporaryDirectory(prefix="airflow-slurm-packages-") as name:
        folder = Path(name)
        build(folder / "dist")
        for case in cases():
            if wanted not in case.name:
                continue
            start = time.monotonic()
            try:
                found = case.try_in(folder / "dist", folder / case.name)
            except Failed as error:
                failed += 1
                found = f"FAILED: {error}"
            shutil.rmtree(folder / case.name, ignore_errors=True)
            print(f"{case.name:13} {time.monotonic() - start:4.0f} s  {found}", flush=True)
    print("failed" if failed else "all packages work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
