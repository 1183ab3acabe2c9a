"""uv, the archives, and clean environments with what is installed from them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.stack.settings import ROOT

SMOKE = Path(__file__).with_name("smoke.py")
PACKAGES = ("slurm_worker", "airflow_slurm_provider")


class Failed(Exception):
    """A command failed; holds the end of its output."""


def uv() -> str:
    """The program that `make setup` has found or installed.

    Raises:
        Failed: if it has not run.
    """
    found = shutil.which("uv") or shutil.which("uv", path=ROOT / ".stack" / "tools" / "bin")
    if found is None:
        raise Failed("uv: is neither on PATH nor in .stack/tools; run make setup")
    return found


def run(
    *words: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    """Run a command; what it wrote to stdout.

    Raises:
        Failed: if it did not exit with 0.
    """
    ended = subprocess.run(
        [str(each) for each in words],
        cwd=cwd,
        env={**os.environ, "PATH": _path(), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        said = "\n".join((ended.stdout + ended.stderr).splitlines()[-30:])
        raise Failed(f"{' '.join(map(str, words))} ended with {ended.returncode}:\n{said}")
    return ended.stdout


def _path() -> str:
    """PATH, with the interpreters that pyenv keeps: its shims answer for one of them alone."""
    kept = sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin"))
    return os.pathsep.join([*map(str, kept), os.environ.get("PATH", os.defpath)])


def build(folder: Path) -> None:
    """Build sdists and wheels of both distributions, with the hatchling of this environment."""
    run(
        *(uv(), "build", "--quiet", "--all-packages", "--no-build-isolation"),
        *("--python", sys.executable, "--out-dir", folder),
        cwd=ROOT,
    )


def wheel(folder: Path, package: str) -> Path:
    """The one wheel of a package."""
    (found,) = folder.glob(f"{package}-*.whl")
    return found


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment of its own.

    Args:
        folder: where it is.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, python: str = sys.executable) -> Environment:
        """A new one with nothing in it."""
        run(uv(), "venv", "--quiet", "--clear", "--python", python, folder)
        return cls(folder)

    def install(self, *words: str | Path, cwd: Path | None = None) -> None:
        """``uv pip install``."""
        run(*self._pip("install", "--quiet"), *words, cwd=cwd)

    def check(self) -> None:
        """``pip check``: whether what is installed is content with each other."""
        run(*self._pip("check"))

    def versions(self) -> dict[str, str]:
        """What is installed; an address in the place of a version where it comes from a file."""
        lines = run(*self._pip("freeze")).splitlines()
        return dict(re.split("==| @ ", each, maxsplit=1) for each in lines)

    def run(self, program: str, *words: str | Path) -> str:
        """Run a program of the environment, away from the checkout and its packages."""
        home = self.folder / "airflow"
        home.mkdir(exist_ok=True)
        settings = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        return run(self.folder / "bin" / program, *words, cwd=home, environment=settings)

    def _pip(self, verb: str, *options: str) -> Sequence[str | Path]:
        return (uv(), "pip", verb, *options, "--python", self.folder / "bin" / "python")
