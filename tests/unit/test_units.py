from __future__ import annotations

import re

import pytest

from airflow_slurm_provider import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("200ms", 0.2),
        ("5m", 300.0),
        ("5 min", 300.0),
        ("1.5h", 5_400.0),
        ("7d", 604_800.0),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)
    assert re.fullmatch(units.DURATION, text)


@pytest.mark.parametrize(
    ("text", "rate"), [("40/s", 40.0), ("600/min", 10.0), ("600 / m", 10.0), ("36/h", 0.01)]
)
def test_a_rate_is_read_per_second(text: str, rate: float) -> None:
    assert units.parse_rate(text) == pytest.approx(rate)
    assert re.fullmatch(units.RATE, text)


@pytest.mark.parametrize(
    ("text", "quota"),
    [("600/min", (600, 60.0)), ("100/10s", (100, 10.0)), ("5000/h", (5_000, 3_600.0))],
)
def test_a_quota_is_read_as_calls_and_the_seconds_of_its_window(
    text: str, quota: tuple[int, float]
) -> None:
    assert units.parse_quota(text) == quota


def test_a_configured_size_counts_in_powers_of_1024() -> None:
    sizes = ["1KB", "500MB", "2 GB", "1TB"]
    assert [units.parse_size(size) for size in sizes] == [2**10, 500 * 2**20, 2**31, 2**40]
    assert all(re.fullmatch(units.SIZE, size) for size in sizes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1_800),
        ("1:30", 90),
        ("02:00:00", 7_200),
        ("1-00", 86_400),
        ("1-02:30", 95_400),
        ("1-00:00:01", 86_401),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: int) -> None:
    assert units.parse_slurm_time(text) == seconds
    assert units.parse_slurm_time(units.format_slurm_time(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "megabytes"), [("500", 500), ("2G", 2_048), ("1t", 1_048_576), ("1000K", 1)]
)
def test_memory_is_read_as_slurm_reads_it(text: str, megabytes: int) -> None:
    assert units.parse_slurm_memory(text) == megabytes


def test_sizes_and_cpu_times_of_the_accounting_are_0_where_there_are_none() -> None:
    sizes = ["4000K", "1.5G", "12", ""]
    assert [units.parse_accounted_size(size) for size in sizes] == [4_096_000, 3 * 2**29, 12, 0]
    times = ["1-00:00:01", "02:03.500", "UNLIMITED"]
    assert [units.parse_cpu_time(time) for time in times] == [86_401.0, 123.5, 0.0]


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (units.parse_duration, "soon", "'soon' is not a duration; write 30s, 200ms, 5m or 2h"),
        (units.parse_rate, "40", "'40' is not a rate; write 40/s, 600/min or 5000/h"),
        (units.parse_quota, "5/0s", "'5/0s' is not a quota; write 600/min, 100/10s or 5000/h"),
        (units.parse_size, "2 gigs", "'2 gigs' is not a size; write 500MB or 2GB"),
        (units.parse_slurm_time, "soon", "'soon' is not a time; write minutes"),
        (units.parse_slurm_memory, "2 gigs", "'2 gigs' is not a size; write 500M or 2G"),
    ],
)
def test_text_that_has_no_unit_is_refused_with_an_example(
    parse: object, text: str, message: str
) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse(text)


def test_a_duration_is_shown_as_a_clock_shows_it() -> None:
    shown = [units.format_duration(seconds) for seconds in (0.9, 61, 3_723, 90_061)]
    assert shown == ["0:00:00", "0:01:01", "1:02:03", "1 d 1:01:01"]


def test_a_duration_in_a_sentence_is_rounded() -> None:
    shown = [units.format_seconds(seconds) for seconds in (0.02, 4.24, 40, 720, 12_240)]
    assert shown == ["0.02 s", "4.2 s", "40 s", "12 min", "3.4 h"]


def test_files_are_shown_in_powers_of_1000_and_memory_in_powers_of_1024() -> None:
    sizes = (512, 23_400, 6_100_000, 1_500_000_000, 2_000_000_000_000_000)
    assert [units.format_size(size) for size in sizes] == [
        "512 B",
        "23.4 kB",
        "6.1 MB",
        "1.5 GB",
        "2,000.0 TB",
    ]
    assert [units.format_memory(size) for size in (2**19, 3 * 2**29)] == ["512.0 KiB", "1.5 GiB"]


def test_shares_and_counts_are_shown_for_a_person() -> None:
    assert [units.format_percent(share) for share in (0.042, 0.42)] == ["4.2 %", "42 %"]
    assert units.format_count(336_776) == "336,776"
    assert [units.format_count(n, "task") for n in (0, 1, 2_000)] == [
        "0 tasks",
        "1 task",
        "2,000 tasks",
    ]
