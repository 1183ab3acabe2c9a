"""Upload what the nodes need: the worker and the handler's code.

Files are named by their digests. Uploading one again costs one request, and changes nothing for
running workers.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import shlex
import zipfile
from functools import lru_cache
from pathlib import Path
from platform import python_version

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.entry_point import check_function
from airflow_slurm_provider.coordinator.spec.job_spec import Config, JobSpec
from slurm_worker import zipapp
from slurm_worker.errors import UserError

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MOST_CODE_BYTES = 50 * 1024 * 1024


def upload_code(services: Services, config: Config) -> str:
    """Put the zip of `pack_code` on S3; return its digest, empty if there is no folder."""
    digest, data = pack_code(config)
    if digest:
        services.objects.put_new(services.paths(config.spec.id).code(digest), data)
    return digest


def pack_code(config: Config) -> tuple[str, bytes]:
    """The digest of the handler's folder as a zip, and the zip; both empty if there is no folder.

    Raises:
        UserError: if the folder is missing, or the handler's module is not in it.
    """
    code = config.spec.handler.code
    if code is None:
        return "", b""
    data = _zip_folder((config.folder / code).resolve(), config)
    return hashlib.sha256(data).hexdigest(), data


def _zip_folder(folder: Path, config: Config) -> bytes:
    """The folder as a zip; the same files give the same bytes."""
    where = f"{config.source}: handler.code"
    if not folder.is_dir():
        problem = f"{where}: the folder {folder} does not exist"
        raise UserError(problem, "name the folder with the handler")
    requirements = config.spec.handler.requirements
    if requirements and not (folder / requirements).is_file():
        raise UserError(
            f"{config.source}: handler.requirements: {folder} has no {requirements!r}; name a file "
            "within handler.code"
        )
    if not config.spec.handler.plugin:
        _check_entry(folder, config)
    out, size = io.BytesIO(), 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if hidden or not path.is_file():
                continue
            size += path.stat().st_size
            if size > _MOST_CODE_BYTES:
                raise UserError(
                    f"{where}: {folder} holds over 50 MB; put data on S3, and download it on "
                    "the node with context.fetch()"
                )
            info = zipfile.ZipInfo(relative.as_posix(), _EPOCH)
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def upload_worker(services: Services) -> str:
    """Put the worker on the cluster; return the command that starts it there."""
    cluster = services.site.cluster
    if cluster.worker_command:
        return cluster.worker_command
    name, data = built_worker()
    return worker_command(services, services.slurm.put_file(name, data))


def worker_command(services: Services, path: str) -> str:
    """The site's own command for a worker, or the one that starts the worker at `path`.

    The latter runs the file only if its digest is that of the worker here.
    """
    cluster = services.site.cluster
    sha256 = hashlib.sha256(built_worker()[1]).hexdigest()
    launch = [cluster.python, "-c", zipapp.LAUNCH, path, sha256]
    return cluster.worker_command or shlex.join(launch)


@lru_cache(maxsize=1)
def built_worker() -> tuple[str, bytes]:
    """The worker as one file: its name, which contains its digest, and its bytes."""
    digest, data = zipapp.build()
    return f"worker-{digest}.pyz", data


def worker_arguments(services: Services, spec: JobSpec, config: str, submission: str) -> list[str]:
    """The worker's arguments; no secrets."""
    uri = f"s3://{services.site.bucket}/{services.paths(spec.id).config(config)}"
    processes = str(spec.worker.processes)
    return ["run", "--config", uri, "--submission", submission, "--processes", processes]


def _check_entry(folder: Path, config: Config) -> None:
    entry, where = config.spec.handler.entry, f"{config.source}: handler.entry"
    module, _, function = entry.partition(":")
    inside = folder.joinpath(*module.split("."))
    candidates = (inside / "__init__.py", inside.with_suffix(".py"))
    files = [path for path in candidates if path.is_file()]
    if not files:
        raise UserError(
            f"{where}: {entry!r} names module {module!r}, but {folder} has no "
            f"{module.replace('.', '/')}.py; correct one of them"
        )
    # Only the node knows what the import defines. A name that occurs nowhere is not defined.
    if not re.search(rf"\b{re.escape(function)}\b|import \*", files[0].read_text(errors="replace")):
        raise UserError(
            f"{where}: {entry!r} names function {function!r}, but {files[0]} does not define it; "
            "correct one of them"
        )
    if tree := _parsed(files[0], where):
        check_function(tree, function, f"{where}: {entry!r}")


def _parsed(path: Path, where: str) -> ast.Module | None:
    """Refuse a module that can't be parsed here: every worker would fail on the nodes."""
    try:
        return ast.parse(path.read_bytes())
    except (RecursionError, MemoryError):
        return None  # too deep for this parser; the node's may manage
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        fault = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f"{where}: {path}{line}: {fault}; correct it (this is Python {python_version()}; if "
            "the nodes have a newer Python, move its syntax into a module that this one imports)"
        ) from error
