"""Setting up, checking, repairing and cleaning."""
