"""Five million items on the development stack, from a Parquet file to a published dataset."""
