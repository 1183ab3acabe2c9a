"""``python -m tests.stack up|down|status|with COMMAND…``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.stack import stack
from tests.stack.settings import ROOT, StackError
from tests.stack.state_folder import state_folder


def main() -> int:
    """Run one verb; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="bring the stack up; safe to repeat")
    verbs.add_parser("down", help="end everything that up has started")
    verbs.add_parser("status", help="a line per service; exit code 3 if the stack is not up")
    during = verbs.add_parser("with", help="run a command with the stack up; leave it as found")
    during.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        if arguments.verb == "up":
            return _up()
        if arguments.verb == "down":
            return _down()
        if arguments.verb == "status":
            return _status()
        return _during(arguments.command)
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1


def _up() -> int:
    began = time.monotonic()
    settings = stack.up(_say)
    _say(
        f"up in {time.monotonic() - began:.1f} s    end: make stack-down    "
        f"logs: {settings.state}/logs"
    )
    _say("slurmctl and its environment: . .stack/env")
    _say(f"Airflow: {settings.airflow_url} (user admin, password: $AIRFLOW_API_PASSWORD of it)")
    return 0


def _down() -> int:
    began = time.monotonic()
    stack.down(state_folder(ROOT), _say)
    _say(f"down in {time.monotonic() - began:.1f} s")
    return 0


def _status() -> int:
    state = state_folder(ROOT)
    for line in stack.report(state):
        print(line)
    problems = stack.problems(state)
    for problem in problems:
        print(f"stack: {problem}", file=sys.stderr)
    return 3 if problems else 0


def _during(command: list[str]) -> int:
    found_up = not stack.problems(state_folder(ROOT))
    try:
        if not found_up:
            _up()
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    finally:
        if not found_up:
            _down()


def _say(text: str) -> None:
    print(f"stack: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
