"""A published dataset for its readers: its files on local disk, and its rows by SQL."""
