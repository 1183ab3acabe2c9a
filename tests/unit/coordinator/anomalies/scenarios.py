"""Jobs that run well, and jobs that don't, for recording: each as a `Plan`.

The name says what must be reported: the part before the dot is the kind, or ``good``.
"""

from __future__ import annotations

from airflow_slurm_provider.coordinator.spec.job_spec import LimitSection
from tests.unit.coordinator.anomalies.fleet import FOREVER, Plan

API = {"api": LimitSection(rate=10)}
QUOTA = {"api": LimitSection(rate=10, quota_per_day=3000)}
#: Of `ManualClock`, in microseconds.
_EPOCH_US = 1_700_000_000_000_000


def _limit(t: float, rate: float, used: float, ahead: float = 3.0) -> dict[str, int]:
    tat = _EPOCH_US + int((t + ahead) * 1e6)
    return {"rate": int(rate * 1000), "tat": tat, "epoch": 0, "used": int(used)}


GOOD = {
    "good.plain": Plan(seed=11),
    "good.heavy-tailed": Plan(spread=1.0, seed=12),
    "good.alike": Plan(spread=0.02, seed=13),
    "good.small": Plan(tasks=12, workers=4, seed=14),
    "good.one-worker": Plan(tasks=60, workers=1, nodes=1, seed=15),
    "good.hundred-workers": Plan(tasks=1500, workers=100, nodes=10, seed=16),
    "good.slow-queue": Plan(workers=16, started_s=900.0, seed=17),
    "good.long-tasks": Plan(tasks=80, seconds=300.0, workers=8, interval_s=60.0, seed=18),
    "good.single-items": Plan(tasks=1500, bundle=1, seconds=4.0, spread=0.8, seed=19),
    "good.many-not-found": Plan(failing=lambda _n, _t: {"not_found": 0.3}, seed=20),
    "good.slower-by-and-by": Plan(tasks=500, slowness=lambda _w, _n, t: 1 + t / 4000, seed=21),
    "good.two-die": Plan(dies=lambda w, _n, t: w in (3, 6) and t > 300, seed=22),
    "good.limit-used": Plan(limits=API, limit_row=lambda t: _limit(t, 10, 9 * t), seed=23),
    "good.one-cut": Plan(
        limits=API, limit_row=lambda t: _limit(t, 7 if 300 < t < 400 else 10, 7 * t), seed=24
    ),
    "good.failures-now-and-then": Plan(
        failing=lambda _n, t: {"timeout": 0.06 if int(t / 120) % 3 == 0 else 0.02}, seed=25
    ),
    "good.as-dear-as-expected": Plan(dollars=0.06, seed=27),
    "good.a-slower-node": Plan(slowness=lambda _w, n, _t: 2 if n == "node2" else 1, seed=26),
}
BAD = {
    "stall.all-hang": Plan(
        slowness=lambda _w, _n, t: FOREVER if t > 400 else 1, most_s=1500.0, seed=31
    ),
    "stall.four-workers": Plan(
        workers=4, slowness=lambda _w, _n, t: FOREVER if t > 600 else 1, most_s=1800.0, seed=32
    ),
    "stall.from-the-first-task": Plan(
        slowness=lambda *_: FOREVER, most_s=2600.0, interval_s=30.0, seed=33
    ),
    "straggler.one-task": Plan(
        slowness=lambda w, _n, t: FOREVER if w == 4 and 300 < t < 345 else 1, most_s=1600.0, seed=34
    ),
    "straggler.the-last-task": Plan(
        tasks=200, slowness=lambda w, _n, t: 40 if w == 2 and t > 480 else 1, seed=35
    ),
    "straggler.of-many": Plan(
        tasks=900,
        workers=50,
        slowness=lambda w, _n, t: FOREVER if w == 17 and t > 200 else 1,
        most_s=900.0,
        seed=36,
    ),
    "throughput.three-times-slower": Plan(
        slowness=lambda _w, _n, t: 3 if t > 600 else 1, most_s=1600.0, seed=37
    ),
    "throughput.six-times-slower": Plan(
        tasks=900,
        workers=20,
        slowness=lambda _w, _n, t: 6 if t > 500 else 1,
        most_s=1300.0,
        seed=38,
    ),
    "throughput.half-is-left": Plan(
        tasks=600, slowness=lambda _w, _n, t: 2.6 if t > 700 else 1, most_s=2000.0, seed=39
    ),
    "error_rate.network": Plan(
        failing=lambda _n, t: {"network": 0.5 if t > 500 else 0.01}, seed=40
    ),
    "error_rate.a-fifth": Plan(
        failing=lambda _n, t: {"timeout": 0.2 if t > 600 else 0.02, "not_found": 0.1}, seed=41
    ),
    "error_rate.from-the-start": Plan(failing=lambda *_: {"auth": 0.95}, seed=42),
    "bad_node.fails-half": Plan(
        failing=lambda n, _t: {"network": 0.5 if n == "node2" else 0.01}, seed=43
    ),
    "bad_node.of-ten": Plan(
        tasks=900,
        workers=40,
        nodes=10,
        failing=lambda n, t: {"unknown": 0.9 if n == "node7" and t > 200 else 0.02},
        seed=44,
    ),
    "bad_node.loses-its-workers": Plan(
        tasks=600,
        workers=40,
        nodes=4,
        dies=lambda _w, n, t: n == "node3" and t > 200,
        seed=45,
    ),
    "lease_loss.most-die": Plan(dies=lambda w, _n, t: w < 8 and t > 400, most_s=1500.0, seed=46),
    "lease_loss.a-third-of-many": Plan(
        tasks=900, workers=60, nodes=6, dies=lambda w, _n, t: w % 7 < 2 and t > 150, seed=47
    ),
    "lease_loss.one-by-one": Plan(
        workers=24, nodes=6, dies=lambda w, _n, t: w < 12 and t > 200 + 15 * w, seed=48
    ),
    "no_progress.from-the-start": Plan(gives_back=lambda *_: True, most_s=600.0, seed=58),
    "no_progress.all-at-a-time": Plan(gives_back=lambda _w, _n, t: t > 300, most_s=1500.0, seed=59),
    "no_progress.on-one-node": Plan(
        gives_back=lambda _w, n, t: n == "node2" and t > 200, most_s=900.0, seed=60
    ),
    "limit_starved.cut": Plan(
        limits=API, limit_row=lambda t: _limit(t, 2.4 if t > 300 else 10, 9 * t), seed=49
    ),
    "limit_starved.slows-all": Plan(
        limits=API,
        limit_row=lambda t: _limit(t, 3.4 if t > 600 else 10, 9 * t),
        slowness=lambda _w, _n, t: 3 if t > 600 else 1,
        most_s=1800.0,
        seed=50,
    ),
    "limit_starved.quota": Plan(
        limits=QUOTA,
        limit_row=lambda t: _limit(t, 10, min(3000.0, 6 * t)),
        slowness=lambda _w, _n, t: FOREVER if t > 500 else 1,
        most_s=1800.0,
        seed=51,
    ),
    "limit_idle.three-percent": Plan(
        tasks=600, limits=API, limit_row=lambda t: _limit(t, 10, 0.3 * t, -1), seed=52
    ),
    "limit_idle.never-used": Plan(
        tasks=600, limits=API, limit_row=lambda t: _limit(t, 10, 0, -1), seed=53
    ),
    "cost.twice-the-estimate": Plan(dollars=0.1, seed=54),
    "cost.thrice-the-estimate": Plan(dollars=0.15, spread=1.0, seed=55),
}
