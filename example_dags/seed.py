"""Put the examples' inputs on S3: ``python -m example_dags.seed --prefix s3://lab/input``.

The usual AWS environment variables set the S3 endpoint and the credentials. Inputs that exist
are not changed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json

import boto3
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.config import Config
from botocore.exceptions import ClientError
from pyarrow import csv

from example_dags.nycflights import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", default="s3://lab/input")
    bucket, _, folder = parser.parse_args().prefix.removeprefix("s3://").partition("/")
    s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    makers = {
        "flights.parquet": flights,
        "planes.jsonl": planes,
        "weather.csv.gz": lambda: reference(
            "weather", ["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]
        ),
        "airports.csv.gz": lambda: reference("airports", ["faa", "lat", "lon"]),
    }
    for name, make in makers.items():
        key = f"{folder.strip('/')}/{name}"
        if not _exists(s3, bucket, key):
            s3.put_object(Bucket=bucket, Key=key, Body=make())


def flights() -> bytes:
    """Every flight, with a key made of hour, carrier, flight number and origin."""
    rows = table("flights")
    parts = [
        pc.utf8_slice_codeunits(rows["time_hour"], 0, 13),
        rows["carrier"],
        rows["flight"].cast(pa.string()),
        rows["origin"],
    ]
    out = io.BytesIO()
    pq.write_table(
        rows.add_column(0, "flight_id", pc.binary_join_element_wise(*parts, "-")),
        out,
        compression="zstd",
        row_group_size=50_000,
    )
    return out.getvalue()


def planes() -> bytes:
    """The tail numbers of the planes to fetch."""
    numbers = table("planes")["tailnum"].to_pylist()
    return "".join(json.dumps({"tailnum": each}) + "\n" for each in numbers).encode()


def reference(name: str, columns: list[str]) -> bytes:
    """A table that handlers read on the nodes, where there is no pyarrow."""
    out = io.BytesIO()
    csv.write_csv(table(name).select(columns), out)
    return gzip.compress(out.getvalue(), mtime=0)


def _exists(s3, bucket: str, key: str) -> bool:  # type: ignore[no-untyped-def]  # boto3's own class
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    return True


if __name__ == "__main__":
    main()
