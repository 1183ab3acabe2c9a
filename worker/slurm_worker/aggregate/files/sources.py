"""The files that are merged without a job: each once, and what is left out is counted.

A file that is named twice, or also found through a link, is read once. Names that begin with a dot
or an underscore belong to other programs (`.ipynb_checkpoints`, `_temporary`), so they are left out
below a folder, as Spark, pyarrow and Polars do.

Requests: per path on S3 one HEAD and one LIST per thousand keys; per pass a GET per object.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from slurm_worker.aggregate.errors import AggregationError, one_line
from slurm_worker.aggregate.files.database import SIDE_FILES, copy_database
from slurm_worker.errors import UserError
from slurm_worker.printable import printable
from slurm_worker.protocol.ports import ObjectStore

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
DATABASES = (".sqlite", ".sqlite3", ".db")
_HIDDEN = (".", "_")
#: How many names of left-out files are shown for each reason.
_EXAMPLES = 3

OpenFile = Callable[[], AbstractContextManager[Path]]


@dataclass(frozen=True, slots=True)
class Source:
    """One file; `open` brings it to local disk while it is read."""

    name: str  #: for messages, printable
    size: int  #: bytes
    is_database: bool  #: whether it is SQLite, whose local file is a private copy
    is_gzip: bool  #: whether it is compressed with gzip
    open: OpenFile  #: gives the local file, with those beside it that SQLite needs


@dataclass(slots=True)
class LeftOut:
    """What is not merged, by the reason: a suffix, "hidden" or "named twice"."""

    files: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, why: str, name: str) -> None:
        """Count one file, or one folder that was not searched."""
        self.files[why] += 1
        if self.files[why] <= _EXAMPLES:
            self.examples[why].append(printable(name))

    def __str__(self) -> str:
        return ", ".join(
            f"{self.files[why]:,} {why} ({', '.join(names)}"
            f"{', …' if self.files[why] > len(names) else ''})"
            for why, names in sorted(self.examples.items())
        )

    def to_list(self) -> list[dict[str, Any]]:
        """JSON-able; the names are stable."""
        found = sorted(self.examples.items())
        return [{"why": why, "files": self.files[why], "examples": names} for why, names in found]


class Sources:
    """Finds files and remembers what it has found.

    `scratch`, on local disk, has room for the largest database and the largest file of S3.
    """

    def __init__(self, scratch: Path) -> None:
        self.found: list[Source] = []
        self.left_out = LeftOut()
        self._scratch = scratch
        self._seen: set[tuple[object, ...]] = set()

    def add_local(self, path: Path, output: Path | None = None) -> None:
        """Add the file, or the files below the folder, in order of their names.

        The dataset's folder, `output`, is left out.

        Raises:
            UserError: if the path does not exist, or has no file of a known form.
            AggregationError: if a file or folder can't be read.
        """
        before = self._count()
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError as error:
            raise UserError(
                f"PATH: {printable(str(path))} does not exist; name files, or folders that hold "
                "files"
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error
        if is_folder:
            for file in sorted(self._walk(path, output)):
                self._add_file(file)
        elif is_known(path.name):
            self._add_file(path)
        self._check_found(before, str(path))

    def add_stored(
        self, objects: ObjectStore, bucket: str, key: str, output: str | None = None
    ) -> None:
        """Add the object of this key, or else those of the folder of this name.

        A folder's name may end in a slash. The dataset's folder, `output`, is left out.

        Raises:
            UserError: if there is no such object or folder, or no object of a known form.
        """
        before = self._count()
        size = objects.size(key) if is_known(key) else None
        if size is not None:
            chosen, listed = [key], {key: size}
            for side in (key + end for end in SIDE_FILES if is_database(key)):
                if (size := objects.size(side)) is not None:
                    listed[side] = size
        else:
            folder = key if key.endswith("/") or not key else f"{key}/"
            listed = {entry.key: entry.size for entry in objects.entries(folder)}
            chosen = [
                name
                for name in listed
                if not name.endswith("/")
                and not (output and name.startswith(output))
                and self._takes(name, name.removeprefix(folder), listed)
            ]
        for name in chosen:
            ends = [end for end in SIDE_FILES if is_database(name) and name + end in listed]
            opened = partial(_fetched, objects, name, ends, self._scratch)
            self._add((bucket, name), f"s3://{bucket}/{name}", listed[name], opened)
        self._check_found(before, f"s3://{bucket}/{key}")

    def _walk(self, top: Path, output: Path | None) -> Iterator[Path]:
        """The files below a folder, through links as well, without the hidden ones."""
        visited = {path.resolve() for path in (top, output) if path is not None}

        def refuse(error: OSError) -> None:
            raise unreadable(error.filename, error) from error

        for parent, folders, files in os.walk(top, onerror=refuse, followlinks=True):
            folder = Path(parent)
            folders[:] = [name for name in sorted(folders) if self._enters(folder, name, visited)]
            yield from (folder / file for file in sorted(files) if self._takes(file, file, files))

    def _enters(self, folder: Path, name: str, visited: set[Path]) -> bool:
        path = (folder / name).resolve()
        if name.startswith(_HIDDEN):
            self.left_out.add("hidden", f"{name}/")
        elif path not in visited:
            visited.add(path)
            return True
        return False

    def _takes(self, name: str, below: str, others: Collection[str]) -> bool:
        """Whether a file is merged; else it is counted, unless it is part of another file.

        `below` is its name below the folder that the user has named, `others` all names there.
        """
        known = is_known(name)
        if any(part.startswith(_HIDDEN) for part in below.split("/")):
            if known:
                self.left_out.add("hidden", below)
            return False
        # SQLite keeps these beside a database of the folder.
        ends = [end for end in (*SIDE_FILES, "-shm") if name.endswith(end)]
        if not known and not any(name.removesuffix(end) in others for end in ends):
            path = PurePosixPath(name)
            self.left_out.add(printable(path.suffix.lower()) or "without a suffix", path.name)
        return known

    def _add_file(self, path: Path) -> None:
        try:
            found = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        if not stat.S_ISREG(found.st_mode):
            raise UserError(
                f"PATH: {printable(str(path))} is not a regular file; write its content to a file "
                "first"
            )
        opened = partial(_local, path, self._scratch, is_database(path.name))
        self._add((found.st_dev, found.st_ino), str(path), found.st_size, opened)

    def _add(self, identity: tuple[object, ...], name: str, size: int, opened: OpenFile) -> None:
        if identity in self._seen:
            self.left_out.add("named twice", name)
            return
        self._seen.add(identity)
        is_gzip = name.lower().endswith(".gz")
        self.found.append(Source(printable(name), size, is_database(name), is_gzip, opened))

    def _count(self) -> int:
        return len(self.found) + self.left_out.files["named twice"]

    def _check_found(self, before: int, where: str) -> None:
        if self._count() == before:
            rest = f"; it has {self.left_out}" if self.left_out.files.total() else ""
            raise UserError(
                f"PATH: {printable(where)} has no file that ends in "
                f"{', '.join((*LINES, *DATABASES))}{rest}"
            )


def is_known(name: str) -> bool:
    """Whether a file's name says that it holds JSON lines or an SQLite database."""
    return name.lower().endswith((*LINES, *DATABASES))


def is_database(name: str) -> bool:
    """Whether a file's name says that it is SQLite."""
    return name.lower().endswith(DATABASES)


@contextmanager
def _local(path: Path, scratch: Path, is_copied: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="copied-", dir=scratch) as folder:
        yield copy_database(path, Path(folder)) if is_copied else path


@contextmanager
def _fetched(objects: ObjectStore, key: str, ends: list[str], scratch: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fetched-", dir=scratch) as folder:
        path = Path(folder) / "source"
        for end in ("", *ends):
            objects.download(key + end, f"{path}{end}")
        yield path


def unreadable(name: str | Path, error: Exception) -> AggregationError:
    """The error that names a file, and why it can't be read."""
    why = (isinstance(error, OSError) and error.strerror) or one_line(error)
    return AggregationError(
        f"aggregate: {printable(str(name))} can't be read: {why}; correct it, or leave it out"
    )
