"""What goes wrong with requests: how often, when, and for whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Chances per request, until `until` of simulated time.

    Args:
        lost_request: the request never arrives.
        lost_reply: the request is applied, but its reply is lost.
        throttled: the request is refused for now.
        slow: the request takes up to two seconds.
        late: a write arrives when its sender has given up waiting, and has perhaps repeated it.
        stale_read_s: a read that is not consistent shows the rows of up to so many seconds ago.
        stale_list_s: a list shows the objects of up to so many seconds ago, also after `until`.
        conflict: a conditional PUT is refused for now while another one of its key is under way.
    """

    lost_request: float = 0.0
    lost_reply: float = 0.0
    throttled: float = 0.0
    slow: float = 0.0
    late: float = 0.0
    until: float = 0.0
    stale_read_s: float = 0.0
    stale_list_s: float = 0.0
    conflict: float = 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A period of simulated time in which a service does not answer.

    Args:
        what: which requests are not answered: those with all of these words in the argument
            `where` of `Network.call`, such as ``table``, ``table write``, ``store put``, or
            ``table JOB#…`` for a partition; empty for all.
        fault: whether requests never arrive, or replies, or requests are throttled.
    """

    start: float
    end: float
    what: str
    fault: str
    host: str = ""  #: the only process that is cut off; empty for all

    def hits(self, now: float, where: str, host: str = "") -> bool:
        """Whether a request of a process is not answered."""
        if not self.start <= now < self.end or self.host not in ("", host):
            return False
        return set(self.what.split()) <= set(where.split())


@dataclass(frozen=True, slots=True)
class Aim:
    """An outage that begins with the next request of a name.

    Args:
        name: of the request, such as a statement's.
        length_s: of the outage.
        alone: whether only the process that makes the request is cut off.
    """

    name: str
    length_s: float
    what: str
    fault: str
    alone: bool


class Outages(list[Outage]):
    """The outages of a run, and those that wait for a request."""

    def __init__(self, outages: Iterable[Outage] = ()) -> None:
        super().__init__(outages)
        self.aims: list[Aim] = []
