"""Airflow's REST API v2, as far as the demo and the end-to-end tests drive it.

Standard library only. One request per call, besides `follow`, which polls. The token is
fetched when first needed and again when it has expired.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

POLL_S = 0.5
ENDED = frozenset({"success", "failed"})


class AirflowApiError(Exception):
    """The API server can't be reached, or refused a request with `status`."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task instance: times in seconds since the epoch, None where not reached."""

    id: str
    task_id: str
    state: str
    try_number: int
    queued: float | None
    start: float | None
    end: float | None


@dataclass(frozen=True, slots=True)
class DagRun:
    """A DAG run with its task instances, in order of their start."""

    dag_id: str
    run_id: str
    state: str
    triggered: float | None
    start: float | None
    end: float | None
    tasks: tuple[TaskRun, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the run came to its end, well or not."""
        return self.state in ENDED

    def summary(self) -> str:
        """One line: each task's state."""
        tasks = ", ".join(f"{task.task_id} {task.state}" for task in self.tasks)
        return f"{self.dag_id}: {self.state}{f' ({tasks})' if tasks else ''}"


class AirflowApi:
    """A client of one API server.

    Args:
        url: where it listens, such as ``http://127.0.0.1:8080``.
        user: who logs in; empty where the server lets everybody in as an admin.
        password: of that user.
    """

    def __init__(self, url: str, user: str = "", password: str = "") -> None:
        self._url = url.rstrip("/")
        self._login = {"username": user, "password": password} if user else None
        self._token = ""

    @classmethod
    def of_stack(cls, environment: Mapping[str, str]) -> AirflowApi:
        """The client for the stack whose environment this is."""
        return cls(
            environment.get("AIRFLOW_API_URL", "http://127.0.0.1:8080"),
            environment.get("AIRFLOW_API_USER", ""),
            environment.get("AIRFLOW_API_PASSWORD", ""),
        )

    def wait_for_dag(self, dag_id: str, timeout: float = 120) -> None:
        """Wait until the DAG was parsed; fail with its import errors if there are any."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._call("GET", f"/api/v2/dags/{dag_id}")
                return
            except AirflowApiError as error:
                if error.status != 404:
                    raise
                if time.monotonic() > deadline:
                    raise AirflowApiError(
                        f"{error}; import errors: {self.import_errors() or 'none'}"
                    ) from error
            time.sleep(POLL_S)

    def import_errors(self) -> str:
        """What kept DAG files from being parsed."""
        found = self._call("GET", "/api/v2/importErrors")["import_errors"]
        return "; ".join(f"{each['filename']}: {each['stack_trace'][-500:]}" for each in found)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Unpause the DAG and start a run; return its id."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
        body = {"logical_date": datetime.now(timezone.utc).isoformat(), "conf": dict(conf or {})}
        run_id: str = self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"]
        return run_id

    def count(self, dag_id: str, run_id: str, state: str) -> int:
        """How many of the run's task instances are in a state."""
        where = f"{self._run_path(dag_id, run_id)}/taskInstances?limit=1&state={state}"
        return int(self._call("GET", where)["total_entries"])

    def end(self, dag_id: str, run_id: str) -> None:
        """Fail the run, and with it what still waits."""
        self._call("PATCH", self._run_path(dag_id, run_id), {"state": "failed"})

    def run(self, dag_id: str, run_id: str) -> DagRun:
        """The current state of the run."""
        where = self._run_path(dag_id, run_id)
        run = self._call("GET", where)
        tasks = self._call("GET", f"{where}/taskInstances?limit=100")["task_instances"]
        found = [
            TaskRun(
                id=each["id"],
                task_id=each["task_id"],
                state=each["state"] or "none",
                try_number=each["try_number"],
                queued=_seconds(each["queued_when"]),
                start=_seconds(each["start_date"]),
                end=_seconds(each["end_date"]),
            )
            for each in tasks
        ]
        found.sort(key=lambda task: (task.start is None, task.start or 0.0))
        return DagRun(
            dag_id=dag_id,
            run_id=run_id,
            state=run["state"],
            triggered=_seconds(run["queued_at"]),
            start=_seconds(run["start_date"]),
            end=_seconds(run["end_date"]),
            tasks=tuple(found),
        )

    def follow(
        self,
        runs: Mapping[str, str],
        *,
        timeout: float,
        changed: Callable[[DagRun], None] = lambda _: None,
    ) -> dict[str, DagRun]:
        """Poll runs (dag id: run id) until all have ended; `changed` hears of new states."""
        deadline = time.monotonic() + timeout
        last: dict[str, DagRun] = {}
        while True:
            for dag_id, run_id in runs.items():
                if dag_id in last and last[dag_id].ended:
                    continue
                now = self.run(dag_id, run_id)
                if dag_id not in last or last[dag_id].summary() != now.summary():
                    changed(now)
                last[dag_id] = now
            if all(run.ended for run in last.values()):
                return last
            if time.monotonic() > deadline:
                states = "; ".join(run.summary() for run in last.values())
                raise AirflowApiError(f"not ended after {timeout:.0f} s: {states}")
            time.sleep(POLL_S)

    def return_value(self, run: DagRun, task_id: str) -> Any:
        """What a task returned."""
        where = f"{self._run_path(run.dag_id, run.run_id)}/taskInstances/{task_id}"
        return self._call("GET", f"{where}/xcomEntries/return_value?deserialize=true")["value"]

    def links(self, run: DagRun, task_id: str) -> dict[str, str | None]:
        """Where a task's extra links lead, by their names."""
        where = f"{self._run_path(run.dag_id, run.run_id)}/taskInstances/{task_id}/links"
        found: dict[str, str | None] = self._call("GET", where)["extra_links"]
        return found

    def rendered(self, run: DagRun, task_id: str) -> dict[str, Any]:
        """A task's rendered templates."""
        where = f"{self._run_path(run.dag_id, run.run_id)}/taskInstances/{task_id}"
        found: dict[str, Any] = self._call("GET", where)["rendered_fields"]
        return found

    def clear(self, run: DagRun, *task_ids: str) -> None:
        """Have tasks of a run run again, as the UI's Clear does."""
        body = {
            "dag_run_id": run.run_id,
            "task_ids": list(task_ids),
            "dry_run": False,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self._call("POST", f"/api/v2/dags/{run.dag_id}/clearTaskInstances", body)

    def log_tail(self, run: DagRun, task: TaskRun, lines: int = 40) -> str:
        """The last lines of a task's log."""
        where = f"{self._run_path(run.dag_id, run.run_id)}/taskInstances/{task.task_id}"
        content = self._call("GET", f"{where}/logs/{task.try_number}?full_content=true")["content"]
        return "\n".join(_log_line(each) for each in content[-lines:])

    @property
    def token(self) -> str:
        """A bearer token of the user's."""
        self._token = self._token or self._new_token()
        return self._token

    def _run_path(self, dag_id: str, run_id: str) -> str:
        return f"/api/v2/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id, safe='')}"

    def _call(self, method: str, path: str, body: object | None = None) -> Any:
        if not self._token:
            self._token = self._new_token()
        try:
            return self._request(method, path, body, self._token)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                self._token = self._new_token()
                return self._request(method, path, body, self._token)
            detail = error.read().decode(errors="replace")[:500]
            raise AirflowApiError(f"{method} {path}: {error.code} {detail}", error.code) from error
        except OSError as error:
            raise AirflowApiError(f"{method} {self._url}{path}: {error}") from error

    def _new_token(self) -> str:
        method = "POST" if self._login else "GET"
        try:
            token: str = self._request(method, "/auth/token", self._login, "")["access_token"]
        except OSError as error:
            raise AirflowApiError(
                f"no token from {self._url}/auth/token: {error}; is the stack up (make stack-up)?"
            ) from error
        return token

    def _request(self, method: str, path: str, body: object | None, token: str) -> Any:
        request = urllib.request.Request(self._url + path, method=method)
        request.add_header("Accept", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read() or b"null")


def failing_tasks(run: DagRun) -> list[TaskRun]:
    """The tasks that failed by themselves, not for another's failure."""
    return [task for task in run.tasks if task.state == "failed"]


def _seconds(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _log_line(entry: object) -> str:
    """A log entry as people read it: what happened, and an error's type, text and frames."""
    if not isinstance(entry, dict):
        return str(entry)
    line = f"{entry.get('timestamp', '')} {entry.get('level', '')} {entry['event']}".strip()
    for error in entry.get("error_detail") or []:
        for frame in error["frames"]:
            line += f"\n    {frame['filename']}:{frame['lineno']} in {frame['name']}"
        line += f"\n  {error['exc_type']}: {error['exc_value']}"
    return line
