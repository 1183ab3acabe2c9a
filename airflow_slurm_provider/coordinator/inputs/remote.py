"""Files of other stores than S3, by fsspec: ``https://``, ``gs://``, ``hf://`` and more.

fsspec needs a package for most of them. A scheme that it does not know is refused by its name.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slurm_worker.errors import ServiceError, UserError

#: What fsspec reaches on other machines; its other schemes are local, or wrap another one.
_SCHEMES = frozenset(
    (
        "http",
        "https",
        "gs",
        "gcs",
        "hf",
        "abfs",
        "abfss",
        "az",
        "sftp",
        "ssh",
        "ftp",
        "webhdfs",
        "hdfs",
    )
)
_TAGS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "content_md5")
_TIMES = ("mtime", "updated", "last_modified", "LastModified", "modified")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file, as the store describes it."""

    name: str
    parts: tuple[str, ...]
    size: int
    changed: float
    tag: str


class RemoteFiles:
    """The files of one store; `path` is any address in it."""

    def __init__(self, path: str) -> None:
        self.scheme = path.partition("://")[0].lower()
        self._files = file_system(self.scheme)

    def is_folder(self, path: str) -> bool:
        """Whether there are files below an address; never of a web server."""
        if self.scheme in ("http", "https"):
            return False
        with self._errors(path):
            return bool(self._files.isdir(path))

    def one(self, path: str) -> RemoteFile:
        """The file at an address."""
        with self._errors(path):
            return self._file(path, self._files.info(path), (path.rstrip("/").rpartition("/")[2],))

    def below(self, folder: str) -> Iterator[RemoteFile]:
        """The files below a folder."""
        with self._errors(folder):
            found = self._files.find(folder, detail=True)
        top = self._files._strip_protocol(folder)
        for name, info in found.items():
            parts = tuple(str(name).removeprefix(str(top)).strip("/").split("/"))
            yield self._file(f"{folder}/{'/'.join(parts)}", info, parts)

    def download(self, path: str, target: Path) -> None:
        """Write the file at an address to a local file."""
        with self._errors(path):
            self._files.get_file(path, str(target))

    def read(self, path: str, start: int, length: int) -> bytes:
        """A range of the file's bytes."""
        with self._errors(path):
            found: bytes = self._files.cat_file(path, start=start, end=start + length)
            return found

    def _file(self, name: str, info: dict[str, Any], parts: tuple[str, ...]) -> RemoteFile:
        if info.get("type") == "directory":
            raise UserError(f"input.path: {name} is a folder; name a file or a pattern")
        if info.get("size") is None:
            raise UserError(
                f"input.path: {name}: the server does not tell its size; download it, and name "
                "the local file"
            )
        tag = next((str(info[each]) for each in _TAGS if info.get(each)), "")
        time = next((info[each] for each in _TIMES if info.get(each)), 0.0)
        changed = time.timestamp() if isinstance(time, dt.datetime) else 0.0
        if isinstance(time, (int, float)):
            changed = float(time)
        return RemoteFile(name, parts, int(info["size"]), changed, tag)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f"input.path: {path} does not exist, or its server can't be reached; correct the "
                "path"
            ) from error
        except (UserError, ServiceError):
            raise
        except Exception as error:  # each package has its own errors
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ServiceError(
                f"input.path: {path} can't be read ({reason})",
                "check the address, the network and the credentials",
            ) from error


@cache
def file_system(scheme: str) -> Any:
    """Fsspec's file system of a scheme; a UserError if there is none here."""
    import fsspec  # type: ignore[import-untyped]  # it has no types

    if scheme not in _SCHEMES:
        raise UserError(
            f"input.path: addresses with {scheme}:// are not supported; use a local path, s3://, "
            "https://, gs:// or hf://"
        )
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"input.path: addresses with {scheme}:// need a package that is not here ({reason})"
        ) from error
