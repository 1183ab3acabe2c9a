"""What the dashboard needs beside code is in the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_pages_scripts_and_the_chart_library_with_its_licence_are_in_the_wheel(
    tmp_path: Path,
) -> None:
    program = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = resources.files("airflow_slurm_provider.dashboard")
    wanted = [
        str(file.relative_to(ROOT))
        for folder in ("templates", "static")
        for file in Path(str(package.joinpath(folder))).rglob("*")
        if file.is_file()
    ]
    assert {"job.html", "uPlot.iife.min.js", "uPlot.LICENSE"} <= {
        Path(each).name for each in wanted
    }
    assert set(wanted) <= names
