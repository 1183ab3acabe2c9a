"""A site's settings are refused in one line, in the YAML's own words."""

from __future__ import annotations

import pytest

from airflow_slurm_provider.coordinator.spec.site import parse_cluster, parse_site
from slurm_worker.errors import UserError
from tests.unit.coordinator.fakes import SITE


@pytest.mark.parametrize("folder", ["$HOME/x", "${SCRATCH}/x", "~", "~/", "~lab/x"])
def test_a_remote_folder_that_a_shell_must_expand_is_refused(folder: str) -> None:
    with pytest.raises(UserError) as found:
        parse_site({**SITE, "cluster": {**SITE["cluster"], "remote_dir": folder}}, "site.yaml")
    assert str(found.value).startswith(f"site.yaml: cluster.remote_dir: {folder!r} contains")


@pytest.mark.parametrize("folder", [".airflow-slurm", "~/x", "/scratch/me/a $b", "a~b"])
def test_other_remote_folders_are_accepted(folder: str) -> None:
    assert parse_cluster({"host": "login", "remote_dir": folder}, "site").remote_dir == folder
