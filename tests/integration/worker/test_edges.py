"""DynamoDB's and S3's real clients keep the edges' promises, on the stack's services."""

from __future__ import annotations

import os
import uuid

import pytest

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.errors import ServiceError, UserError
from tests.contracts.objects import ObjectStoreContract
from tests.contracts.rows import RowsContract

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("stack")]


class TestDynamoRows(RowsContract):
    @pytest.fixture
    def rows(self) -> DynamoRows:
        return DynamoRows(dynamo_client(), "backfills", AwsClock())

    @pytest.fixture
    def pk(self) -> str:
        return f"TEST#{uuid.uuid4().hex}"

    def test_an_absent_table_is_the_users_mistake(self) -> None:
        rows = DynamoRows(dynamo_client(), "no-such-table", AwsClock())
        with pytest.raises(UserError, match=r"storage\.table: .*'no-such-table'"):
            rows.get("a", "b")
        with pytest.raises(UserError, match=r"storage\.table: .*'no-such-table'"):
            list(rows.query("a"))

    def test_an_unreachable_endpoint_is_named(self) -> None:
        client = dynamo_client(endpoint_url="http://127.0.0.1:1")
        with pytest.raises(ServiceError, match="dynamodb_endpoint_url"):
            DynamoRows(client, "backfills", AwsClock()).get("a", "b")

    def test_replies_set_the_clock(self, rows: DynamoRows) -> None:
        clock = AwsClock()
        DynamoRows(dynamo_client(), "backfills", clock).get("a", "b")
        assert abs(clock.now() - AwsClock().now()) < 2  # one machine: the clocks agree


class TestS3Objects(ObjectStoreContract):
    @pytest.fixture
    def objects(self) -> S3Objects:
        return S3Objects(s3_client(), os.environ.get("TEST_BUCKET", "lab"))

    @pytest.fixture
    def folder(self) -> str:
        return f"test/{uuid.uuid4().hex}/"

    def test_an_absent_bucket_is_the_users_mistake(self) -> None:
        with pytest.raises(UserError, match="no bucket 'no-such-bucket'"):
            S3Objects(s3_client(), "no-such-bucket").verify()
