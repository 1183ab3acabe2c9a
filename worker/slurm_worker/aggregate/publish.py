"""The manifest: the one object that publishes a dataset, written last and at once.

Readers start from the manifest: it names the folder of the version and lists its files, with
size and SHA-256 of each. A new manifest replaces the old in one PUT. Who reads the old version
goes on undisturbed: its files are removed by the publication after the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.files import DataFile, names_in
from slurm_worker.keys import JobPaths
from slurm_worker.ports import ObjectStore

VERSION = 2


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
    v: int = VERSION

    def file_names(self) -> dict[str, DataFile]:
        """The dataset's files by their names in its folder."""
        return names_in(self.folder, self.files)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            **asdict(self),
            "files": [asdict(each) for each in self.files],
            "errors": [asdict(each) for each in self.errors],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` wrote."""
        files = {
            name: tuple(DataFile(**each) for each in raw[name]) for name in ("files", "errors")
        }
        return cls(**{**raw, **files})


def find_manifest(objects: ObjectStore, paths: JobPaths) -> Manifest | None:
    """The published manifest; None where there is none, or none that this release reads."""
    data = objects.get(paths.manifest)
    if data is None:
        return None
    try:
        raw = json.loads(data)
        return Manifest.from_dict(raw) if raw["v"] == VERSION else None
    except (ValueError, KeyError, TypeError):
        # Whatever it is, the next one replaces it.
        return None


def is_whole(objects: ObjectStore, manifest: Manifest) -> bool:
    """Whether all files are there with their sizes; one HEAD each."""
    return all(objects.size(each.key) == each.size for each in (*manifest.files, *manifest.errors))


def publish(
    objects: ObjectStore, paths: JobPaths, manifest: Manifest, replaced: Manifest | None
) -> None:
    """Put the manifest; then remove what neither it nor the one that it replaces lists.

    Raises:
        AggregationError: if a file of it has gone: another aggregation ran meanwhile.
    """
    if not is_whole(objects, manifest):
        raise AggregationError(
            "aggregate: files of this version have gone while it was made: another aggregation of "
            "this job has published; aggregate again"
        )
    objects.put(paths.manifest, json.dumps(manifest.to_dict(), indent=1).encode())
    kept = {paths.manifest}
    for each in (manifest, replaced):
        if each is not None:
            kept.update(file.key for file in (*each.files, *each.errors))
    for folder in (paths.dataset, paths.errors):
        for key in objects.list(folder):
            if key not in kept:
                objects.delete(key)
