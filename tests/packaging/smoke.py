"""What a clean environment can do with the installed wheels; run by its own interpreter.

    python -I smoke.py modules PACKAGE...    # imports every module below the packages
    python -I smoke.py dags FOLDER           # loads every DAG below the folder, as Airflow does

Standard library only, since nothing else is there that the wheels don't bring. Exits with 1
and a line per failure.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings

#: Where it is looked for at run time, an ImportError says which extra brings it.
_EXTRAS = ("duckdb", "fastapi", "jinja2", "uvicorn", "isal", "pyarrow")


def import_all(packages: list[str], optional: tuple[str, ...]) -> list[str]:
    """Import all modules; a line for each failure, except for absent `optional` packages."""
    failures = []
    for package in packages:
        found = importlib.import_module(package)
        modules = pkgutil.walk_packages(found.__path__, f"{package}.", onerror=lambda _: None)
        below = [each.name for each in modules if not each.name.endswith(".__main__")]
        names = [package, *below]
        for name in names:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] not in optional:
                    failures.append(f"{name}: {error}")
            except Exception as error:  # whatever it is, the others are tried too
                failures.append(f"{name}: {type(error).__name__}: {error}")
        print(f"{package}: {len(names)} modules")
    return failures


def load_dags(folder: str) -> list[str]:
    """Load the DAGs of a folder; lines for files that fail, or for having found none."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:
        from airflow.models.dagbag import DagBag  # Airflow 3.0 and 3.1
    bag = DagBag(folder)
    for dag_id, dag in sorted(bag.dags.items()):
        print(f"{dag_id}: {', '.join(sorted(dag.task_dict))}")
    failures = [f"{file}: {error}" for file, error in bag.import_errors.items()]
    return failures or ([] if bag.dags else [f"{folder}: holds no DAG"])


def main() -> int:
    """Do as the arguments say."""
    warnings.simplefilter("ignore")
    what, *rest = sys.argv[1:]
    failures = load_dags(rest[0]) if what == "dags" else import_all(rest, _EXTRAS)
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
