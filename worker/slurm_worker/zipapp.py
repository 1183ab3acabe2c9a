"""The worker as one file: a zip that any Python >= 3.10 runs with nothing installed.

Holds this package and what it imports, with botocore's data trimmed to the services
used. The zip's `__main__` unpacks it once per node, into a private folder named by its
digest (botocore reads its data as files), and runs the worker from there. The same
installed packages give the same bytes.

    python -m slurm_worker.zipapp worker.pyz
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from slurm_worker import __version__

_PACKAGES = (
    *("slurm_worker", "boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3"),
    "structlog",
)
_MODULES = ("six", "typing_extensions")
#: Services whose data is kept; of boto3, those a handler may use as ``boto3.resource("s3")``.
_DATA = {
    "botocore": ("dynamodb", "s3", "sts", "sso", "sso-oidc", "signin"),
    "boto3": ("dynamodb", "s3"),
}
_EPOCH = (1980, 1, 1, 0, 0, 0)

#: Runs the file $1 only if its SHA-256 is $2. It is read once, so the hashed bytes are what runs.
#: One line, for the batch script, where other users can't change the digest. Neither the current
#: folder nor bytecode from elsewhere is used.
LAUNCH = (
    "import sys, os; sys.pycache_prefix = None; here = os.getcwd(); "
    "sys.path[:] = [path for path in sys.path if path not in ('', here)]; "
    "import hashlib, io, zipfile; "
    "path, wanted = sys.argv[1:3]; archive = io.BytesIO(open(path, 'rb').read()); "
    "hashlib.sha256(archive.getvalue()).hexdigest() == wanted or sys.exit("
    "'slurm-worker: ' + path + ' is not the file that was submitted; submit the job again'); "
    "sys.argv[:3] = [path]; main = zipfile.ZipFile(archive).read('__main__.py'); "
    "exec(main, {'__name__': '__main__', 'ARCHIVE': archive})"
)

_MAIN = '''\
"""Unpack once per node, then run the worker."""
import sys

DIGEST = "{digest}"
VERSION = "{version}"
FILES = {files}

if sys.version_info < (3, 10):
    sys.exit("slurm-worker needs Python 3.10 or later, this is " + sys.version.split()[0])
if sys.argv[1:] == ["--version"]:
    sys.exit(print("slurm-worker " + VERSION + " (" + DIGEST + ")"))

import fcntl, io, os, shutil, tempfile, zipfile
from pathlib import Path

if "ARCHIVE" not in globals():
    ARCHIVE = io.BytesIO(Path(sys.argv[0]).read_bytes())
# What was read is what runs: the file itself is not opened again.
archive = zipfile.ZipFile(ARCHIVE)
private = {"__name__": "private"}
exec(archive.read("slurm_worker/private.py"), private)


def base_folder():
    """A folder that only this user can enter; the same one each time if possible."""
    temporary = Path(tempfile.gettempdir())
    private["check_folder"](temporary)
    name = "slurm-worker-%d" % os.getuid()
    try:
        (temporary / name).mkdir(0o700)
    except FileExistsError:
        pass
    # If another user has taken the name, use one that an earlier worker has made.
    for path in [temporary / name, *sorted(temporary.glob(name + "-files-*"))]:
        if private["is_ours"](path):
            return str(path)
    return tempfile.mkdtemp(prefix=name + "-files-", dir=temporary)


def whole(folder):
    """Whether every file is there: nodes clean their temporary folders of old files."""
    return FILES == sum(
        len(names) for path, _, names in os.walk(folder) if not path.endswith("__pycache__")
    )


def unpacked():
    target = os.path.join(base_folder(), DIGEST)
    if whole(target):
        return target
    with open(target + ".lock", "w") as lock:
        try:
            # Of many workers that start together on a node, one unpacks and the others wait.
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the rename decides
        if not whole(target):
            unpack(target)
    return target


def unpack(target):
    partial = tempfile.mkdtemp(prefix=DIGEST + "-", dir=os.path.dirname(target))
    try:
        archive.extractall(partial)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not whole(target):
            raise


try:
    sys.path.insert(0, unpacked())
except OSError as error:
    print("slurm-worker: can't unpack to a temporary folder:", error, file=sys.stderr)
    print("slurm-worker: name another with TMPDIR", file=sys.stderr)
    sys.exit(75)  # as for any node that fails: another may succeed
ARCHIVE.close()
from slurm_worker.__main__ import main

sys.exit(main())
'''


def build() -> tuple[str, bytes]:
    """Return (digest, bytes) of the worker's zip, from the packages installed here.

    The digest covers the content only, so the same packages give the same digest anywhere.
    """
    files = sorted(_files())
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0".encode() + path.read_bytes())
    name = digest.hexdigest()[:16]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, path in files:
            info = zipfile.ZipInfo(member, _EPOCH)
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
        main = _MAIN.replace("{digest}", name).replace("{version}", __version__)
        main = main.replace("{files}", str(len(files) + 1))
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), main)
    return name, out.getvalue()


def _files() -> Iterator[tuple[str, Path]]:
    for module in _MODULES:
        yield f"{module}.py", _origin(module)
    for package in _PACKAGES:
        root = _origin(package).parent
        for path in root.rglob("*"):
            relative = path.relative_to(root.parent)
            if path.is_file() and _wanted(relative):
                yield relative.as_posix(), path


def _wanted(path: Path) -> bool:
    parts = path.parts
    if "__pycache__" in parts or path.suffix in (".pyc", ".pyi", ".so"):
        return False
    if parts[0] in _DATA and parts[1] == "data" and len(parts) > 3:
        return parts[2] in _DATA[parts[0]]
    return parts[:2] != ("boto3", "examples")


def _origin(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is not installed here, so no worker can be built")
    return Path(spec.origin)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build()[1])
