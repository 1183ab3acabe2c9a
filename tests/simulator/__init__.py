"""A seeded simulator of the whole protocol, with the real coordination code.

One seed is one run. Each worker has its own clock, and may pause, crash and start again. Requests
and replies may be lost or throttled. The worker's own code runs, one step at a time, in an order
and at times that depend on the seed. At the end the invariants are checked. The method is that of
FoundationDB's deterministic simulation (Zhou et al., SIGMOD 2021).

    python -m tests.simulator --seeds 10000
"""
