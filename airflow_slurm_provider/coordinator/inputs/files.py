"""The files of an input: one file, or every file of a folder, local or on S3.

A folder is read in the order of its paths. Folders named ``column=value`` (Hive partitions)
add their column to each item: as integers if all values of the column are integers, otherwise as
text; ``__HIVE_DEFAULT_PARTITION__`` is None. Names that begin with ``.`` or ``_`` are ignored, as
in Spark, Hive and DuckDB. A file of another format is refused: no file is skipped silently.

Requests: for a file on S3 a HEAD and a list request, for a folder one list request per thousand
objects.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NoReturn, TypeAlias
from urllib.parse import unquote

from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import split_s3_uri
from slurm_worker.protocol.paths import NULL_PARTITION
from slurm_worker.protocol.ports import ObjectStore

Bucket: TypeAlias = Callable[[str], ObjectStore]
Field: TypeAlias = "str | int | None"

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_MOST_HASHED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of an input."""

    name: str  #: its path or S3 address, for messages
    size: int  #: bytes
    changed: float  #: when it was written, in seconds since the epoch, by its file system or store
    parts: tuple[str, ...]  #: its path below the input's folder; at least its name
    key: str  #: its key there, or its local path
    store: ObjectStore | None = None  #: the bucket that holds it; None for a local file
    fields: Mapping[str, Field] = field(default_factory=dict)  #: columns in its folders' names

    def local(self, folder: Path) -> Path:
        """Its path on this machine; an object is downloaded into `folder`, over the last one."""
        if self.store is None:
            return Path(self.key)
        path = folder / "input"
        self.store.download(self.key, str(path))
        return path

    def read(self, start: int, length: int) -> bytes:
        """A range of its bytes: one request on S3."""
        if self.store is not None:
            return self.store.get(self.key, start=start, length=length) or b""
        with Path(self.key).open("rb") as file:
            file.seek(start)
            return file.read(length)


def find_files(path: str, bucket: Bucket) -> list[InputFile]:
    """The files of the input `path`, in the order in which they are read.

    Raises:
        UserError: naming the path, if there are no files.
    """
    found = _local_files(path) if not path.startswith("s3://") else _objects(path, bucket)
    if not found:
        raise UserError(f"input.path: {path} is a folder without data files; correct the path")
    return _with_fields(found)


def version_of(path: str, bucket: Bucket) -> str:
    """A text that changes when the input is written again; empty if there is no input.

    For a small local file it is a digest, because copies differ in their times. Otherwise it is
    made from the size and time of each file. On S3 it needs one more list request.
    """
    try:
        files = find_files(path, bucket)
        if len(files) > 1 or files[0].fields:
            lines = [f"{file.name} {file.size} {file.changed:.0f}\n" for file in files]
            return _digest("".join(lines).encode(errors="surrogateescape"))
        file = files[0]
        if file.store is None and file.size <= _MOST_HASHED_BYTES:
            return _digest(Path(file.key).read_bytes())
    except (OSError, UserError):
        return ""  # the reader of the input reports the fault
    return f"{file.size} {file.changed:.0f}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# --- local --------------------------------------------------------------------------


def _local_files(path: str) -> list[InputFile]:
    top = Path(path)
    if top.is_file():
        return [_local_file(top, (top.name,))]
    if not top.is_dir():
        near = [str(other) for other in top.parent.iterdir()] if top.parent.is_dir() else []
        raise UserError(f"input.path: the file {path} does not exist; {_hint(path, near)}")
    found = [_local_file(file, file.relative_to(top).parts) for file in _walk(top)]
    return sorted(found, key=lambda file: file.parts)


def _walk(top: Path) -> Iterator[Path]:
    """The data files below a folder; links are followed."""
    for name, folders, files in os.walk(top, onerror=_refuse_unreadable, followlinks=True):
        folder = Path(name)
        data = [below for below in folders if _is_data((below,))]
        # A link to a folder that contains it would be followed without end.
        above = {folder.resolve(), *folder.resolve().parents}
        folders[:] = [below for below in data if (folder / below).resolve() not in above]
        yield from (folder / file for file in files if _is_data((file,)))


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise UserError(
        f"input.path: {error.filename} can't be read: {error.strerror}; correct that, or move it "
        "out of the input"
    ) from error


def _local_file(path: Path, parts: tuple[str, ...]) -> InputFile:
    try:
        found = path.stat()
    except OSError as error:
        _refuse_unreadable(error)
    if not stat.S_ISREG(found.st_mode):
        raise UserError(
            f"input.path: {path} is not a regular file; write its content into a file first"
        )
    return InputFile(str(path), found.st_size, found.st_mtime, parts, str(path))


def _is_data(parts: Iterable[str]) -> bool:
    return not any(name.startswith((".", "_")) for name in parts)


# --- S3 -----------------------------------------------------------------------------


def _objects(path: str, bucket: Bucket) -> list[InputFile]:
    name, key = split_s3_uri(path, "input.path")
    store = bucket(name)
    try:
        size = store.size(key) if key and not path.endswith("/") else None
        if size is not None:
            entry = next(iter(store.entries(key)), None)
            changed = entry.modified if entry and entry.key == key else 0.0
            return [InputFile(path, size, changed, (PurePosixPath(key).name,), key, store)]
        found = _below(store, name, f"{key}/" if key else "")
        if not found:
            # Some stores give the same answer for a missing object and a missing bucket.
            store.verify()
    except UserError as error:
        raise UserError(
            f"input.path: {path}: the bucket {name!r} does not exist, or access is denied; "
            "correct the path or the credentials"
        ) from error
    if not found:
        raise _no_object(path, store, name, key)
    return found


def _below(store: ObjectStore, bucket: str, prefix: str) -> list[InputFile]:
    found = []
    for entry in store.entries(prefix):
        parts = tuple(entry.key.removeprefix(prefix).split("/"))
        # An object whose key ends with a slash represents a folder.
        if parts[-1] and _is_data(parts):
            address = f"s3://{bucket}/{entry.key}"
            found.append(InputFile(address, entry.size, entry.modified, parts, entry.key, store))
    return sorted(found, key=lambda file: file.parts)


def _no_object(path: str, store: ObjectStore, name: str, key: str) -> UserError:
    parent = key.rpartition("/")[0]
    listed = islice(store.list(f"{parent}/" if parent else ""), 1000)
    near = [f"s3://{name}/{other}" for other in listed]
    return UserError(f"input.path: the object {path} does not exist; {_hint(path, near)}")


def _hint(wanted: str, near: Iterable[str]) -> str:
    found = difflib.get_close_matches(wanted, list(near), 1, cutoff=0.8)
    return f"did you mean {found[0]}?" if found else "correct the path"


# --- Hive partitions ----------------------------------------------------------------


def _with_fields(files: list[InputFile]) -> list[InputFile]:
    partitions = [_partitions(file) for file in files]
    pairs = (pair for values in partitions for pair in values.items())
    # A column is text if one of its values is not an integer.
    text = {name for name, value in pairs if value is not None and not _INTEGER.fullmatch(value)}

    def typed(name: str, value: str | None) -> Field:
        return value if value is None or name in text else int(value)

    return [
        replace(file, fields={name: typed(name, value) for name, value in values.items()})
        for file, values in zip(files, partitions, strict=True)
    ]


def _partitions(file: InputFile) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for folder in file.parts[:-1]:
        written, equals, value = folder.partition("=")
        if not equals or not written:
            continue
        name = _unquoted(written, folder, file)
        if name in found:
            raise UserError(
                f"input.path: the folders of {file.name} have two values of {name!r}; move the file"
            )
        found[name] = None if value == NULL_PARTITION else _unquoted(value, folder, file)
    return found


def _unquoted(text: str, folder: str, file: InputFile) -> str:
    """The text that Hive and Spark have escaped in a folder's name."""
    try:
        found = unquote(text, errors="strict")
        found.encode()
    except UnicodeError as error:
        raise UserError(
            f"input.path: {file.name}: the folder {folder!a} is not UTF-8; rename it"
        ) from error
    return found
