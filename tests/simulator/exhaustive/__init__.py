"""Small worlds of which every schedule is tried; ``python -m tests.simulator.exhaustive``."""
