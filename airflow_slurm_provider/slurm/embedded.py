"""The embedded cluster: Slurm's commands for arrays, run as processes of this machine.

For trying out on a laptop, and for tests; it is no batch system. A folder holds small
`sbatch squeue sacct scancel srun scontrol` programs, put in front of PATH, so that the
same client code runs on it as on a real cluster. `embedded_cluster` is what they run,
`embedded_supervisor` what starts and ends the elements.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import airflow_slurm_provider
import slurm_worker
from airflow_slurm_provider.slurm.transport import LocalTransport

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
    """

    def __init__(
        self, directory: str | Path, slots: int | None = None, kill_wait: float = 10.0
    ) -> None:
        folder = Path(directory).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        # The environment of each submission is kept in it until the array has ended.
        folder.chmod(0o700)
        (folder / "bin").mkdir(exist_ok=True)
        for verb in _VERBS:
            _install(folder / "bin" / verb, _shim(folder, verb))
        _install(folder / "bin" / "srun", _SRUN)
        super().__init__(
            {
                "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
                "EMBEDDED_SLOTS": str(slots or max(_LEAST_SLOTS, os.cpu_count() or 1)),
                "EMBEDDED_KILL_WAIT": str(kill_wait),
            }
        )


def _shim(folder: Path, verb: str) -> str:
    """A program that runs `verb` from any folder, with this interpreter and these packages."""
    packages = dict.fromkeys(
        str(Path(package.__file__).parent.parent)
        for package in (airflow_slurm_provider, slurm_worker)
        if package.__file__
    )
    program = [sys.executable, "-m", "airflow_slurm_provider.slurm.embedded_cluster"]
    return (
        "#!/bin/sh\n"
        'export EMBEDDED_PYTHONPATH="${PYTHONPATH-}"\n'
        f"PYTHONPATH={shlex.quote(':'.join(packages))}${{PYTHONPATH:+:$PYTHONPATH}} "
        f'exec {shlex.join([*program, str(folder), verb])} "$@"\n'
    )


def _install(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.chmod(0o755)
    partial.rename(path)
