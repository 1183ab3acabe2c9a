"""Example backfills on real data. Copy what you need."""
