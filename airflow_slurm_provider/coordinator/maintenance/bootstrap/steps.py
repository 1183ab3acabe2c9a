"""The steps of `bootstrap`, its clients, and the translation of their errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from botocore.exceptions import ClientError

from airflow_slurm_provider.coordinator.services import open_session
from airflow_slurm_provider.coordinator.spec.site import Site
from slurm_worker.backends.dynamodb import dynamo_client
from slurm_worker.backends.errors import UNANSWERED, code_of, refused, unanswered
from slurm_worker.backends.s3 import s3_client
from slurm_worker.errors import ServiceError

#: Error codes of services other than AWS's for a setting that they don't have.
_UNKNOWN = {"NotImplemented", "MethodNotAllowed", "UnknownOperationException", "501", "405"}

_ENDPOINT = "the endpoint in the site's aws section"
_PERMISSIONS = "the guide on setting up AWS lists the permissions of bootstrap"


class StepResult(str, Enum):
    """The result of a step."""

    THERE = "there"  #: it was correct already; nothing was done
    MADE = "made"  #: by this call
    WOULD_MAKE = "would_make"  #: a call without dry run makes it
    DIFFERS = "differs"  #: jobs run with it; only --update changes it
    UNSUPPORTED = "unsupported"  #: the store has no such setting, or can't apply it
    MISSING = "missing"  #: jobs can't run, and this call was not told to make it
    UNFIT = "unfit"  #: jobs can't run with it, and it can't be changed


@dataclass(frozen=True, slots=True)
class Step:
    """One resource or setting, by its stable name; `fix` is empty where all is well."""

    name: str
    outcome: StepResult
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        outcome = self.outcome.value
        return {"name": self.name, "outcome": outcome, "found": self.found, "mend": self.fix}


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """All steps, in their order."""

    steps: tuple[Step, ...]
    dry_run: bool

    @property
    def ok(self) -> bool:
        """Whether jobs can run with what is there, or would be."""
        unusable = (StepResult.MISSING, StepResult.UNFIT)
        return all(step.outcome not in unusable for step in self.steps)

    @property
    def counts(self) -> dict[str, int]:
        """Number of steps by result."""
        counts = Counter(step.outcome for step in self.steps)
        return {outcome.value: counts[outcome] for outcome in StepResult}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "ok": self.ok,
            "dry_run": self.dry_run,
            "counts": self.counts,
            "steps": [step.to_dict() for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class BootstrapRequest:
    """The request: what to create beside the table."""

    bucket: bool = False  #: create the bucket where there is none
    point_in_time: bool = False  #: the table can be restored to any second of the last 35 days
    deletion_protection: bool = False  #: the table can't be deleted by mistake
    update: bool = False  #: also change what is there and differs
    dry_run: bool = False  #: do nothing

    def settle(
        self,
        what: str,
        name: str,
        good: Callable[[], bool],
        make: Callable[[], object],
        texts: tuple[str, str],
        *,
        new: bool,
    ) -> Step:
        """Check one setting, and make it where the request allows that.

        Args:
            what: the resource, for errors.
            name: the step's.
            good: whether the setting is correct; not called for a `new` resource.
            make: makes it so.
            texts: the state if it is correct, and if it is not.
            new: the resource was made by this call, so that nobody else has set it.
        """
        as_wanted, otherwise = texts
        try:
            with translated(what):
                if not new and good():
                    return Step(name, StepResult.THERE, as_wanted)
                if not new and not self.update:
                    fix = "slurmctl bootstrap --update changes it"
                    return Step(name, StepResult.DIFFERS, otherwise, fix)
                if self.dry_run:
                    return Step(name, StepResult.WOULD_MAKE, as_wanted)
                make()
        except Unsupported as error:
            return Step(name, StepResult.UNSUPPORTED, error.problem, error.fix)
        return Step(name, StepResult.MADE, as_wanted)


class Unsupported(ServiceError):
    """The service does not have the setting, or can't apply it; `problem` is the state."""


@dataclass(frozen=True, slots=True)
class Clients:
    """boto3's, of DynamoDB and S3; untyped, as they are given the definition's plain data."""

    dynamodb: Any
    s3: Any


def open_clients(site: Site) -> Clients:
    """Those of a site, not connected; raises a UserError if its profile or region is not there."""
    session = open_session(site)
    return Clients(
        dynamo_client(session, site.aws.dynamodb_endpoint_url),
        s3_client(session, site.aws.s3_endpoint_url, site.aws.checksums),
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate the SDK's errors to this project's.

    Raises:
        Unsupported: if the service has no such setting; one that is raised inside stays.
        ServiceError: if it can't be reached, or refuses.
    """
    try:
        yield
    except ClientError as error:
        if code_of(error) in _UNKNOWN:
            raise Unsupported(f"{what}: the service has no such setting") from error
        raise refused(what, error, _ENDPOINT, _PERMISSIONS) from error
    except UNANSWERED as error:
        raise unanswered(what, error, "the site's aws section and the network") from error
