"""A seeded simulator of the whole protocol, over the real coordination code.

One seed is one run: workers with clocks of their own that pause, crash and are started
again, requests and replies that are lost, throttling. The worker's own code runs, one
step at a time, in an order and at times that the seed decides; then the invariants are
checked. After FoundationDB's deterministic simulation (Zhou et al., SIGMOD 2021).

    python -m tests.simulator --seeds 10000
"""
