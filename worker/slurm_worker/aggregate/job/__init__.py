"""Merging the parts of a job, with proof that every item is there, and publishing them."""
