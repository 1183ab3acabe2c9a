"""The manifest: the one object that publishes a dataset, written last and at once.

Readers start from the manifest: it names the folder of the version and lists its files, with
size and SHA-256 of each.

The life of a version's files is one rule, kept by conditional PUTs of the manifest alone:

1. Each aggregation reads the manifest first, say number n, and writes only into folders of its
   own, whose name begins with n + 1 and is never used again.
2. Its manifest, number n + 1, replaces the one of number n or none (``If-Match``; the first one
   ``If-None-Match: *``). An aggregation that comes too late begins again, from the new manifest.
3. So a version of a number up to the manifest's, that the manifest does not list, can never be
   published any more, however long its aggregation is paused.
4. The manifest lists the version that stands, and those that it has retired, each with the
   moment at which its successor's manifest was written, by the store's clock.
5. Only `sweep` finds files to delete: those of (3), and of versions that were retired two
   publications and `older_than_s` ago. To be rid of an aggregation that was cut short, `sweep`
   first raises the manifest's number to that aggregation's, which brings it under (3).

Nothing here rests on a pause being short, nor on two clocks: what `sweep` decides to delete stays
garbage for ever, whenever it is deleted. In a store that ignores ``If-Match`` the later manifest
stands, and `sweep` finds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slurm_worker.aggregate.dataset.version import DataFile, names_in
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.protocol.job_store import probe_replacing
from slurm_worker.protocol.keys import JobPaths, parse_version
from slurm_worker.protocol.ports import Entry, ObjectStore

VERSION = 2
#: S3 tells times in whole seconds.
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Retired:
    """A version that another one has replaced.

    Args:
        version: its name.
        at: when, in seconds since the epoch, by the store's clock; None for when the manifest
            that says so was written.
    """

    version: str
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was published; `items` = `ok` + the sum of `failed`.

    Args:
        job: the job's id.
        rows: rows of the dataset.
        items: items of the job's input.
        ok: items that succeeded, each with none, one or several rows.
        failed: items that failed for good, by error class.
        folder: where the files are: a folder of this version's own.
        files: the dataset's files, in order of the tasks, or of the sorting.
        errors: the files of the items that failed.
        schema: column types by name.
        inputs: digest of all that went into it; the same inputs are published once.
        created: when, in ISO 8601.
        number: aggregations that were begun from a manifest of a lower number can't be published.
        retired: versions whose files are kept for those who still read them, the oldest first.
    """

    job: str
    rows: int
    items: int
    ok: int
    failed: Mapping[str, int]
    folder: str
    files: tuple[DataFile, ...]
    errors: tuple[DataFile, ...]
    schema: Mapping[str, str]
    inputs: str
    created: str
    number: int = 0
    retired: tuple[Retired, ...] = ()
    v: int = VERSION

    @property
    def version(self) -> str:
        """The name of this version, which its folders have."""
        return self.folder.rstrip("/").rpartition("/")[2]

    def file_names(self) -> dict[str, DataFile]:
        """The dataset's files by their names in its folder."""
        return names_in(self.folder, self.files)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        lists = {
            name: [asdict(each) for each in getattr(self, name)]
            for name in ("files", "errors", "retired")
        }
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` wrote, of this release or an earlier one."""
        files = {
            name: tuple(DataFile(**each) for each in raw[name]) for name in ("files", "errors")
        }
        retired = tuple(Retired(**each) for each in raw.get("retired", ()))
        return cls(**{**raw, **files, "retired": retired})


@dataclass(frozen=True, slots=True)
class Standing:
    """The manifest's object as it was read.

    Args:
        manifest: None where there is none, or none that this release reads.
        tag: of the object; empty where there is none.
        modified: when it was written, by the store's clock.
        later: whether a later release has written it.
    """

    manifest: Manifest | None
    tag: str = ""
    modified: float = 0.0
    later: bool = False

    @property
    def number(self) -> int:
        """The manifest's number."""
        return 0 if self.manifest is None else self.manifest.number

    @property
    def version(self) -> str:
        """The name of the version that stands; empty where there is none."""
        return "" if self.manifest is None else self.manifest.version

    def is_same(self, other: Standing) -> bool:
        """Whether what was begun from one manifest may replace the other."""
        return (self.number, self.version) == (other.number, other.version)

    @property
    def retired(self) -> tuple[Retired, ...]:
        """The versions that are retired, each with its time."""
        found = () if self.manifest is None else self.manifest.retired
        return tuple(replace(each, at=self.modified) if each.at is None else each for each in found)


def read_standing(objects: ObjectStore, paths: JobPaths) -> Standing:
    """What is published, to begin an aggregation from; one GET."""
    stored = objects.read(paths.manifest)
    if stored is None:
        return Standing(None)
    manifest, later = None, False
    try:
        raw = json.loads(stored.body)
        later = raw["v"] > VERSION
        manifest = Manifest.from_dict(raw) if raw["v"] == VERSION else None
    except (ValueError, KeyError, TypeError):
        # Whatever it is, the next one replaces it.
        pass
    return Standing(manifest, stored.tag, stored.modified, later)


def is_whole(objects: ObjectStore, manifest: Manifest) -> bool:
    """Whether all files are there with their sizes; one HEAD each."""
    return all(objects.size(each.key) == each.size for each in (*manifest.files, *manifest.errors))


def publish(
    objects: ObjectStore, paths: JobPaths, manifest: Manifest, begun: Standing
) -> Manifest | None:
    """Put the manifest in place of the one from which its aggregation was begun.

    One HEAD per file and one PUT; a GET and a PUT more where `sweep` wrote meanwhile.

    Args:
        objects: the bucket.
        paths: the job's keys.
        manifest: names the files, all in folders of the number after that of `begun`.
        begun: what was read before anything else.

    Returns:
        The manifest as it was published; None if the aggregation has to begin again.

    Raises:
        AggregationError: if a file of it has gone.
    """
    if not is_whole(objects, manifest):
        if not read_standing(objects, paths).is_same(begun):
            return None
        raise AggregationError(
            "aggregate: files of this version have gone while it was made; aggregate again, and "
            "look for who deletes below the job's dataset/ (an older release, a lifecycle rule)"
        )
    standing = begun
    while True:
        retired = (*standing.retired, *([Retired(begun.version)] if begun.version else []))
        whole = replace(manifest, number=begun.number + 1, retired=retired)
        if _put(objects, paths, whole, standing):
            return whole
        standing = read_standing(objects, paths)
        if manifest.version in (standing.version, *(each.version for each in standing.retired)):
            # It was published, and the reply was lost.
            return whole
        if not standing.is_same(begun):
            return None


def sweep(
    objects: ObjectStore, paths: JobPaths, older_than_s: float, *, dry_run: bool = False
) -> list[Entry]:
    """What may be deleted of a job's datasets, now or at any later time.

    Requests: those of `probe_replacing`, a list per thousand objects, a GET and up to one PUT.

    Args:
        objects: the bucket.
        paths: the job's keys.
        older_than_s: seconds that a retired version is kept, and that an aggregation which has
            not published yet is left in peace.
        dry_run: say what it would be, and write no manifest.

    Returns:
        The files; none in a store that ignores the conditions of a PUT.
    """
    # A time before they are listed: no file is taken for older than it is.
    now = probe_replacing(objects, paths)
    if now is None:
        return []
    files = [
        each
        for folder in (paths.dataset, paths.errors)
        for each in objects.entries(folder)
        if each.key != paths.manifest
    ]
    while True:
        standing = read_standing(objects, paths)
        if standing.manifest is None:
            # Nothing is published, or by another release: what is in use is not known.
            return []
        kept, over = _split(standing, now - older_than_s)
        garbage, fence = _judge(files, paths, standing.manifest, kept, now - older_than_s)
        number = max(standing.number, fence)
        if dry_run or (number == standing.number and not over):
            return garbage
        retired = tuple(each for each in standing.retired if each.version in kept)
        swept = replace(standing.manifest, number=number, retired=retired)
        if _put(objects, paths, swept, standing):
            return garbage


def _put(objects: ObjectStore, paths: JobPaths, manifest: Manifest, standing: Standing) -> bool:
    body = json.dumps(manifest.to_dict(), indent=1).encode()
    if not standing.tag:
        return objects.put_new(paths.manifest, body)
    return objects.put_if(paths.manifest, body, standing.tag)


def _split(standing: Standing, old: float) -> tuple[set[str], set[str]]:
    """The versions whose files are promised to readers, and those that are so no more."""
    # The last one is promised until the publication after the next, whatever its age.
    over = {
        each.version
        for each in standing.retired[:-1]
        if each.at is not None and each.at + _TICK_S < old
    }
    listed = {standing.version, *(each.version for each in standing.retired)}
    return listed - over, over


def _judge(
    files: Sequence[Entry], paths: JobPaths, manifest: Manifest, kept: set[str], old: float
) -> tuple[list[Entry], int]:
    """The files that are garbage, once the manifest's number is as high as is returned.

    What is not listed, and was begun from an older manifest, can't be published. It is left
    until it is old, since its aggregation may copy it into the next version, unless what it is
    made for stands already.
    """

    def version_of(entry: Entry) -> str:
        folder = paths.errors if entry.key.startswith(paths.errors) else paths.dataset
        return entry.key.removeprefix(folder).rpartition("/")[0].partition("/")[0]

    # An older release keeps one version that its manifest does not list.
    unnumbered = any(parse_version(each) is None for each in kept)
    versions: dict[str, list[Entry]] = {}
    for each in files:
        versions.setdefault(version_of(each), []).append(each)
    garbage: list[Entry] = []
    fence = 0
    for version, entries in versions.items():
        if version in kept:
            continue
        number, inputs = parse_version(version) or (0, "")
        made_in_vain = inputs == manifest.inputs[:16] and number <= manifest.number
        if not made_in_vain and any(each.modified + _TICK_S >= old for each in entries):
            continue
        if number or not unnumbered:
            garbage += entries
            fence = max(fence, number)
    return garbage, fence
