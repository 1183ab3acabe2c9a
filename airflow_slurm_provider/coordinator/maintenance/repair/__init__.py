"""Rebuilds the table's rows from S3, where rows were lost or disagree with a marker.

| row | rebuilt from |
| --- | --- |
| job | the newest ``config/<sha256>.json`` of the input that its first round's draft is of |
| round | the draft whose slices its markers were made from |
| task | its slice of a segment; its marker, which makes it done if it has one |
| half of a bisected task | the marker of the whole, and its own |
| submission | the names of its workers' logs |

The job's row comes last, when everything else is there and agrees. While it is missing, no other
input can be planned under a name that has results. Correct rows stay as they are, so a second call
finds nothing to do. A task without a marker is ready again, from the last attempt that left an
object. Leases, tries, the reasons of failed tasks, the audit log and the tokens of submissions are
in the table only, and are lost.

Requests: a query per page of rows, a list per thousand markers; where rows are missing a GET
per segment; per repaired row one GET and two writes.
"""

from airflow_slurm_provider.coordinator.maintenance.repair.context import RepairResult
from airflow_slurm_provider.coordinator.maintenance.repair.job import repair

__all__ = ["RepairResult", "repair"]
