"""How a worker's process ends, and by which signals it is asked to."""

from __future__ import annotations

import signal

EXIT_OK = 0
EXIT_CONFIG = 3  #: nothing of this job can run on this node: a mistake in the job
EXIT_INFRASTRUCTURE = 75  #: the node or a service failed; another worker may succeed
EXIT_NO_PROGRESS = 76  #: lease after lease came to nothing here: see the worker's log
#: What a worker process chooses; every other end is a crash.
CHOSEN_EXITS = (EXIT_OK, EXIT_CONFIG, EXIT_INFRASTRUCTURE, EXIT_NO_PROGRESS)

#: Slurm's before a time limit, its cancelling and preempting, and Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
