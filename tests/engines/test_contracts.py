"""The clients of the table and of the store keep the edges' promises on the engine under test.

`make engines` runs this file once for each engine, whose endpoints are in the SDK's variables.
"""

from __future__ import annotations

import os
import uuid

import pytest

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.s3 import S3Objects, s3_client
from tests.contracts.objects import ObjectStoreContract
from tests.contracts.rows import RowsContract
from tests.stack.settings import BUCKET, TABLE

#: The variable with which `make engines` says that there is an engine to test.
UNDER_TEST = "ENGINE_UNDER_TEST"

pytestmark = pytest.mark.skipif(UNDER_TEST not in os.environ, reason="make engines runs it")


class TestTable(RowsContract):
    @pytest.fixture
    def rows(self) -> DynamoRows:
        return DynamoRows(dynamo_client(), TABLE, AwsClock())

    @pytest.fixture
    def pk(self) -> str:
        return f"TEST#{uuid.uuid4().hex}"


class TestStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self) -> S3Objects:
        return S3Objects(s3_client(), BUCKET)

    @pytest.fixture
    def folder(self) -> str:
        return f"test/{uuid.uuid4().hex}/"
