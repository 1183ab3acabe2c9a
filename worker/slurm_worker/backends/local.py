"""A folder of local files as an object store, for datasets that are merged without S3."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm_worker.errors import Missing, UserError
from slurm_worker.protocol.ports import ObjectInfo, StoredObject

#: Errors of `os.link` on a file system without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class FolderObjects:
    """`ports.ObjectStore` over the files below a folder; each appears complete or not at all."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def verify(self) -> None:
        """See `ports.ObjectStore.verify`."""
        if not self._root.is_dir():
            raise UserError(f"{self._root}: is not a folder; name an existing folder")

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        try:
            with (self._root / key).open("rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)
        except _ABSENT:
            return None

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""
        with self._appearing(key) as written:
            written.write_bytes(body)
            written.replace(self._root / key)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        with self._appearing(key) as written:
            written.write_bytes(body)
            try:
                os.link(written, self._root / key)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._create(key, body)
        return True

    def read(self, key: str) -> StoredObject | None:
        """See `ports.ObjectStore.read`."""
        try:
            with (self._root / key).open("rb") as file:
                body = file.read()
                modified = os.fstat(file.fileno()).st_mtime
        except _ABSENT:
            return None
        return StoredObject(body, hashlib.sha256(body).hexdigest(), modified)

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`; the file's folder is locked meanwhile."""
        with self._appearing(key) as written, _locked(written.parent):
            standing = self.read(key)
            if standing is None or standing.tag != tag:
                return False
            written.write_bytes(body)
            written.replace(self._root / key)
        return True

    def list(self, prefix: str) -> Iterator[str]:
        """See `ports.ObjectStore.list`."""
        folder = self._root / prefix.rpartition("/")[0]
        found = (path.relative_to(self._root) for path in folder.rglob("*") if path.is_file())
        keys = (path.as_posix() for path in found if not path.name.startswith(".part-"))
        yield from sorted(key for key in keys if key.startswith(prefix))

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.entries`."""
        for key in self.list(prefix):
            stat = (self._root / key).stat()
            yield ObjectInfo(key, stat.st_size, stat.st_mtime)

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        (self._root / key).unlink(missing_ok=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See `ports.ObjectStore.delete_many`."""
        for key in keys:
            self.delete(key)

    def size(self, key: str) -> int | None:
        """See `ports.ObjectStore.size`."""
        path = self._root / key
        return path.stat().st_size if path.is_file() else None

    def upload(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.upload`."""
        with self._appearing(key) as written:
            shutil.copyfile(path, written)
            written.replace(self._root / key)

    def download(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.download`."""
        try:
            shutil.copyfile(self._root / key, path)
        except _ABSENT as error:
            raise Missing(f"{self._root / key}: there is no such file") from error

    def copy(self, source: str, key: str) -> None:
        """See `ports.ObjectStore.copy`."""
        try:
            self.upload(key, str(self._root / source))
        except FileNotFoundError as error:
            raise Missing(f"{self._root / source}: there is no such file") from error

    def _create(self, key: str, body: bytes) -> bool:
        """Create a file on a file system without links: not complete at once, but by one only."""
        try:
            with (self._root / key).open("xb") as file:
                file.write(body)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def _appearing(self, key: str) -> Iterator[Path]:
        """A temporary path for the content of `key`; it is deleted at the end.

        Raises:
            UserError: if a file has the name of the folder.
        """
        folder = (self._root / key).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{folder}: is a file; name a folder, or an unused name") from error
        written = folder / f".part-{uuid.uuid4().hex}"
        try:
            yield written
        finally:
            written.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
