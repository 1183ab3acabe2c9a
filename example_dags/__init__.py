"""Example backfills on real data, to copy from."""
