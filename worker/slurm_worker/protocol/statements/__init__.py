"""Conditional updates of the table: each is one function."""
