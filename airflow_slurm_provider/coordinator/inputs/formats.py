"""The formats of an input's files, by the names of the files or by `input.format`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path, PurePosixPath

from airflow_slurm_provider.coordinator.inputs.files import InputFiles
from airflow_slurm_provider.coordinator.inputs.finding import MANIFEST
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from slurm_worker.errors import UserError


class InputFormat(str, Enum):
    """The formats of an input file."""

    PARQUET = "parquet"
    ARROW = "arrow"  #: Arrow IPC, as a file (also called Feather) or a stream
    CSV = "csv"
    JSONL = "jsonl"
    JSON = "json"  #: an array of objects, or objects one after another

    @property
    def is_arrow(self) -> bool:
        """Whether its columns have types."""
        return self in (InputFormat.PARQUET, InputFormat.ARROW)


_BY_NAME = {form.value: form for form in InputFormat}
_BY_SUFFIX = {
    **_BY_NAME,
    "tsv": InputFormat.CSV,
    "ndjson": InputFormat.JSONL,
    "feather": InputFormat.ARROW,
    "ipc": InputFormat.ARROW,
}
_FORMATS = ", ".join(_BY_NAME)
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def format_of(spec: InputSection, files: InputFiles) -> InputFormat:
    """The format of all files of an input.

    Raises:
        UserError: if a file has an unknown or another format.
    """
    form = input_format(spec)
    if spec.format is not None and form is not None:
        return form
    for file in files:
        found = by_suffix(file.name)
        if found is None and len(file.found.parts) == files.count == 1:
            raise _no_format(file.name)
        form = form or found
        if found is not form or form is None:
            kind = form.value if form else "data"
            raise UserError(
                f"input.path: {spec.source} contains {file.name}, which is not a {kind} file; "
                "move it out of the folder, or set input.format"
            )
    assert form is not None, "there is at least one file"
    return form


def input_format(spec: InputSection) -> InputFormat | None:
    """The format by `input.format` or the path's suffix; None if the files' suffixes decide."""
    if spec.format is not None:
        found = _BY_NAME.get(_plain(spec.format))
        if found is None:
            raise UserError(f"input.format: {spec.format!r} is not a format; use {_FORMATS}")
        return found
    forms = {_by_path(path) for path in spec.paths}
    return forms.pop() if len(forms) == 1 else None


def by_suffix(path: str) -> InputFormat | None:
    """The format that a file's name shows."""
    return _BY_SUFFIX.get(PurePosixPath(_plain(path)).suffix[1:])


def _by_path(path: str) -> InputFormat | None:
    if PurePosixPath(path).name == MANIFEST:
        return None
    found = by_suffix(path)
    if (
        found is None
        and Path(path.rstrip("/")).suffix not in ("", ".*")
        and not Path(path).is_dir()
    ):
        raise _no_format(path)
    return found


def _plain(name: str) -> str:
    """A name in lower case, without the suffix of a compression."""
    name = name.lower()
    return next((name.removesuffix(each) for each in _COMPRESSED if name.endswith(each)), name)


def _no_format(path: str) -> UserError:
    return UserError(
        f"input.path: the suffix of {path} is not a known format; set input.format to one of "
        f"{_FORMATS}"
    )
