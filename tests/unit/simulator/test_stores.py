"""Simulated stores and credentials behave as their services may, and no worse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slurm_worker.errors import ExpiredCredentials, NoCredentials
from tests.simulator.stores.credentials import LIFETIME_S, Signer, Sts
from tests.simulator.stores.recent import Recent


def test_the_past_has_what_was_there_before_the_first_change_since() -> None:
    recent: Recent[str] = Recent()
    recent.note(1.0, "a", None)
    recent.note(2.0, "a", "one")
    recent.note(3.0, "b", "two")
    assert recent.since(0.0) == {"a": None, "b": "two"}
    assert recent.since(1.5) == {"a": "one", "b": "two"}
    assert recent.since(1.5, prefix="b") == {"b": "two"}
    assert recent.since(3.0) == {}


@pytest.fixture
def document() -> Callable[[float], bytes]:
    """What the coordinator puts on the cluster, minted at a time."""

    def minted(now: float) -> bytes:
        expires = Sts(lambda: now).assume_role()["Credentials"]["Expiration"]
        return f'{{"Expiration": "{expires.isoformat()}"}}'.encode()

    return minted


def test_a_worker_reads_renewed_credentials_when_its_own_have_expired(
    document: Callable[[float], bytes],
) -> None:
    files: dict[str, bytes] = {}
    time = 1000.0
    signer = Signer(files, lambda: time, lambda: time, lambda: None)
    with pytest.raises(NoCredentials):
        signer.check()
    files["jobs/j/credentials.json"] = document(time)
    signer.check()
    time += LIFETIME_S
    with pytest.raises(ExpiredCredentials):
        signer.check()
    files["jobs/j/credentials.json"] = document(time)
    signer.check()


def test_a_worker_whose_clock_is_slow_uses_expired_credentials_and_is_refused(
    document: Callable[[float], bytes],
) -> None:
    refused: list[str] = []
    time = 1000.0
    signer = Signer(
        {"jobs/j/credentials.json": document(time)},
        lambda: time - 60,
        lambda: time,
        lambda: refused.append("refused"),
    )
    signer.check()
    time += LIFETIME_S
    with pytest.raises(ExpiredCredentials):
        signer.check()
    assert refused == ["refused"]
