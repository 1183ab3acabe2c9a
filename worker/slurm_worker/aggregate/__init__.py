"""One Parquet dataset from the parts of a job, or from files without a job. Needs pyarrow."""

from slurm_worker.aggregate.dataset.folder import DataFile
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job.aggregation import aggregate
from slurm_worker.aggregate.job.plan import RoundSummary
from slurm_worker.aggregate.job.publish import Manifest
from slurm_worker.aggregate.node import Split, split
from slurm_worker.aggregate.options import AggregateOptions

__all__ = [
    "AggregateOptions",
    "AggregationError",
    "DataFile",
    "Manifest",
    "RoundSummary",
    "Split",
    "aggregate",
    "split",
]
