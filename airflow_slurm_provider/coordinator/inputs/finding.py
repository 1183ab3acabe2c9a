"""Which files a path names: a file, a folder, a pattern, or a dataset's manifest.

Files come in the order of their paths, as text. A folder's names that begin with ``.`` or ``_`` are
ignored, as in Spark, Hive and DuckDB; a folder with a dataset's ``_manifest.json`` holds the files
that the manifest names. A pattern takes ``*``, ``?`` and ``[...]`` within a name, and ``**`` for
any number of folders. No file is skipped silently for another reason.

Memory holds the names of one local folder at most. Requests: for a file on S3 a HEAD and a list
request; for a folder a HEAD and a GET for a manifest, and a list request per thousand objects; for
a pattern also those below its first folder without a wildcard.
"""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeAlias

from airflow_slurm_provider.coordinator.inputs.patterns import Pattern, is_pattern
from airflow_slurm_provider.coordinator.inputs.remote import RemoteFiles
from airflow_slurm_provider.coordinator.spec.input_section import has_scheme
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import split_s3_uri
from slurm_worker.protocol.ports import ObjectInfo, ObjectStore

Bucket: TypeAlias = Callable[[str], ObjectStore]

MANIFEST = "_manifest.json"


@dataclass(frozen=True, slots=True)
class Found:
    """A file that a path names."""

    name: str  #: its path or address
    parts: tuple[str, ...]  #: its path below the input's folder; at least its name
    size: int  #: bytes
    changed: float  #: when it was written, in seconds since the epoch, by its file system or store
    tag: str = ""  #: what changes when it is written again: the ETag, or the time in nanoseconds
    sha256: str = ""  #: its digest, where a manifest tells it

    def as_list(self) -> list[Any]:
        """As `from_list` reads it."""
        return [self.name, list(self.parts), self.size, self.changed, self.tag, self.sha256]

    @classmethod
    def from_list(cls, raw: list[Any]) -> Found:
        """What `as_list` gave."""
        name, parts, *more = raw
        return cls(name, tuple(parts), *more)


def find(path: str, bucket: Bucket) -> Iterator[Found]:
    """The files that a path names, in their order.

    Raises:
        UserError: naming the path, if it names nothing or can't be read.
    """
    if not has_scheme(path):
        return _local(path)
    if path.startswith("s3://"):
        return _on_s3(path, bucket)
    return _remote(path)


def is_data(parts: Iterable[str]) -> bool:
    """Whether no name of a path is one that readers of datasets ignore."""
    return not any(name.startswith((".", "_")) for name in parts)


# --- local --------------------------------------------------------------------------


def _local(path: str) -> Iterator[Found]:
    top = Path(path)
    if top.is_file():
        if top.name == MANIFEST:
            return _of_manifest(path, top.read_bytes(), str(top.parent), _local_named)
        return iter([_local_file(top, (top.name,))])
    if top.is_dir():
        if (top / MANIFEST).is_file():
            return _local(str(top / MANIFEST))
        return (_local_file(file, file.relative_to(top).parts) for file in _walk(top))
    if is_pattern(path):
        return _local_pattern(path)
    near = [str(other) for other in top.parent.iterdir()] if top.parent.is_dir() else []
    raise UserError(f"input.path: the file {path} does not exist; {_hint(path, near)}")


def _local_pattern(path: str) -> Iterator[Found]:
    pattern = Pattern(path)
    top, count = Path(pattern.folder or ("/" if path.startswith("/") else ".")), 0
    for file in _walk(top, pattern.depth, hidden=True) if top.is_dir() else ():
        parts = file.relative_to(top).parts
        if pattern.matches(parts):
            count += 1
            yield _local_file(file, parts)
    if not count:
        raise _no_match(path)


def _walk(top: Path, depth: int | None = None, *, hidden: bool = False) -> Iterator[Path]:
    """The data files below a folder, in the order of their paths; links are followed.

    With a `depth`, only those in folders below so many names; with `hidden`, also those whose names
    readers of datasets ignore.
    """
    try:
        with os.scandir(top) as listed:
            entries = [(each.name, each.is_dir()) for each in listed]
    except OSError as error:
        _refuse_unreadable(error)
    # With the slash behind a folder, the order is that of whole paths, which S3 has too.
    for name, is_folder in sorted(entries, key=lambda each: each[0] + "/" * each[1]):
        if not hidden and not is_data((name,)):
            continue
        path = top / name
        if not is_folder:
            yield path
        # A link to a folder that contains it would be followed without end.
        elif depth != 1 and path.resolve() not in {top.resolve(), *top.resolve().parents}:
            yield from _walk(path, depth and depth - 1, hidden=hidden)


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise UserError(
        f"input.path: {error.filename} can't be read: {error.strerror}; correct that, or move it "
        "out of the input"
    ) from error


def _local_file(path: Path, parts: tuple[str, ...]) -> Found:
    try:
        found = path.stat()
    except OSError as error:
        _refuse_unreadable(error)
    if not stat.S_ISREG(found.st_mode):
        raise UserError(
            f"input.path: {path} is not a regular file; write its content into a file first"
        )
    return Found(str(path), parts, found.st_size, found.st_mtime, str(found.st_mtime_ns))


def _local_named(folder: str, name: str) -> Found | None:
    path = Path(folder) / name
    return _local_file(path, PurePosixPath(name).parts) if path.is_file() else None


# --- S3 -----------------------------------------------------------------------------


def _on_s3(path: str, bucket: Bucket) -> Iterator[Found]:
    name, key = split_s3_uri(path, "input.path")
    store = bucket(name)
    try:
        if (found := _one_object(path, store, key)) is not None:
            return found
        below = _below(store, name, f"{key.rstrip('/')}/" if key else "")
        first = next(below, None)
        if first is not None:
            return _and_rest(first, below)
        if is_pattern(key):
            return _s3_pattern(path, store, name)
        # Some stores give the same answer for a missing object and a missing bucket.
        store.verify()
    except UserError as error:
        if "input." in str(error):
            raise
        raise UserError(
            f"input.path: {path}: the bucket {name!r} does not exist, or access is denied; "
            "correct the path or the credentials"
        ) from error
    raise _no_object(path, store, name, key)


def _one_object(path: str, store: ObjectStore, key: str) -> Iterator[Found] | None:
    """The object of this key, or the files of the manifest that it is or has."""
    size = store.size(key) if key and not path.endswith("/") else None
    if size is None:
        folder = f"{key.rstrip('/')}/" if key else ""
        manifest = None if is_pattern(key) else store.get(f"{folder}{MANIFEST}")
        folder_path = path.rstrip("/")
    else:
        manifest = store.get(key) if PurePosixPath(key).name == MANIFEST else None
        folder_path = path.rpartition("/")[0]
    if manifest is not None:

        def named(folder: str, name: str) -> Found | None:
            address = f"{folder}/{name}"
            entry = _entry(store, split_s3_uri(address, "input.path")[1])
            parts = PurePosixPath(name).parts
            if entry is None:
                return None
            return Found(address, parts, entry.size, entry.modified, entry.tag)

        return _of_manifest(path, manifest, folder_path, named)
    if size is None:
        return None
    entry = _entry(store, key)
    changed, tag = (entry.modified, entry.tag) if entry else (0.0, "")
    return iter([Found(path, (PurePosixPath(key).name,), size, changed, tag)])


def _entry(store: ObjectStore, key: str) -> ObjectInfo | None:
    entry = next(iter(store.entries(key)), None)
    return entry if entry and entry.key == key else None


def _below(store: ObjectStore, bucket: str, prefix: str) -> Iterator[Found]:
    for entry, parts in _entries_below(store, prefix):
        if is_data(parts):
            yield _object(bucket, entry, parts)


def _entries_below(
    store: ObjectStore, prefix: str, start: str = ""
) -> Iterator[tuple[ObjectInfo, tuple[str, ...]]]:
    for entry in store.entries(prefix + start):
        parts = tuple(entry.key.removeprefix(prefix).split("/"))
        # An object whose key ends with a slash represents a folder.
        if parts[-1]:
            yield entry, parts


def _object(bucket: str, entry: ObjectInfo, parts: tuple[str, ...]) -> Found:
    return Found(f"s3://{bucket}/{entry.key}", parts, entry.size, entry.modified, entry.tag)


def _and_rest(first: Found, rest: Iterator[Found]) -> Iterator[Found]:
    yield first
    yield from rest


def _s3_pattern(path: str, store: ObjectStore, bucket: str) -> Iterator[Found]:
    pattern, count = Pattern(split_s3_uri(path, "input.path")[1]), 0
    prefix = f"{pattern.folder}/" if pattern.folder else ""
    for entry, parts in _entries_below(store, prefix, pattern.start):
        if pattern.matches(parts):
            count += 1
            yield _object(bucket, entry, parts)
    if not count:
        store.verify()
        raise _no_match(path)


def _no_object(path: str, store: ObjectStore, name: str, key: str) -> UserError:
    parent = key.rpartition("/")[0]
    listed = islice(store.list(f"{parent}/" if parent else ""), 1000)
    near = [f"s3://{name}/{other}" for other in listed]
    return UserError(f"input.path: the object {path} does not exist; {_hint(path, near)}")


# --- other stores -------------------------------------------------------------------


def _remote(path: str) -> Iterator[Found]:
    remote = RemoteFiles(path)
    if is_pattern(path) and not path.startswith(("http://", "https://")):
        pattern = Pattern(path)
        files = [each for each in remote.below(pattern.folder) if pattern.matches(each.parts)]
        if not files:
            raise _no_match(path)
    elif remote.is_folder(path):
        files = [each for each in remote.below(path.rstrip("/")) if is_data(each.parts)]
    else:
        files = [remote.one(path)]
    for each in sorted(files, key=lambda each: each.name):
        yield Found(each.name, each.parts, each.size, each.changed, each.tag)


# --- manifests and messages ---------------------------------------------------------


def _of_manifest(
    path: str, data: bytes, folder: str, named: Callable[[str, str], Found | None]
) -> Iterator[Found]:
    """The files that a dataset's manifest names, in its order."""
    try:
        raw = json.loads(data)
        files = [
            (str(each["key"]), int(each["size"]), str(each["sha256"])) for each in raw["files"]
        ]
        # A job's manifest names keys of its bucket; that of files, paths beside it.
        top = str(raw.get("folder", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"input.path: {path} is not the manifest of a dataset ({error!r}); name the data files"
        ) from error
    return _manifest_files(path, folder, top, files, named)


def _manifest_files(
    path: str,
    folder: str,
    top: str,
    files: list[tuple[str, int, str]],
    named: Callable[[str, str], Found | None],
) -> Iterator[Found]:
    version = f"{top.rstrip('/').rpartition('/')[2]}/" if top else ""
    for key, size, sha256 in files:
        below = key.removeprefix(top)
        found = named(f"{folder}/{version}".rstrip("/"), below)
        if found is None:
            raise UserError(
                f"input.path: {path} names {below}, which does not exist; copy the whole dataset"
            )
        if found.size != size:
            raise UserError(
                f"input.path: {found.name} is not the file that {path} names: it has "
                f"{found.size:,} bytes, not {size:,}; copy the whole dataset again"
            )
        yield Found(found.name, found.parts, size, found.changed, found.tag, sha256)


def _no_match(path: str) -> UserError:
    folder = Pattern(path).folder
    return UserError(
        f"input.path: no file matches {path}; correct the pattern, or look into {folder or '/'}"
    )


def _hint(wanted: str, near: Iterable[str]) -> str:
    found = difflib.get_close_matches(wanted, list(near), 1, cutoff=0.8)
    return f"did you mean {found[0]}?" if found else "correct the path"
