"""One suite per edge, run over every implementation of it."""
