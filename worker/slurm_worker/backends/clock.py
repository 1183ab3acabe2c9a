"""AWS time and the boot-time clock.

The time of day comes from the ``Date`` headers of the table's replies, so that workers agree
even if their nodes' clocks are wrong. A header has whole seconds. The intersection of the
offsets that many replies allow is a few hundredths wide. Costs no request.

Source: Marzullo, 1984, "Maintaining the Time in a Distributed System", with the whole second as
each reading's interval.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import partial

#: Seconds on a timer that keeps running while the machine is suspended. A partial, as it is
#: called for each item. macOS has no CLOCK_BOOTTIME; its CLOCK_MONOTONIC counts sleep.
boot_time: Callable[[], float] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)


class AwsClock:
    """Time of day of the table's servers; the local clock until the first reply.

    A reply sent by the server in second D, between our `sent` and `received` (both on the
    boot-time clock), allows offsets in [D - received, D + 1 - sent].
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fallback = time.time() - boot_time()
        self._low: float | None = None
        self._high: float | None = None

    def observe(self, date_header: str, sent: float, received: float) -> None:
        """Take a reply's ``Date`` header into account."""
        try:
            second = parsedate_to_datetime(date_header).timestamp()
        except (TypeError, ValueError):
            return
        low, high = second - received, second + 1 - sent
        with self._lock:
            if self._low is None or self._high is None:
                self._low, self._high = low, high
                return
            self._low, self._high = max(self._low, low), min(self._high, high)
            if self._low > self._high:
                # The servers' or this machine's clock was set: start again from this reply.
                self._low, self._high = low, high

    def now(self) -> float:
        """Seconds since the epoch."""
        with self._lock:
            if self._low is None or self._high is None:
                return boot_time() + self._fallback
            return boot_time() + (self._low + self._high) / 2

    boot_time = staticmethod(boot_time)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(0.0, seconds))
