"""Option, then environment, then file: which site a command works with."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.options import site_file
from slurm_worker.errors import UserError
from tests.unit.cli.conftest import Cli

OPTION, BY_ENVIRONMENT = "/o.yaml", {"SLURMCTL_CONFIG": "/e.yaml"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`~/.config/slurmctl` with three profiles."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config" / "slurmctl"
    folder.mkdir(parents=True)
    for name in ("site", "lab", "cloud"):
        (folder / f"{name}.yaml").write_text("")
    return folder


@pytest.mark.parametrize(
    ("site", "profile", "environment", "expected"),
    [
        (OPTION, None, {**BY_ENVIRONMENT, "SLURMCTL_PROFILE": "lab"}, OPTION),
        (None, "cloud", {**BY_ENVIRONMENT, "SLURMCTL_PROFILE": "lab"}, "cloud.yaml"),
        (None, None, {**BY_ENVIRONMENT, "SLURMCTL_PROFILE": "lab"}, "/e.yaml"),
        (None, None, {"SLURMCTL_PROFILE": "lab"}, "lab.yaml"),
        (None, None, {"SLURMCTL_PROFILE": "", "SLURMCTL_CONFIG": ""}, "site.yaml"),
        (None, None, {}, "site.yaml"),
    ],
)
def test_options_come_before_the_environment_and_the_environment_before_the_default(
    folder: Path,
    site: str | None,
    profile: str | None,
    environment: dict[str, str],
    expected: str,
) -> None:
    assert site_file(site, profile, environment) == folder / expected


def test_an_unknown_profile_is_refused_with_the_existing_ones(folder: Path) -> None:
    with pytest.raises(UserError) as told:
        site_file(None, "lap", {})
    assert str(told.value) == (
        "--profile: there is no profile 'lap' in ~/.config/slurmctl; did you mean 'lab'? it has "
        "cloud, lab, site"
    )
    with pytest.raises(UserError, match=r"SLURMCTL_PROFILE: there is no profile '\.\./lab'"):
        site_file(None, None, {"SLURMCTL_PROFILE": "../lab"})


def test_an_unknown_profile_without_any_existing_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="it has none yet"):
        site_file(None, "lab", {})


def test_site_and_profile_exclude_each_other(cli: Cli) -> None:
    ended = cli("status", "job-1", "--site", "a.yaml", "--profile", "lab")
    assert ended.code == ExitCode.USER_ERROR
    assert "give only one" in ended.err


def test_a_command_works_with_the_profile_that_it_is_given(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "lab.yaml").write_text("storage: {table: t}\n")
    ended = cli("status", "job-1", "--profile", "lab")
    assert ended.code == ExitCode.USER_ERROR
    assert f"{folder / 'lab.yaml'}: storage.prefix: is missing" in ended.err
