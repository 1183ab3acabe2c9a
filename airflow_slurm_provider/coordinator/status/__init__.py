"""The state of a job, for people and programs."""
