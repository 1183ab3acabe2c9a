"""Real work of some tens of microseconds: a chain of SHA-256, and how long the CPU took for it."""

import hashlib
import time

ROUNDS = 150


def chain(key, rounds=ROUNDS):
    """The end of a chain of digests that begins with the key."""
    digest = key.encode()
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    return digest.hex()[:16]


def handle(item, context):
    began = time.thread_time_ns()
    end = chain(item["id"])
    return {"chain": end, "cpu_ns": time.thread_time_ns() - began}
