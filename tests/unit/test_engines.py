"""The clients keep the edges' promises also on a table and a store that lack what AWS's have.

`make engines` does the same with other tables and stores, and runs a whole job on each.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import boto3
import pytest

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.errors import WrongSetting
from slurm_worker.protocol.job_store import probe_conditional_put
from slurm_worker.protocol.ports import Applied, Refused
from tests.contracts.objects import ObjectStoreContract
from tests.contracts.rows import RowsContract
from tests.engines.poorer import Lack, poorer
from tests.engines.services import serving_moto
from tests.stack.settings import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, TABLE


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """A table and a store in a process of their own."""
    with serving_moto() as url:
        yield url


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    return boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)


@pytest.fixture(scope="module")
def poor_table(moto: str) -> Iterator[str]:
    with poorer(moto, [Lack.DATE, Lack.OLD_ITEM, Lack.CHECKSUMS]) as url:
        yield url


@pytest.fixture(scope="module")
def poor_store(moto: str) -> Iterator[str]:
    with poorer(moto, [Lack.DATE, Lack.CHECKSUMS, Lack.CALM]) as url:
        yield url


@pytest.fixture
def proxies() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class TestPoorTable(RowsContract):
    @pytest.fixture
    def rows(self, poor_table: str, session: boto3.Session) -> DynamoRows:
        return DynamoRows(dynamo_client(session, poor_table), TABLE, AwsClock())

    @pytest.fixture
    def pk(self) -> str:
        return f"TEST#{uuid.uuid4().hex}"

    def test_without_dates_the_time_is_this_machines(self, rows: DynamoRows, pk: str) -> None:
        clock = AwsClock()
        before = clock.now()
        assert isinstance(rows.put_new({"pk": pk, "sk": "a"}), Applied)
        assert isinstance(rows.put_new({"pk": pk, "sk": "a"}), Refused)
        assert 0 <= clock.now() - before < 60


class TestPoorStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self, poor_store: str, session: boto3.Session) -> S3Objects:
        return S3Objects(s3_client(session, poor_store), BUCKET)

    @pytest.fixture
    def folder(self) -> str:
        return f"test/{uuid.uuid4().hex}/"


def test_a_store_that_answers_501_to_conditions_is_one_in_which_the_table_decides(
    moto: str, session: boto3.Session, proxies: ExitStack
) -> None:
    url = proxies.enter_context(poorer(moto, [Lack.CONDITIONS]))
    objects = S3Objects(s3_client(session, url), BUCKET)
    assert not probe_conditional_put(objects, f"test/{uuid.uuid4().hex}")
    assert probe_conditional_put(
        S3Objects(s3_client(session, moto), BUCKET), f"test/{uuid.uuid4().hex}"
    )


def test_a_store_that_refuses_checksums_works_with_the_setting_and_names_it_without(
    moto: str, session: boto3.Session, proxies: ExitStack
) -> None:
    url, key = proxies.enter_context(poorer(moto, [Lack.KNOWN_CHECKSUMS])), uuid.uuid4().hex
    with pytest.raises(WrongSetting, match=r"aws\.checksums: when_required"):
        S3Objects(s3_client(session, url), BUCKET).put(key, b"x")
    objects = S3Objects(s3_client(session, url, "when_required"), BUCKET)
    objects.put(key, b"x")
    assert objects.get(key) == b"x"
    objects.delete_many([key])
    assert objects.get(key) is None
