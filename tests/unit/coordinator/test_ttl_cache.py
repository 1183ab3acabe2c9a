from __future__ import annotations

import gc
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_slurm_provider.coordinator.ttl_cache import TTLCache


class Answer:
    """Something that can be referred to weakly."""


def test_a_young_answer_is_not_queried_again() -> None:
    now = 0.0
    cache: TTLCache[int] = TTLCache(clock=lambda: now)
    queried: list[float] = []

    def query() -> int:
        queried.append(now)
        return len(queried)

    assert [cache.get("a", 5.0, query) for _ in range(3)] == [1, 1, 1]
    now = 6.0
    assert cache.get("a", 5.0, query) == 2
    assert cache.get("b", 5.0, query) == 3


def test_threads_that_want_the_same_answer_share_one_query() -> None:
    cache: TTLCache[int] = TTLCache()
    queried: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def query() -> int:
        queried.append(1)
        begun.set()
        assert go_on.wait(10)
        return len(queried)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.get, "a", 60.0, query)
        assert begun.wait(10)
        others = [pool.submit(cache.get, "a", 60.0, query) for _ in range(7)]
        assert cache.get("b", 60.0, lambda: 7) == 7, "another key waits for nobody"
        go_on.set()
        assert {first.result(10), *(other.result(10) for other in others)} == {1}
    assert queried == [1]


def test_an_answer_that_nobody_has_wanted_for_an_hour_is_dropped() -> None:
    now = 0.0
    cache: TTLCache[Answer] = TTLCache(clock=lambda: now)
    kept: weakref.WeakValueDictionary[str, Answer] = weakref.WeakValueDictionary()
    for at, key in ((0.0, "a"), (0.0, "b"), (3_000.0, "b"), (3_700.0, "c")):
        now = at
        kept[key] = cache.get(key, math.inf, Answer)
    gc.collect()
    assert set(kept) == {"b", "c"}


def test_the_answer_that_was_wanted_longest_ago_makes_room() -> None:
    cache: TTLCache[int] = TTLCache(math.inf, most=2)
    for key, answer in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        cache.get(key, math.inf, lambda answer=answer: answer)  # type: ignore[misc]
    assert cache.get("a", math.inf, lambda: 5) == 1
    assert cache.get("b", math.inf, lambda: 6) == 6


def test_an_error_is_not_remembered() -> None:
    cache: TTLCache[int] = TTLCache()

    def fail() -> int:
        raise LookupError

    with pytest.raises(LookupError):
        cache.get("a", 5.0, fail)
    assert cache.get("a", 5.0, lambda: 1) == 1
