"""The embedded cluster: Slurm's commands for arrays, run as processes of this machine.

It is for a trial on a laptop and for tests, not a batch system. A folder holds small
`sbatch squeue sacct scancel srun scontrol` programs, put in front of PATH, so that the
same client code runs on it as on a real cluster. `commands` is what they run,
`supervisor` starts and ends the elements.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from airflow_slurm_provider.slurm.embedded.commands import isolated
from airflow_slurm_provider.slurm.transport import LocalTransport
from slurm_worker.errors import UserError
from slurm_worker.private import UnsafeFolder, own_folder

_VERBS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")

#: ``srun`` starts its one task in place of itself, so that signals reach it.
_SRUN = """\
#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""

_LEAST_SLOTS = 8


class EmbeddedTransport(LocalTransport):
    """A transport to the embedded cluster in `directory`; made if absent.

    Args:
        directory: its folder; only its owner may enter it.
        slots: elements that run at the same time; by default one per core and at least
            eight, so that an array that waits for a server does not keep another from its
            work. The first submission after an idle time decides.
        kill_wait: seconds between SIGTERM and SIGKILL.

    Raises:
        UserError: if another user can change the folder.
    """

    def __init__(
        self, directory: str | Path, slots: int | None = None, kill_wait: float = 10.0
    ) -> None:
        path = Path(directory).expanduser()
        try:
            folder = own_folder(path)
        except UnsafeFolder as error:
            raise UserError(
                f"cluster.embedded_dir: {error}, who can change what jobs run",
                "name a folder of your own, such as ~/.airflow-slurm/embedded",
            ) from error
        except OSError as error:
            raise UserError(
                f"cluster.embedded_dir: {str(path)!r} can't be made ({error})", "name another"
            ) from error
        (folder / "bin").mkdir(mode=0o700, exist_ok=True)
        settings = {
            "EMBEDDED_SLOTS": slots or max(_LEAST_SLOTS, os.cpu_count() or 1),
            "EMBEDDED_KILL_WAIT": kill_wait,
        }
        for verb in _VERBS:
            _install(folder / "bin" / verb, _shim(folder, verb, settings))
        _install(folder / "bin" / "srun", _SRUN)
        super().__init__({"PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}"})


def _shim(folder: Path, verb: str, settings: Mapping[str, float]) -> str:
    """A program that runs `verb` with this interpreter and these packages, and no others."""
    words = shlex.join(isolated("commands", str(folder), verb))
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    return f'#!/bin/sh\n{given} exec {words} "$@"\n'


def _install(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.chmod(0o700)
    partial.rename(path)
