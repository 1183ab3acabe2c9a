"""The life of a worker process on a node."""
