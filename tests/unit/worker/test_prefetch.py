"""Results are computed ahead of their reader, and never for nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event

import pytest

from slurm_worker.prefetch import prefetch


def test_results_come_in_order_with_their_inputs() -> None:
    assert list(prefetch(lambda n: n * n, range(50), window=7)) == [(n, n * n) for n in range(50)]


def test_inputs_that_fail_early_cancel_the_calls_that_wait() -> None:
    begun: list[int] = []
    running = Event()

    def compute(number: int) -> None:
        begun.append(number)
        running.set()
        time.sleep(0.2)  # time for the rest to be cancelled

    def inputs() -> Iterator[int]:
        yield from range(8)
        assert running.wait(20)
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        next(prefetch(compute, inputs(), window=20, threads=1))
    assert len(begun) < 8
