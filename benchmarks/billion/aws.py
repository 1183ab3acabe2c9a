"""A model of DynamoDB and S3 by their published limits, in virtual time.

Figures and their sources, read on 25 November 2026 (`SOURCES` has the addresses):

    a partition            1,000 write and 3,000 read units a second                      1
    a new on-demand table  4,000 write and 12,000 read units a second: four partitions    2
    split for heat         near a partition's limits; how soon is not published           3
    S3                     3,500 PUT and 5,500 GET a second and prefix; splits gradually  4
    latency of S3          100 to 200 ms for small objects                                5
    latency of DynamoDB    single-digit milliseconds                                      6
    retries of the SDK     5 tries; random x 1, 2, 4, 8 s; a quota of 500, 5 per retry    7

The model is on the safe side. A token bucket holds a tenth of a second, because DynamoDB's five
minutes of burst are "best effort". Prefixes of S3 never split. A partition splits `SPLIT_S` after
it began to throttle (this time is our assumption), unless it serves only one key. Latencies are
log-normal around the figures: medians of 5 ms and 120 ms, one in a hundred above 18 ms and 400 ms.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from benchmarks.billion.rows import LeanRows
from slurm_worker.errors import Throttled
from slurm_worker.protocol.ports import Applied, Refused, Row, Statement, Value

_GUIDE = "https://docs.aws.amazon.com"
_BLOG = "https://aws.amazon.com/blogs/database"
SOURCES = (
    f"{_GUIDE}/amazondynamodb/latest/developerguide/bp-partition-key-design.html",
    f"{_GUIDE}/amazondynamodb/latest/developerguide/warm-throughput-scenarios.html",
    f"{_BLOG}/part-3-scaling-dynamodb-how-partitions-hot-keys-and-split-for-heat-impact-performance/",
    f"{_GUIDE}/AmazonS3/latest/userguide/optimizing-performance.html",
    f"{_GUIDE}/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html",
    f"{_GUIDE}/amazondynamodb/latest/developerguide/Introduction.html",
    "botocore 1.44.5, botocore/retries/standard.py and quota.py",
)
SOURCES_OF = "2026-11-25"

WRITE_UNITS, READ_UNITS = 1_000.0, 3_000.0
FIRST_PARTITIONS = 4
SPLIT_S = 600.0
S3_PUTS, S3_GETS = 3_500.0, 5_500.0
_TRIES, _MOST_BACKOFF_S = 5, 20.0
_QUOTA, _REPEAT_COST = 500, 5
_SAMPLES = 1 << 16
T = TypeVar("T")


class Bucket:
    """A token bucket of a number of units per second; it holds a tenth of a second."""

    __slots__ = ("_left", "_most", "_rate", "_then", "count", "most", "second")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = self._left = rate / 10
        self._then = 0.0
        #: Units of this second, and of the busiest one.
        self.count = self.most = 0.0
        self.second = -1

    def admits(self, now: float) -> bool:
        self._left = min(self._most, self._left + (now - self._then) * self._rate)
        self._then = now
        return self._left > 0

    def take(self, units: float, now: float) -> None:
        self._left -= units
        second = int(now)
        if second != self.second:
            self.second, self.count = second, 0.0
        self.count += units
        self.most = max(self.most, self.count)


class Partition:
    """One partition of the table: a range of hashes."""

    def __init__(self, now: float) -> None:
        self.writes, self.reads = Bucket(WRITE_UNITS), Bucket(READ_UNITS)
        self.writes.admits(now)
        self.reads.admits(now)
        self.keys: set[str] = set()
        self.hot_since: float | None = None
        self.hot_last = 0.0


class Table:
    """Which partition serves a key, what the partitions have served, and when they split."""

    def __init__(self, partitions: int = FIRST_PARTITIONS) -> None:
        self._starts = [each / partitions for each in range(partitions)]
        self.partitions = [Partition(0.0) for _ in range(partitions)]
        self._of_key: dict[str, tuple[Partition, Bucket, Bucket]] = {}
        self.keys: dict[str, tuple[Bucket, Bucket]] = {}
        self.splits = 0

    def of(self, pk: str) -> tuple[Partition, Bucket, Bucket]:
        """The partition of a key, and the key's own counts of writes and read units."""
        found = self._of_key.get(pk)
        if found is None:
            own = self.keys.setdefault(pk, (Bucket(math.inf), Bucket(math.inf)))
            partition = self.partitions[bisect_right(self._starts, _hash(pk)) - 1]
            partition.keys.add(pk)
            found = self._of_key[pk] = (partition, *own)
        return found

    def heat(self, partition: Partition, now: float) -> None:
        """Record a throttled request; split the partition if this has lasted for long."""
        if partition.hot_since is None or now - partition.hot_last > 60:
            partition.hot_since = now
        partition.hot_last = now
        if now - partition.hot_since < SPLIT_S or len(partition.keys) < 2:
            return
        at = self.partitions.index(partition)
        end = self._starts[at + 1] if at + 1 < len(self._starts) else 1.0
        self._starts.insert(at + 1, (self._starts[at] + end) / 2)
        self.partitions.insert(at + 1, Partition(now))
        for pk in partition.keys:
            del self._of_key[pk]
        partition.keys = set()
        partition.hot_since = None
        self.splits += 1


class Services:
    """The table's rows and the bucket, shared by all processes, with counts of requests.

    Args:
        now: virtual time.
        seed: seed of the latencies.
        partitions: partitions of the table at the start of the job.
    """

    def __init__(self, now: Callable[[], float], seed: int, partitions: int) -> None:
        rng = random.Random(seed)
        self.now = now
        self.rows = LeanRows()
        self.table = Table(partitions)
        self.objects: dict[str, bytes] = {}
        self.puts, self.gets = Bucket(S3_PUTS), Bucket(S3_GETS)
        self.requests: Counter[str] = Counter()
        self.statements: Counter[str] = Counter()
        self.throttled: Counter[str] = Counter()
        #: The number of created objects, and when the last one was created.
        self.markers, self.marked_at = 0, 0.0
        self.given_up = 0
        self.read_units = 0.0
        self.fast = _latencies(rng, 0.005, 0.018)
        self.slow = _latencies(rng, 0.120, 0.400)
        self._sizes: dict[object, int] = {}

    def size(self, row: Row) -> int:
        """Bytes of a row as DynamoDB counts them; measured for one row of each state."""
        state = row.get("state")
        if state not in self._sizes:
            self._sizes[state] = item_bytes(row)
        return self._sizes[state]


class Client:
    """The access of one process to the services: latency, throttling, the SDK's retries.

    Args:
        services: shared by all processes.
        sleep: waits in virtual time.
        rng: random numbers for the backoff.
    """

    def __init__(
        self, services: Services, sleep: Callable[[float], None], rng: random.Random
    ) -> None:
        self._services = services
        self._sleep = sleep
        self._rng = rng
        self._quota = _QUOTA
        self.rows = SimRows(self, services)
        self.objects = SimObjects(self, services)

    def ask(
        self, admit: Callable[[], bool], act: Callable[[], T], wait: Iterator[float], what: str
    ) -> T:
        """One request: served at once and answered later, or throttled and retried."""
        held = 0
        for attempt in range(_TRIES):
            if admit():
                result = act()
                self._sleep(next(wait))
                self._quota = min(_QUOTA, self._quota + (held or 1))
                return result
            self._services.throttled[what] += 1
            self._sleep(next(wait))
            if attempt + 1 == _TRIES or self._quota < _REPEAT_COST:
                break
            self._quota -= _REPEAT_COST
            held = _REPEAT_COST
            self._sleep(self._rng.random() * min(2.0**attempt, _MOST_BACKOFF_S))
        self._services.given_up += 1
        raise Throttled(f"{what}: throttled")


class SimRows:
    """`ports.Rows` of one process."""

    def __init__(self, client: Client, services: Services) -> None:
        self._client, self._services = client, services

    def _admits(self, pk: str, *, write: bool) -> bool:
        services = self._services
        now = services.now()
        partition, _, _ = services.table.of(pk)
        if (partition.writes if write else partition.reads).admits(now):
            return True
        services.table.heat(partition, now)
        return False

    def _charge(self, pk: str, units: float, *, write: bool) -> None:
        now = self._services.now()
        partition, writes, reads = self._services.table.of(pk)
        (partition.writes if write else partition.reads).take(units, now)
        (writes if write else reads).take(units, now)
        if not write:
            self._services.read_units += units

    def _write(self, pk: str, name: str, act: Callable[[], T]) -> T:
        def served() -> T:
            self._charge(pk, 1.0, write=True)
            self._services.requests["dynamo_write"] += 1
            self._services.statements[name] += 1
            return act()

        return self._client.ask(
            lambda: self._admits(pk, write=True), served, self._services.fast, "write"
        )

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        def served() -> Row | None:
            self._charge(pk, 1.0 if consistent else 0.5, write=False)
            self._services.requests["dynamo_get"] += 1
            return self._services.rows.get(pk, sk)

        return self._client.ask(
            lambda: self._admits(pk, write=False), served, self._services.fast, "read"
        )

    def put_new(self, row: Row) -> Applied | Refused:
        return self._write(str(row["pk"]), "put_new", lambda: self._services.rows.put_new(row))

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        def act() -> Applied | Refused:
            result = self._services.rows.update(pk, sk, statement)
            if isinstance(result, Refused):
                self._services.statements[f"{statement.name} refused"] += 1
            return result

        return self._write(pk, statement.name, act)

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        def served() -> list[Row]:
            found = list(
                self._services.rows.query(pk, after=after, limit=limit, backwards=backwards)
            )
            size = self._services.size
            units = max(1, -(-sum(map(size, found)) // 4096)) * (1.0 if consistent else 0.5)
            self._charge(pk, units, write=False)
            self._services.requests["dynamo_query"] += 1
            return found

        return iter(
            self._client.ask(
                lambda: self._admits(pk, write=False), served, self._services.fast, "read"
            )
        )

    def delete(self, pk: str, sk: str) -> None:
        self._write(pk, "delete", lambda: self._services.rows.delete(pk, sk))


class SimObjects:
    """`ports.ObjectStore` of one process; only the methods that a worker uses.

    Only markers and sums have bodies; empty objects are not stored.
    """

    def __init__(self, client: Client, services: Services) -> None:
        self._client, self._services = client, services

    def _ask(self, bucket: Bucket, kind: str, act: Callable[[], T]) -> T:
        now = self._services.now

        def served() -> T:
            bucket.take(1.0, now())
            self._services.requests[kind] += 1
            return act()

        return self._client.ask(lambda: bucket.admits(now()), served, self._services.slow, kind)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        return self._ask(self._services.gets, "s3_get", lambda: self._services.objects.get(key))

    def put(self, key: str, body: bytes) -> None:
        def act() -> None:
            if body:
                self._services.objects[key] = body

        self._ask(self._services.puts, "s3_put", act)

    def put_new(self, key: str, body: bytes) -> bool:
        now = self._services.now

        def act() -> bool:
            if self._services.objects.setdefault(key, body) is not body:
                return False
            self._services.markers += 1
            self._services.marked_at = now()
            return True

        return self._ask(self._services.puts, "s3_put", act)

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"the simulated worker does not use {name}")


def item_bytes(row: Row) -> int:
    """A row's size by DynamoDB's rules: names, and values by their types."""
    return sum(len(name.encode()) + _value_bytes(value) for name, value in row.items())


def _value_bytes(value: Value) -> int:
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, int):
        return 1 + (len(str(abs(value))) + 1) // 2
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return 3 + sum(1 + _value_bytes(each) for each in value)
    return 3 + sum(1 + len(name.encode()) + _value_bytes(each) for name, each in value.items())


def _latencies(rng: random.Random, median: float, p99: float) -> Iterator[float]:
    sigma = math.log(p99 / median) / 2.326
    return itertools.cycle([rng.lognormvariate(math.log(median), sigma) for _ in range(_SAMPLES)])


def _hash(pk: str) -> float:
    return int.from_bytes(hashlib.blake2b(pk.encode(), digest_size=6).digest(), "big") / 2**48
