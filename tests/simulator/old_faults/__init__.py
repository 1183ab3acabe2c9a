"""The faults that a review of an earlier release found, each put back on purpose.

They were found by people and are repaired. Put back, the simulator finds each within 1,000 seeds.
`NOT_REACHED` says which parts it can't reach, and why.

    python -m tests.simulator.old_faults
"""

from tests.simulator.old_faults.arrays import ARRAY_FAULTS
from tests.simulator.old_faults.datasets import DATASET_FAULTS
from tests.simulator.old_faults.fault import OldFault
from tests.simulator.old_faults.plans import PLAN_FAULTS
from tests.simulator.old_faults.workers import WORKER_FAULTS

OLD_FAULTS: tuple[OldFault, ...] = (
    *WORKER_FAULTS,
    *ARRAY_FAULTS,
    *PLAN_FAULTS,
    *DATASET_FAULTS,
)

#: What the simulator has no part for, with the reason.
NOT_REACHED = {
    "a batch array of Airflow that was failed for another job's state": (
        "the simulator has no Airflow; tests/unit/airflow tries its operators"
    ),
}
