"""A cluster in a process, for trying out only."""
