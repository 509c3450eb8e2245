"""Words beside each other never touch, and stand as near as they can to what they tell of."""

from __future__ import annotations

import random

from minillm.charts.place import spread


def test_things_side_by_side_never_overlap_and_stay_where_they_are_wanted_if_they_can() -> None:
    """Catches a label pushed across the chart by one that is far away."""
    chance = random.Random(0)
    for _ in range(200):
        wanted = sorted(chance.uniform(-2, 12) for _ in range(chance.randint(1, 6)))
        sizes = [chance.uniform(0.1, 1.6) for _ in wanted]
        places = spread(wanted, sizes, 0, 10)
        ends = [(p - s / 2, p + s / 2) for p, s in zip(places, sizes, strict=True)]
        assert ends[0][0] >= -1e-9 and ends[-1][1] <= 10 + 1e-9
        assert all(a[1] <= b[0] + 1e-9 for a, b in zip(ends, ends[1:], strict=False))
    assert spread([1, 5, 5.5], [2, 1, 1], 0, 10) == [1, 5, 6]
    assert spread([8, 9.5], [2, 2], 0, 10) == [7, 9]
