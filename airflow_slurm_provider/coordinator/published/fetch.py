"""A copy of a published dataset in a local folder: verified, and continued where it was left.

The folder has the files of one version, under the names that they have in the dataset, and last
its manifest. What an interrupted call has left is verified, and only the rest is downloaded. If the
job publishes another version meanwhile, that one is fetched.

Requests: a read of the job's row, a GET of the manifest before and after, and the downloads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator.published.manifest import manifest_of, names_of
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.units import format_size
from slurm_worker.aggregate.dataset.folder import DataFile
from slurm_worker.aggregate.job.publish import Manifest
from slurm_worker.errors import Missing, ServiceError, UserError
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import ObjectStore

MANIFEST = "_manifest.json"
#: Whose folder it is, and the files that were fetched into it.
_OWNER = ".slurmctl-fetch.json"
#: The suffix of a file that is not complete.
_PART = ".part"
_DOWNLOADS = 8
_BLOCK_BYTES = 1 << 20
_SAY_EVERY_S = 5.0
_MOST_VERSIONS = 5


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What a folder has now."""

    job_id: str
    folder: str
    version: str  #: of the dataset
    files: int
    bytes: int
    downloaded: int  #: files that were not there before

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return asdict(self)


def fetch(services: Services, job_id: JobId, folder: Path, *, log: Log) -> FetchResult:
    """Make a folder a copy of the job's dataset.

    Raises:
        UserError: if the job has no dataset, or the folder is not this job's, or can't be written.
        ServiceError: if the store does not answer; calling again continues.
    """
    with _disk(folder):
        owned = _Owned.of(folder, job_id)
    downloaded = 0
    for _ in range(_MOST_VERSIONS):
        manifest = manifest_of(services, job_id)
        try:
            with _disk(folder):
                downloaded += _Copy(services.objects, folder, owned, manifest, log).run()
        except Missing as error:
            if manifest_of(services, job_id).version == manifest.version:
                raise ServiceError(
                    f"dataset: {error}; find out what deletes below the job's dataset/, and run "
                    f"slurmctl aggregate {job_id} again"
                ) from error
            log("another version was published meanwhile; fetching that one")
            continue
        size = sum(file.size for file in manifest.files)
        files = len(manifest.files)
        return FetchResult(job_id, str(folder), manifest.version, files, size, downloaded)
    raise ServiceError(f"dataset: {job_id} is published again and again; try again later")


@dataclass(slots=True)
class _Owned:
    """A folder that holds a job's dataset, and the files that were fetched into it."""

    path: Path
    job_id: str
    names: set[str]

    @classmethod
    def of(cls, folder: Path, job_id: JobId) -> _Owned:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _OWNER
        if not path.exists():
            other = next((each.name for each in sorted(folder.iterdir())), None)
            if other is not None:
                raise UserError(
                    f"DIR: {str(folder)!r} holds other files, such as {other!r}; choose an empty "
                    "folder"
                )
            owned = cls(path, job_id, set())
            owned.write()
            return owned
        raw = json.loads(path.read_text())
        if raw["job_id"] != job_id:
            raise UserError(
                f"DIR: {str(folder)!r} holds the dataset of {raw['job_id']!r}; choose another"
            )
        return cls(path, job_id, set(raw["names"]))

    def write(self) -> None:
        self.path.write_text(json.dumps({"job_id": self.job_id, "names": sorted(self.names)}))


@dataclass(frozen=True, slots=True)
class _Copy:
    objects: ObjectStore
    folder: Path
    owned: _Owned
    manifest: Manifest
    log: Log

    def run(self) -> int:
        """Fetch what is not there; the number of files that were downloaded."""
        names = names_of(self.manifest)
        # A version's manifest is there exactly when all of its files are.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self.owned.names |= {*names}
        self.owned.write()
        tell = _Progress(sum(file.size for file in names.values()), len(names), self.log)
        fetched = prefetch(self._one, names.items(), _DOWNLOADS, _DOWNLOADS)
        downloaded = 0
        with closing(fetched) as ended:
            for (_, file), new in ended:
                downloaded += new
                tell.add(file.size)
        self._forget(self.owned.names - {*names})
        text = json.dumps(self.manifest.to_dict(), indent=1)
        (self.folder / MANIFEST).write_text(text)
        return downloaded

    def _one(self, named: tuple[str, DataFile]) -> bool:
        """Whether a file was downloaded; it is there, and whole."""
        name, file = named
        path = self.folder / name
        if path.exists() and path.stat().st_size == file.size and _digest(path) == file.sha256:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + _PART)
        self.objects.download(file.key, str(part))
        if part.stat().st_size != file.size or _digest(part) != file.sha256:
            part.unlink()
            raise ServiceError(
                f"dataset: {file.key} is not as the manifest says; try again, and if it stays so, "
                f"run slurmctl aggregate {self.owned.job_id} again"
            )
        part.replace(path)
        return True

    def _forget(self, names: set[str]) -> None:
        """Remove the files of earlier versions, and folders that are empty then."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
            for parent in Path(name).parents[:-1]:
                with suppress(OSError):  # it holds other files
                    (self.folder / parent).rmdir()
        self.owned.names -= names
        self.owned.write()


class _Progress:
    def __init__(
        self, size: int, files: int, log: Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._size, self._files, self._log, self._clock = size, files, log, clock
        self._done_size = self._done = 0
        self._said = clock()

    def add(self, size: int) -> None:
        self._done_size += size
        self._done += 1
        if self._clock() > self._said + _SAY_EVERY_S and self._done < self._files:
            self._said = self._clock()
            self._log(
                f"{self._done:,} of {self._files:,} files, {format_size(self._done_size)} of "
                f"{format_size(self._size)}"
            )


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Errors of the local disk are the user's to correct."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "free space, or choose another folder" if full else "choose another folder"
        raise UserError(
            f"DIR: {str(folder)!r} can't be written: {error.strerror or error}; {what}"
        ) from error


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()
