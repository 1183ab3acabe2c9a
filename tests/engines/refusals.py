"""Workers whose credentials expire, or whose clock is wrong, while they run: what the user sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.engines.flights import FlightsError, Laboratory, write_yaml
from tests.engines.poorer import Lack, poorer
from tests.engines.services import Endpoints, Store, Table
from tests.stack.process import wait_until

ITEMS, WORKERS = 400, 2
_HANDLER = """
import time

def handle(item, context):
    time.sleep(0.2)
    return {"n": item["n"]}
"""
_TIMEOUT_S = 180.0
#: What `status` and `logs --errors` must say of the workers, by what they lack.
WORDS = {
    Lack.CREDENTIALS: ("77", "AWS credentials on the node were missing or had expired"),
    Lack.TIME: ("78", "the node's clock was wrong"),
}


def run(endpoints: Endpoints, folder: Path, lack: Lack) -> None:
    """Run a job whose workers are refused from some moment on, until they are accepted again.

    Raises:
        FlightsError: if the reason is not named, or the job does not complete afterwards.
    """
    table, store = endpoints.tables[Table.MOTO], endpoints.stores[Store.MOTO]
    lacks: set[Lack] = set()
    job_id = f"refused-{lack.name.lower()}"
    user = Laboratory(folder, table, store)
    with poorer(table, lacks) as poor_table, poorer(store, lacks) as poor_store:
        # Workers keep the endpoints with which they were submitted.
        nodes = replace(user, table=poor_table, store=poor_store)
        nodes.done("submit", _write_config(folder, job_id))
        _wait("a task is leased", lambda: _status(user, job_id)["tasks"].get("leased", 0) > 0)
        lacks.add(lack)
        _wait("no worker is left", lambda: bool(_status(user, job_id)["problem"]))
        _check_words(user, job_id, lack)
        lacks.clear()
        nodes.done("submit", folder / "config.yaml", "--wait")
    progress = _status(user, job_id)
    if not progress["complete"] or progress["ok"] != ITEMS or progress["task_errors"]:
        raise FlightsError(f"{job_id}: not all items are ok: {progress}")


def _check_words(user: Laboratory, job_id: str, lack: Lack) -> None:
    code, words = WORDS[lack]
    status = user.done("status", job_id)
    logs = user.done("logs", job_id, "--errors")
    for name, said in (("status", status), ("logs --errors", logs)):
        if words not in said or f"{code}:0" not in said:
            raise FlightsError(f"{name} does not say {words!r} and {code}:\n{said}")


def _write_config(folder: Path, job_id: str) -> Path:
    lines = [json.dumps({"id": f"k{n}", "n": n}) for n in range(ITEMS)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "handler.py").write_text(_HANDLER)
    config = {
        "job_id": job_id,
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": 20,
        "workers": WORKERS,
        "handler": {"entry": "handler:handle", "code": "."},
        # Of leases that nobody could give back.
        "lease": {"ttl": "10s", "heartbeat": "2s", "margin": "1s"},
    }
    return write_yaml(folder / "config.yaml", config)


def _status(user: Laboratory, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(user.done("status", job_id, "--json"))
    return found


def _wait(what: str, happens: Callable[[], bool]) -> None:
    if not wait_until(happens, _TIMEOUT_S, every=0.5):
        raise FlightsError(f"{what}: did not happen in {_TIMEOUT_S:g} s")
