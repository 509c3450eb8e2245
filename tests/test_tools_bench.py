"""What all benches share: rounds, ratios, tables."""

from __future__ import annotations

from minillm.tools.bench import ratios, rounds, spread, table


def test_rounds_take_turns_and_the_first_one_is_not_counted():
    """Catches ways measured one after the other, where a busy minute hits only one of them."""
    order, told = [], []

    def way(name):
        return lambda: order.append(name) or len(order)

    found = rounds({"a": way("a"), "b": way("b")}, 2, lambda *step: told.append(step))
    assert order == ["a", "b"] * 3 and told == [(0, 2), (1, 2), (2, 2)]
    assert found == {"a": [3, 5], "b": [4, 6]}


def test_ratios_are_taken_within_a_round():
    """Catches a median over a median: a machine that was busy for one round would show."""
    assert ratios([0.5, 5.0, 0.5], [1.0, 10.0, 1.0]) == [0.5, 0.5, 0.5]


def test_a_value_comes_with_its_spread():
    """Catches a mean, which one bad round moves, and bounds that change places."""
    assert spread([100.0, 1300.0, 200.0]) == "200.0 (100.0 … 1,300.0)"


def test_columns_of_a_table_line_up():
    """Catches a row whose long name pushes its numbers under another head."""
    rows = table([["", "GB/s"], ["a long name", "1.0"], ["b", ""]]).splitlines()
    assert rows == ["              GB/s", "a long name    1.0", "b"]
