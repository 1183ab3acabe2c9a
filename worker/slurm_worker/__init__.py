"""The worker of airflow-slurm-provider and what a handler's author imports.

Importing this package costs nothing: boto3 and pyarrow are imported by the modules
that use them.
"""

from slurm_worker.decorators import batch
from slurm_worker.errors import ErrorClass, FatalError, ItemError, RateLimited, UserError

__all__ = [
    "ErrorClass",
    "FatalError",
    "ItemError",
    "RateLimited",
    "UserError",
    "__version__",
    "batch",
]

__version__ = "0.1.0"
