"""Check the prose of files, or of all files of the checkout: `python -m tests.prose [FILE...]`."""

import subprocess
import sys
from pathlib import Path

from tests.prose.reading import passages
from tests.prose.rules import problems

#: Of others, and tests that quote messages or hold bad examples.
SKIPPED = (
    "airflow_slurm_provider/dashboard/static/vendor/",
    "tests/e2e/",
    "tests/integration/",
    "tests/unit/",
)


def main(names: list[str]) -> int:
    """Print a line for each problem; return 1 if there are any."""
    found = 0
    for name in names or _files():
        for passage in passages(Path(name)):
            for line, problem in problems(passage):
                print(f"{name}:{line}: {problem}")
                found += 1
    if found:
        print(f"{found} problems; the words are in tests/prose/words.yaml", file=sys.stderr)
    return 1 if found else 0


def _files() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.splitlines() if not name.startswith(SKIPPED)]
    return [name for name in names if Path(name).is_file()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
