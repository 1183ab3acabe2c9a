"""The table's rows rebuilt from S3, where rows were lost or don't say what a marker decided.

| row | rebuilt from |
| --- | --- |
| job | the newest ``config/<sha256>.json`` of the input that its first round's draft is of |
| round | the draft whose slices its markers were made from |
| task | its slice of a segment; its marker, if it has one: then it is done by that |
| half of a bisected task | the marker of the whole, and its own |
| submission | the names of its workers' logs |

The job's row comes last, when all else is there and agrees: without it, nobody plans another
input under a name that has results. What is right is left as it is, so that a second call finds
nothing to do. A task without a marker is ready again, from the last attempt that left an object.
Leases, tries, the reasons of failed tasks, the audit trail and the tokens of submissions are in
the table alone.

Requests: a query per page of rows, a list per thousand markers; where rows are missing a GET
per segment; per row that is brought right one GET and two writes.
"""

from airflow_slurm_provider.coordinator.maintenance.repair.job import repair
from airflow_slurm_provider.coordinator.maintenance.repair.report import Repaired

__all__ = ["Repaired", "repair"]
