"""The files of an input, as they were when the input was listed.

`find_files` lists them once, into a file on this machine: each with its name, size, and what shows
that it was written again (an ETag, a digest, or the time of its change). Memory does not grow with
their number. Planning reads those files and no others. It refuses a file that has changed.

Folders named ``column=value`` (Hive partitions) add their column to each item: as integers if all
values of the column are integers, otherwise as text; ``__HIVE_DEFAULT_PARTITION__`` is None.

Requests: those of `finding`, and for each file on S3 one GET; for a file over 8 MB several, and a
list request.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from airflow_slurm_provider.coordinator.inputs.finding import Bucket, Found, find
from airflow_slurm_provider.coordinator.inputs.remote import RemoteFiles
from airflow_slurm_provider.coordinator.spec.input_section import has_scheme
from slurm_worker.errors import Missing, UserError
from slurm_worker.protocol.keys import split_s3_uri
from slurm_worker.protocol.paths import NULL_PARTITION
from slurm_worker.protocol.ports import ObjectStore

Field: TypeAlias = "str | int | None"

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_MOST_HASHED_BYTES = 64 * 1024 * 1024
#: A smaller object is read by one request, which also gives its tag.
_ONE_REQUEST_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_IN_MEMORY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of an input."""

    found: Found
    store: ObjectStore | RemoteFiles | None = None  #: what holds it; None for a local file
    fields: Mapping[str, Field] = field(default_factory=dict)  #: columns in its folders' names

    @property
    def name(self) -> str:
        """Its path or address, for messages."""
        return self.found.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self.found.size

    @property
    def label(self) -> str:
        """Its path below the input's folder, which keys by row begin with."""
        return "/".join(self.found.parts)

    def local(self, path: Path) -> Path:
        """Its path on this machine; an object is downloaded to `path`.

        Raises:
            UserError: if it is not the file that was listed.
        """
        try:
            if self.store is None:
                path = Path(self.name)
            elif isinstance(self.store, RemoteFiles):
                self.store.download(self.name, path)
                if self.found.tag and self.store.one(self.name).tag != self.found.tag:
                    raise self._changed()
            else:
                self._download(self.store, path)
            self.check(path)
        except (Missing, FileNotFoundError) as error:
            raise UserError(
                f"input.path: {self.name} was deleted while the input was read; restore it, or "
                "submit again without it"
            ) from error
        return path

    def _download(self, store: ObjectStore, path: Path) -> None:
        key = split_s3_uri(self.name, "input.path")[1]
        if self.size <= _ONE_REQUEST_BYTES:
            read = store.read(key)
            if read is None:
                raise Missing(f"{self.name}: there is no such object")
            tag = read.tag
            path.write_bytes(read.body)
        else:
            store.download(key, str(path))
            entry = next(iter(store.entries(key)), None)
            tag = entry.tag if entry and entry.key == key else "gone"
        if self.found.tag and tag != self.found.tag and not self.found.sha256:
            raise self._changed()

    def check(self, path: Path, *, digest: bool = True) -> None:
        """Refuse the file at this path on this machine if it is not the one that was listed.

        Without `digest`, the content is not read.
        """
        status = path.stat()
        same = status.st_size == self.size
        if self.store is None and not self.found.sha256:
            same = same and str(status.st_mtime_ns) == self.found.tag
        if same and digest and self.found.sha256:
            same = _sha256(path) == self.found.sha256
        if not same:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"input.path: {self.name} changed while the input was read; submit again when nothing "
            "writes to it"
        )

    def read(self, start: int, length: int) -> bytes:
        """A range of its bytes: one request on S3."""
        if isinstance(self.store, RemoteFiles):
            return self.store.read(self.name, start, length)
        if self.store is not None:
            key = split_s3_uri(self.name, "input.path")[1]
            return self.store.get(key, start=start, length=length) or b""
        with Path(self.name).open("rb") as file:
            file.seek(start)
            return file.read(length)


class InputFiles:
    """The files of an input, in the order in which they are read, on this machine's disk."""

    def __init__(self, paths: tuple[str, ...], bucket: Bucket) -> None:
        """List them.

        Raises:
            UserError: naming the path, if there are no files.
        """
        self.paths = paths
        self.count = 0
        self.size = 0  #: bytes of all of them
        self._bucket = bucket
        self._text: set[str] = set()  #: partition columns that hold text
        self._lines = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115  # lives as long as this
        seen: set[int] = set()
        for path in paths:
            before = self.count
            for found in find(path, bucket):
                self._add(found, seen if len(paths) > 1 else None)
            if self.count == before:
                raise UserError(
                    f"input.path: {path} is a folder without data files; correct the path"
                )

    def _add(self, found: Found, seen: set[int] | None) -> None:
        if seen is not None:
            mark = hash(found.name)
            if mark in seen:
                raise UserError(
                    f"input.path: {found.name} is named twice; take one of its paths out of the "
                    "list"
                )
            seen.add(mark)
        for name, value in _partitions(found).items():
            # A column is text if one of its values is not an integer.
            if value is not None and not _INTEGER.fullmatch(value):
                self._text.add(name)
        self.count += 1
        self.size += found.size
        self._lines.write(json.dumps(found.as_list()).encode() + b"\n")

    def __iter__(self) -> Iterator[InputFile]:
        return (self._with_fields(Found.from_list(json.loads(line))) for line in self.lines())

    def lines(self) -> Iterator[bytes]:
        """The list as JSON: name, parts below the input's folder, size, time, tag, digest."""
        place = 0
        while True:
            # Others may read between two steps.
            self._lines.seek(place)
            chunk = self._lines.readlines(_CHUNK_BYTES)
            if not chunk:
                return
            place = self._lines.tell()
            yield from chunk

    def described(self) -> Iterator[bytes]:
        """The list as JSON lines for readers: each file's name, size, and what shows a change."""
        for line in self.lines():
            found = Found.from_list(json.loads(line))
            shown = {
                "name": found.name,
                "size": found.size,
                "modified": found.changed,
                "tag": found.tag,
                "sha256": found.sha256,
            }
            yield (
                json.dumps({name: value for name, value in shown.items() if value}).encode() + b"\n"
            )

    def version(self) -> str:
        """A text that changes when the input is written again.

        For a small local file it is a digest, because copies differ in their times. Otherwise it is
        made from the size and time of each file. Without files, as for a database, it is empty.
        """
        if not self.count:
            return ""
        if self.count == 1 and not next(iter(self)).fields:
            (file,) = self
            if file.store is None and file.size <= _MOST_HASHED_BYTES:
                return _short(hashlib.sha256(Path(file.name).read_bytes()))
            return f"{file.size} {file.found.changed:.0f}"
        digest = hashlib.sha256()
        for file in self:
            line = f"{file.name} {file.size} {file.found.changed:.0f}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return _short(digest)

    def _with_fields(self, found: Found) -> InputFile:
        def typed(name: str, value: str | None) -> Field:
            return value if value is None or name in self._text else int(value)

        values = _partitions(found)
        fields = {name: typed(name, value) for name, value in values.items()}
        if not has_scheme(found.name):
            return InputFile(found, None, fields)
        if found.name.startswith("s3://"):
            return InputFile(found, self._bucket(split_s3_uri(found.name, "input.path")[0]), fields)
        return InputFile(found, RemoteFiles(found.name), fields)


def version_of(paths: tuple[str, ...], bucket: Bucket) -> str:
    """See `InputFiles.version`; empty if there is no input. On S3 it lists the files."""
    try:
        return InputFiles(paths, bucket).version()
    except (OSError, UserError):
        return ""  # the reader of the input reports the fault


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _short(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:16]


# --- Hive partitions ----------------------------------------------------------------


def _partitions(file: Found) -> dict[str, str | None]:
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


def _unquoted(text: str, folder: str, file: Found) -> str:
    """The text that Hive and Spark have escaped in a folder's name."""
    try:
        found = unquote(text, errors="strict")
        found.encode()
    except UnicodeError as error:
        raise UserError(
            f"input.path: {file.name}: the folder {folder!a} is not UTF-8; rename it"
        ) from error
    return found
