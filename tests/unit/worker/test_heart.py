"""A lease is let go when its items stand still, and not while they wait on purpose."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurm_worker.heart import Heart, Hold
from slurm_worker.journal import Journal
from slurm_worker.recorder import Recorder
from slurm_worker.tasks import Claimed
from tests.unit.world import World, numbered


class NoThreads:
    """Starts nothing: the test beats."""

    def start(self, _function: Any) -> Any:
        return SimpleNamespace(result=lambda: None)

    def signal(self) -> Any:
        return SimpleNamespace(set=lambda: None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.plan(numbered(10))
    return made


def beat_until_stalled(world: World, recorder: Recorder, *, waiting: bool) -> Hold:
    """A hold whose items finish nothing for longer than the stall limit."""
    heart = Heart(world.table, world.clock, random.Random(1), world.logger, NoThreads(), recorder)
    claimed = world.table.claim(world.task_rows()[0], "w1")
    assert isinstance(claimed, Claimed)
    hold = heart.hold(claimed.lease)
    checkpoints: Any = SimpleNamespace(due=lambda _since: False)
    hold.start(Journal(world.scratch / "journal.sqlite"), checkpoints)
    for _ in range(3):
        world.clock.advance(world.lease.stall_s / 2 + 1)
        if waiting:
            recorder.waits(world.clock.boot_time())
        heart._renew(hold)
    return hold


def test_items_that_stand_still_lose_their_lease(world: World) -> None:
    assert beat_until_stalled(world, Recorder(), waiting=False).lost


def test_items_that_wait_for_a_token_until_tomorrow_keep_their_lease(world: World) -> None:
    assert not beat_until_stalled(world, Recorder(), waiting=True).lost
