"""Merging files without a job: JSON lines and SQLite databases."""
