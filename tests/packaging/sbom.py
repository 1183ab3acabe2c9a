"""The SBOM that ``uv export`` writes, with the version of what it is of.

    python -m tests.packaging.sbom FILE

uv leaves it out of packages of the workspace, whose version is read when they are built.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from slurm_worker import __version__

_OURS = ("airflow-slurm-provider", "slurm-worker")


def complete(sbom: dict[str, Any]) -> dict[str, Any]:
    """Name our version in an SBOM, and the ids that package managers know us by."""
    for each in (sbom["metadata"]["component"], *sbom["components"]):
        if each["name"] in _OURS:
            each["version"] = __version__
            each["purl"] = f"pkg:pypi/{each['name']}@{__version__}"
    return sbom


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(json.dumps(complete(json.loads(file.read_text())), indent=1) + "\n")
