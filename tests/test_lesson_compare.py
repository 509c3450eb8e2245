"""compare and Comparison: the sentence is true of the samples, whichever way they came out."""

from __future__ import annotations

from itertools import count

import pytest

from minillm.errors import ConfigError
from minillm.lesson import Comparison, compare

COLD, WARM = [0.048, 0.047, 0.049, 0.048, 0.048], [0.012, 0.0121, 0.0119, 0.012, 0.012]


def test_the_sentence_begins_with_the_faster_whichever_it_is() -> None:
    """Catches a sentence written for the machine of its writer."""
    one = Comparison({"cold": COLD, "warm": WARM}, unit="ms").sentence
    assert one == "warm took 12.0 ms; cold took 48.0 ms, 4.0 × as long (3.9 to 4.1)"
    other = Comparison({"cold": WARM, "warm": COLD}, unit="ms", what="one load").sentence
    assert other == "one load: cold took 12.0 ms; warm took 48.0 ms, 4.0 × as long (3.9 to 4.1)"


@pytest.mark.parametrize("samples", [
    {"a": [1.0, 1.4, 0.8], "b": [1.2, 0.9, 1.5]}, {"b": [1.2, 0.9, 1.5], "a": [1.0, 1.4, 0.8]},
    {"a": [1.0, 1.0, 1.0], "b": [0.9, 1.2, 1.3]}, {"a": [1.0] * 3, "b": [0.9, 1.01, 3.0, 3.0]},
])  # fmt: skip
def test_noise_larger_than_the_difference_is_said(samples) -> None:
    """Catches a winner named by chance: medians always differ by something."""
    result = Comparison(samples)
    assert result.faster("a", "b") is result.faster("b", "a") is None
    sentence = result.sentence
    assert sentence.startswith("a took 1.00 s; b took ") and "but the noise (0." in sentence
    assert sentence.endswith("is larger than the difference: measure again")


@pytest.mark.parametrize(("other", "said"), [
    ([1.01, 1.012, 1.011], "less than 5 % apart (1.01 to 1.01 ×)"),
    ([0.99, 1.01, 1.02], "less than 5 % apart (0.99 to 1.02 ×)"),
    ([1.02, 1.04, 1.20], "1.04 × as long (1.02 to 1.20)"),  # small, and no noise
    ([1.06, 1.07, 1.06], "1.06 × as long (1.06 to 1.07)"),
])  # fmt: skip
def test_a_small_difference_is_told_from_noise(other, said) -> None:
    """Catches "1.00 × as long", and a reader sent to measure again what no run will tell apart."""
    result = Comparison({"b": other, "a": [1.0] * 3})
    assert result.sentence.endswith(f" s, {said}")
    assert result.faster("b", "a") == ("a" if "as long" in said else None)


def test_three_ways_are_each_set_against_the_fastest() -> None:
    """Catches a third way that the sentence forgets, and noise that hides a plain difference."""
    result = Comparison({"mmap": [4.0] * 3, "read": [1.0, 1.3, 0.9], "direct": [1.1, 1.2, 0.8]})
    assert result.sentence == (
        "read took 1.00 s; direct took 1.10 s, but the noise (0.76 to 1.24 ×) is larger than the "
        "difference: measure again; mmap took 4.00 s, 4.0 × as long (3.1 to 4.4)"
    )
    assert Comparison({"alone": [1.0] * 3}).sentence == "alone took 1.00 s"


def test_a_time_too_short_for_the_unit_is_not_zero() -> None:
    """Catches "took 0.00 ms"."""
    result = Comparison({"a": [4e-6] * 3, "b": [0.2] * 3}, unit="ms")
    assert result.sentence == "a took 4.00 µs; b took 200 ms, 50,000 × as long (50,000 to 50,000)"


def test_ways_run_in_turns_and_the_first_round_does_not_count() -> None:
    """Catches all of one way before all of the other, and a compile that is taken for a run."""
    ran, ticks = [], count()
    result = compare(
        {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")},
        rounds=3, clock=lambda: float(next(ticks)),
    )  # fmt: skip
    assert ran == list("abababab") and result.seconds == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_a_way_may_measure_itself() -> None:
    """Catches set-up that is counted: to make a file cold takes longer than to load it."""
    times = iter([9.0, 2.0, 2.0, 2.0])
    result = compare({"a": lambda: next(times), "b": lambda: 1.0}, rounds=3)
    assert result.seconds["a"] == [2.0] * 3 and result.ratio("a", "b") == 2


def test_a_beaten_ceiling_is_told() -> None:
    """Catches "125 % of the ceiling" without a word: then it is no ceiling."""
    result = Comparison({"step": [0.008] * 3, "other": [0.1] * 3}, unit="ms")
    assert result.against("predicted", 0.006) == "predicted 6.00 ms, step took 8.00 ms: " \
        "75 % of the ceiling"  # fmt: skip
    assert "125 % of the ceiling. Nothing passes" in result.against("predicted", 0.010)
    assert "measured too low" not in result.against("predicted", 0.0083)
    assert "5 % of the ceiling, 20.0 × the time" in result.against("predicted", 0.005, "other")
    assert result.against("predicted", 0.0).endswith("step took 8.00 ms: 0 % of the ceiling")


@pytest.mark.parametrize(
    "samples", [{}, {"a": [1.0] * 3, "b": [1.0]}, {"a": [1.0] * 3, "b": [0.0, 1.0, 2.0]}]
)
def test_too_little_to_compare_is_refused(samples: dict) -> None:
    """Catches a sentence about one sample, whose noise nobody knows."""
    with pytest.raises(ConfigError, match="measure more"):
        Comparison(samples)
