"""Which items are new, among any number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airflow_slurm_provider.coordinator.inputs.known_items import KnownItems

ITEMS = st.dictionaries(st.text(max_size=2), st.integers(0, 2), max_size=30)


@given(ITEMS, ITEMS)
def test_the_comparison_agrees_with_dicts(known: dict[str, int], items: dict[str, int]) -> None:
    old = [(key, {"n": value}) for key, value in known.items()]
    new = [(key, {"n": value}) for key, value in items.items()]
    with KnownItems() as found:
        found.compare(old, new)
        assert [key for key, _ in found.new_items(new)] == [
            key for key in items if key not in known
        ]
        assert found.new == len(items.keys() - known.keys())
        assert found.changed == sum(known[key] != items[key] for key in items.keys() & known.keys())


def test_many_items_are_compared() -> None:
    old = [(f"k{n}", {"n": n}) for n in range(50_000)]
    new = [(f"k{n}", {"n": n}) for n in range(100_000)]
    with KnownItems() as found:
        found.compare(old, new)
        assert (found.new, found.changed) == (50_000, 0)
        assert list(found.new_items(new)) == new[50_000:]
