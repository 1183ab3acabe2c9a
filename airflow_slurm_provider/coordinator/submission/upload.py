"""Ship what the nodes need: the worker, the handler's code, the resolved configuration.

Everything is named by its digest, so shipping again costs a look and changes nothing
that runs.
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
    """Put the handler's folder on S3 as a zip; return its digest, empty where none is shipped.

    Raises:
        UserError: if the folder or the handler's module is not in it.
    """
    digest, data = pack_code(config)
    if digest:
        services.objects.put_new(services.paths(config.spec.id).code(digest), data)
    return digest


def pack_code(config: Config) -> tuple[str, bytes]:
    """The handler's folder as a zip, and its digest; both empty where none is shipped.

    Raises:
        UserError: if the folder or the handler's module is not in it.
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
        raise UserError(f"{where}: there is no folder {folder}; name the one with the handler")
    _check_requirements(folder, config)
    if not config.spec.handler.plugin:
        _check_entry(folder, config)
    out = io.BytesIO()
    size = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if hidden or not path.is_file():
                continue
            size += path.stat().st_size
            if size > _MOST_CODE_BYTES:
                raise UserError(
                    f"{where}: {folder} holds over 50 MB; put data on S3 and bring it to the "
                    "node with context.fetch()"
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
    """The command that starts a worker which was put to `path`, or that the site has.

    The first one runs the file only if its digest is that of the worker here.
    """
    cluster = services.site.cluster
    launch = [cluster.python, "-c", zipapp.LAUNCH, path, _worker_sha256()]
    return cluster.worker_command or shlex.join(launch)


def built_worker() -> tuple[str, bytes]:
    """The worker as one file: its name, which holds its digest, and its bytes."""
    digest, data = _built_worker()
    return f"worker-{digest}.pyz", data


def worker_arguments(services: Services, spec: JobSpec, config: str, submission: str) -> list[str]:
    """What the worker is started with; no secrets."""
    uri = f"s3://{services.site.bucket}/{services.paths(spec.id).config(config)}"
    processes = str(spec.worker.processes)
    return ["run", "--config", uri, "--submission", submission, "--processes", processes]


@lru_cache(maxsize=1)
def _built_worker() -> tuple[str, bytes]:
    return zipapp.build()


@lru_cache(maxsize=1)
def _worker_sha256() -> str:
    return hashlib.sha256(built_worker()[1]).hexdigest()


def _check_requirements(folder: Path, config: Config) -> None:
    requirements = config.spec.handler.requirements
    if requirements and not (folder / requirements).is_file():
        raise UserError(
            f"{config.source}: handler.requirements: {folder} has no {requirements!r}; name the "
            "file within handler.code"
        )


def _check_entry(folder: Path, config: Config) -> None:
    module, _, function = config.spec.handler.entry.partition(":")
    inside = folder.joinpath(*module.split("."))
    files = [each for each in (inside / "__init__.py", inside.with_suffix(".py")) if each.is_file()]
    if not files:
        raise UserError(
            f"{config.source}: handler.entry: {config.spec.handler.entry!r} names module "
            f"{module!r}, and {folder} has no {module.replace('.', '/')}.py; correct one of them"
        )
    text = files[0].read_text(errors="replace")
    # Only the node can tell what importing it defines: what is nowhere named is not, for certain.
    if not re.search(rf"\b{re.escape(function)}\b|import \*", text):
        raise UserError(
            f"{config.source}: handler.entry: {config.spec.handler.entry!r} names function "
            f"{function!r}, and {files[0]} has none of this name; correct one of them"
        )
    where = f"{config.source}: handler.entry"
    tree = _parsed(files[0], where)
    if tree is not None:
        check_function(tree, function, f"{where}: {config.spec.handler.entry!r}")


def _parsed(path: Path, where: str) -> ast.Module | None:
    """Refuse a module that can't be parsed here: on the nodes every worker would die of it."""
    try:
        return ast.parse(path.read_bytes())
    except (RecursionError, MemoryError):
        return None  # too deep for the parser that is asked here, which says nothing of the node's
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f"{where}: {path}{line}: {what}; correct it (this is Python {python_version()}: what "
            "only a newer one on the nodes can read goes into a module that this one imports)"
        ) from error
