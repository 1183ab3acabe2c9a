"""The files of a dataset: their names, order, partition folders, and writing them as Parquet."""
