"""`make engines`: the edges' tests and a whole job on each pair of a table and a store.

    python -m tests.engines                  # all of them, one after the other
    python -m tests.engines --only dynalite  # those whose name has this in it

Prints a line for each engine; exits with 1 where one fails. Everything runs on loopback, on free
ports, and ends with the program.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.engines import flights, refusals
from tests.engines.flights import FlightsError, Laboratory
from tests.engines.poorer import Lack, poorer
from tests.engines.services import Endpoints, Store, Table, serving_all
from tests.engines.test_contracts import UNDER_TEST
from tests.stack.settings import ROOT, StackError

_CHECKSUMS_SETTING = "aws.checksums: when_required"
#: Tests of conditional writes, which a store without them can't pass.
_CONDITIONAL = "put_new or put_if"


@dataclass(frozen=True, slots=True)
class Engine:
    """A table and a store, and what a proxy before each takes away."""

    name: str  #: stable, for ``--only``
    table: Table
    store: Store
    table_lacks: tuple[Lack, ...] = ()
    store_lacks: tuple[Lack, ...] = ()

    @property
    def checksums(self) -> str | None:
        """The site's setting that the store needs."""
        return "when_required" if Lack.KNOWN_CHECKSUMS in self.store_lacks else None

    @property
    def title(self) -> str:
        """What it is, for people."""
        table, store = (
            _without(self.table, self.table_lacks),
            _without(self.store, self.store_lacks),
        )
        return f"{table}, {store}"

    def attempt(self, endpoints: Endpoints, digests: dict[str, str]) -> str:
        """Run everything; what was run. `digests` are those of the datasets, by engine.

        Raises:
            FlightsError: if something fails.
        """
        with self.laboratory(endpoints) as lab:
            tests = _run_contracts(self, lab)
            _run_doctor(self, lab)
            outcome = flights.run(lab, f"flights-{self.name}")
        digests[self.name] = outcome.digest
        if len({*digests.values()}) > 1:
            raise FlightsError(f"the dataset is not that of {next(iter(digests))}")
        return (
            f"{tests} contract tests, doctor, job of {flights.FLIGHTS:,} flights with "
            f"{outcome.rows:,} rows and {outcome.failed:,} failed items"
        )

    @contextmanager
    def laboratory(self, endpoints: Endpoints) -> Iterator[Laboratory]:
        """A site on this engine, with the proxies; all of it ends with the block."""
        with (
            TemporaryDirectory(prefix="engines-") as folder,
            poorer(endpoints.tables[self.table], self.table_lacks) as table,
            poorer(endpoints.stores[self.store], self.store_lacks) as store,
        ):
            yield Laboratory(
                Path(folder),
                table if self.table_lacks else endpoints.tables[self.table],
                store if self.store_lacks else endpoints.stores[self.store],
                self.checksums,
            )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Services that refuse all requests of workers from some moment on."""

    name: str  #: stable, for ``--only``
    lack: Lack

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"moto, for workers without {self.lack.value}"

    def attempt(self, endpoints: Endpoints, digests: dict[str, str]) -> str:
        """Run a job; what was run. Raises a FlightsError if something fails."""
        with TemporaryDirectory(prefix="engines-") as folder:
            refusals.run(endpoints, Path(folder), self.lack)
        code, _ = refusals.WORDS[self.lack]
        return (
            f"job of {refusals.ITEMS:,} items; its workers ended with exit code {code}, and status "
            "and logs --errors named the reason; a second submit completed it"
        )


ENGINES = (
    Engine("moto", Table.MOTO, Store.MOTO),
    Engine("dynalite", Table.DYNALITE, Store.SEAWEEDFS),
    Engine(
        "poor",
        *(Table.MOTO, Store.SEAWEEDFS),
        table_lacks=(Lack.DATE, Lack.OLD_ITEM, Lack.CHECKSUMS),
        store_lacks=(Lack.DATE, Lack.CHECKSUMS),
    ),
    Engine(
        "checksums",
        *(Table.DYNALITE, Store.MOTO),
        table_lacks=(Lack.DATE, Lack.OLD_ITEM, Lack.CHECKSUMS),
        store_lacks=(Lack.KNOWN_CHECKSUMS,),
    ),
    Engine(
        "conditions",
        *(Table.MOTO, Store.SEAWEEDFS),
        store_lacks=(Lack.CONDITIONS, Lack.CALM),
    ),
    Refusal("credentials", Lack.CREDENTIALS),
    Refusal("clock", Lack.TIME),
)


def main() -> int:
    """Try the engines; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.engines", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    only = parser.parse_args().only
    chosen = [engine for engine in ENGINES if only in engine.name]
    if not chosen:
        parser.error(f"--only: no engine has {only!r} in its name")
    try:
        with serving_all() as endpoints:
            return _try_all(chosen, endpoints)
    except StackError as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1


def _try_all(engines: Sequence[Engine | Refusal], endpoints: Endpoints) -> int:
    digests: dict[str, str] = {}
    failed = 0
    for engine in engines:
        began = time.monotonic()
        try:
            result = engine.attempt(endpoints, digests)
        except FlightsError as error:
            failed += 1
            result = f"FAILED: {error}"
        took_s = time.monotonic() - began
        print(f"engines: {engine.name} ({engine.title}): {result} ({took_s:.0f} s)", flush=True)
    print(f"engines: {len(engines) - failed} of {len(engines)} passed", flush=True)
    return 1 if failed else 0


def _run_contracts(engine: Engine, lab: Laboratory) -> int:
    """Run the edges' tests; return their number."""
    variables = {
        UNDER_TEST: engine.name,
        "AWS_ENDPOINT_URL_S3": lab.store,
        "AWS_ENDPOINT_URL_DYNAMODB": lab.table,
        **({"AWS_REQUEST_CHECKSUM_CALCULATION": engine.checksums} if engine.checksums else {}),
        **({"AWS_RESPONSE_CHECKSUM_VALIDATION": engine.checksums} if engine.checksums else {}),
    }
    left_out = ["-k", f"not ({_CONDITIONAL})"] if Lack.CONDITIONS in engine.store_lacks else []
    suite = "tests/engines/test_contracts.py"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out, suite],
        cwd=ROOT,
        env={**lab.environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", ended.stdout)
    if ended.returncode or passed is None or "skipped" in ended.stdout:
        raise FlightsError(f"contract tests:\n{ended.stdout}{ended.stderr}")
    return int(passed[1])


def _run_doctor(engine: Engine, lab: Laboratory) -> None:
    """`slurmctl doctor` finds nothing that hinders jobs, and names the setting that is needed."""
    lab.done("doctor")
    if engine.checksums is None:
        return
    site = lab.folder / "without.yaml"
    site.write_text(lab.write_site(checksums=None).read_text())
    lab.write_site()
    ended = lab.slurmctl("doctor", "--no-node", "--site", site)
    if ended.returncode == 0 or _CHECKSUMS_SETTING not in ended.stdout:
        raise FlightsError(f"doctor does not name {_CHECKSUMS_SETTING}:\n{ended.stdout}")


def _without(service: Table | Store, lacks: tuple[Lack, ...]) -> str:
    return (
        f"{service.value} without {', '.join(lack.value for lack in lacks)}"
        if lacks
        else service.value
    )


if __name__ == "__main__":
    sys.exit(main())
