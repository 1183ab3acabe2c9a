"""The manifest: the one object that publishes a dataset, written last and at once.

Readers start from the manifest: it names the folder of the version and lists its files, with
size and SHA-256 of each.

The life of a version's files is one rule, kept by conditional PUTs of the manifest alone:

1. Each aggregation reads the manifest first, say number n, and writes only into folders of its
   own, whose name begins with n + 1 and is never used again.
2. Its manifest, number n + 1, replaces the one of number n or none (``If-Match``; the first one
   ``If-None-Match: *``). An aggregation that is too late begins again, from the new manifest.
3. So a version with a number up to the manifest's, that the manifest does not list, can never be
   published any more, however long its aggregation is paused.
4. The manifest lists the current version, and those that it has retired, each with the time at
   which its successor's manifest was written, by the store's clock.
5. Only `sweep` finds files to delete: those of (3), and of versions that were retired two
   publications and `older_than_s` ago. To remove an interrupted aggregation, `sweep` first
   raises the manifest's number to that aggregation's, and then (3) applies to it.

Nothing here needs a pause to be short, or two clocks to agree: what `sweep` decides to delete stays
garbage forever, whenever it is deleted. In a store that ignores ``If-Match`` the later manifest
stays, and `sweep` finds nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slurm_worker.aggregate.dataset.folder import DataFile
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.protocol.job_store import probe_replacing
from slurm_worker.protocol.paths import JobPaths, parse_version
from slurm_worker.protocol.ports import ObjectInfo, ObjectStore

VERSION = 2
#: S3 reports times in whole seconds.
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Retired:
    """A version that another one has replaced."""

    version: str  #: its name
    #: When, in seconds since the epoch, by the store's clock; None for the time at which the
    #: manifest that has this entry was written
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was published; `items` = `ok` + the sum of `failed`."""

    job: str  #: the job's id
    rows: int  #: rows of the dataset
    items: int  #: items of the job's input
    ok: int  #: items that succeeded, each with none, one or several rows
    failed: Mapping[str, int]  #: items that failed for good, by error class
    folder: str  #: where the files are: a folder of this version's own
    files: tuple[DataFile, ...]  #: the dataset's files, in order of the tasks, or of the sorting
    errors: tuple[DataFile, ...]  #: the files of the items that failed
    schema: Mapping[str, str]  #: column types by name
    inputs: str  #: digest of everything that went into it; the same inputs are published once
    created: str  #: when, in ISO 8601
    #: An aggregation that began from a manifest of a lower number can't be published
    number: int = 0
    #: Versions whose files are kept for their readers, the oldest first
    retired: tuple[Retired, ...] = ()
    v: int = VERSION

    @property
    def version(self) -> str:
        """The name of this version, which its folders have."""
        return self.folder.rstrip("/").rpartition("/")[2]

    def file_names(self) -> dict[str, DataFile]:
        """The dataset's files by their names in its folder."""
        return {file.key.removeprefix(self.folder): file for file in self.files}

    def is_complete(self, objects: ObjectStore) -> bool:
        """Whether all files exist with their sizes; one HEAD each."""
        return all(objects.size(file.key) == file.size for file in (*self.files, *self.errors))

    def is_of(self, inputs: str, objects: ObjectStore) -> bool:
        """Whether it is of these inputs, and complete."""
        return self.inputs == inputs and self.is_complete(objects)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        raw = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in raw.items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` wrote, of this release or an earlier one."""
        files = {
            name: tuple(DataFile(**file) for file in raw[name]) for name in ("files", "errors")
        }
        retired = tuple(Retired(**version) for version in raw.get("retired", ()))
        return cls(**{**raw, **files, "retired": retired})


NO_MANIFEST = Manifest("", 0, 0, 0, {}, "", (), (), {}, "", "")


@dataclass(frozen=True, slots=True)
class Published:
    """The manifest's object as it was read."""

    #: `NO_MANIFEST` where there is none that this release reads
    manifest: Manifest = NO_MANIFEST
    tag: str = ""  #: of the object; empty where there is none
    modified: float = 0.0  #: when it was written, by the store's clock
    later: bool = False  #: whether a later release has written it

    @property
    def retired(self) -> tuple[Retired, ...]:
        """The versions that are retired, each with its time."""
        return tuple(
            replace(entry, at=self.modified) if entry.at is None else entry
            for entry in self.manifest.retired
        )

    @property
    def versions(self) -> set[str]:
        """The names of the current version and of the retired ones."""
        return {self.manifest.version, *(entry.version for entry in self.manifest.retired)}

    def is_same(self, other: Published) -> bool:
        """Whether an aggregation that began from one manifest may replace the other."""
        one, two = self.manifest, other.manifest
        return (one.number, one.version) == (two.number, two.version)


def read_published(objects: ObjectStore, paths: JobPaths) -> Published:
    """What is published, to begin an aggregation from; one GET."""
    stored = objects.read(paths.manifest)
    if stored is None:
        return Published()
    manifest, later = NO_MANIFEST, False
    # Whatever else it is, the next one replaces it.
    with contextlib.suppress(ValueError, KeyError, TypeError):
        raw = json.loads(stored.body)
        later = raw["v"] > VERSION
        manifest = Manifest.from_dict(raw) if raw["v"] == VERSION else NO_MANIFEST
    return Published(manifest, stored.tag, stored.modified, later)


def publish(
    objects: ObjectStore, paths: JobPaths, manifest: Manifest, base: Published
) -> Manifest | None:
    """Put the manifest in place of the one from which its aggregation began.

    One HEAD per file and one PUT; a GET and a PUT more where `sweep` wrote meanwhile. The files
    are all in folders of the number after that of `base`, which was read before anything else.

    Returns:
        The manifest as it was published; None if the aggregation has to begin again.

    Raises:
        AggregationError: if a file of it is missing.
    """
    if not manifest.is_complete(objects):
        if not read_published(objects, paths).is_same(base):
            return None
        raise AggregationError(
            "aggregate: files of this version were deleted while it was made; find out what "
            "deletes below the job's dataset/ (an older release, a lifecycle rule), and aggregate "
            "again"
        )
    current, replaced = base, base.manifest.version
    while True:
        retired = (*current.retired, *([Retired(replaced)] if replaced else []))
        complete = replace(manifest, number=base.manifest.number + 1, retired=retired)
        if _put(objects, paths, complete, current):
            return complete
        current = read_published(objects, paths)
        if manifest.version in current.versions:
            # It was published, and the reply was lost.
            return complete
        if not current.is_same(base):
            return None


def sweep(
    objects: ObjectStore, paths: JobPaths, older_than_s: float, *, dry_run: bool = False
) -> list[ObjectInfo]:
    """What may be deleted of a job's datasets, now or at any later time.

    Requests: those of `probe_replacing`, a list per thousand objects, a GET and up to one PUT.

    A retired version, and an aggregation that has not published yet, are kept for `older_than_s`.
    A `dry_run` writes no manifest.

    Returns:
        The files; none in a store that ignores the conditions of a PUT.
    """
    # A time before they are listed: no file is taken for older than it is.
    now = probe_replacing(objects, paths)
    if now is None:
        return []
    files = [
        entry
        for folder in (paths.dataset, paths.errors)
        for entry in objects.entries(folder)
        if entry.key != paths.manifest
    ]
    while True:
        current = read_published(objects, paths)
        if current.manifest is NO_MANIFEST:
            # Nothing is published, or by another release: nobody knows which files are in use.
            return []
        expired = _expired(current, now - older_than_s)
        kept = current.versions - expired
        garbage, fence = _judge(files, paths, current.manifest, kept, now - older_than_s)
        number = max(current.manifest.number, fence)
        if dry_run or (number == current.manifest.number and not expired):
            return garbage
        retired = tuple(entry for entry in current.retired if entry.version in kept)
        swept = replace(current.manifest, number=number, retired=retired)
        if _put(objects, paths, swept, current):
            return garbage


def _put(objects: ObjectStore, paths: JobPaths, manifest: Manifest, current: Published) -> bool:
    body = json.dumps(manifest.to_dict(), indent=1).encode()
    if not current.tag:
        return objects.put_new(paths.manifest, body)
    return objects.put_if(paths.manifest, body, current.tag)


def _expired(current: Published, old: float) -> set[str]:
    """The retired versions whose files are no longer promised to readers."""
    # The last one is promised until the publication after the next, whatever its age.
    retired = current.retired[:-1]
    return {entry.version for entry in retired if entry.at is not None and entry.at + _TICK_S < old}


def _judge(
    files: Sequence[ObjectInfo], paths: JobPaths, manifest: Manifest, kept: set[str], old: float
) -> tuple[list[ObjectInfo], int]:
    """The files that are garbage, once the manifest's number is as high as is returned.

    A version that is not listed, and began from an older manifest, can't be published. It is
    left until it is old, since its aggregation may copy its files into the next version, unless
    the version that it was made for is already published.
    """

    def version_of(entry: ObjectInfo) -> str:
        folder = paths.errors if entry.key.startswith(paths.errors) else paths.dataset
        return entry.key.removeprefix(folder).rpartition("/")[0].partition("/")[0]

    # An older release keeps one version that its manifest does not list.
    unnumbered = any(parse_version(version) is None for version in kept)
    versions: dict[str, list[ObjectInfo]] = {}
    for entry in files:
        versions.setdefault(version_of(entry), []).append(entry)
    garbage: list[ObjectInfo] = []
    fence = 0
    for version, entries in versions.items():
        if version in kept:
            continue
        number, inputs = parse_version(version) or (0, "")
        made_in_vain = inputs == manifest.inputs[:16] and number <= manifest.number
        if not made_in_vain and any(entry.modified + _TICK_S >= old for entry in entries):
            continue
        if number or not unnumbered:
            garbage += entries
            fence = max(fence, number)
    return garbage, fence
