"""compare and Comparison: the sentence is true of the samples, whichever way they came out."""

from __future__ import annotations

from itertools import count

import pytest

from minillm.errors import ConfigError
from minillm.lesson import Comparison, compare

COLD, WARM = [0.048, 0.047, 0.049, 0.048, 0.048], [0.012, 0.0121, 0.0119, 0.012, 0.012]


def test_the_sentence_names_the_faster_whichever_it_is() -> None:
    """Catches a sentence written for the machine of its writer."""
    one = Comparison({"cold": COLD, "warm": WARM}, unit="ms").sentence
    assert one == "warm took 12.0 ms, cold 48.0 ms: warm was 4.0 × as fast (3.9 to 4.1)"
    other = Comparison({"cold": WARM, "warm": COLD}, unit="ms", what="one load").sentence
    assert other == (
        "one load: cold took 12.0 ms, warm 48.0 ms: cold was 4.0 × as fast (3.9 to 4.1)"
    )


def test_noise_larger_than_the_difference_is_said() -> None:
    """Catches a winner named by chance: medians always differ by something."""
    result = Comparison({"a": [1.0, 1.4, 0.8], "b": [1.2, 0.9, 1.5]})
    assert result.faster("a", "b") is None
    assert "is larger than the difference: run the cell again" in result.sentence
    assert "as fast" not in result.sentence


def test_what_is_alike_is_called_so() -> None:
    """Catches "1.0 × as fast", and a reader sent to run again what no run will tell apart."""
    result = Comparison({"a": [1.0, 1.001, 0.999], "b": [1.01, 1.012, 1.011]})
    assert result.faster("a", "b") is None and "no difference beyond 5 %" in result.sentence


def test_three_ways_are_each_set_against_the_fastest() -> None:
    """Catches a third way that the sentence forgets, and noise that hides a plain difference."""
    result = Comparison({"mmap": [4.0] * 3, "read": [1.0, 1.3, 0.9], "direct": [1.1, 1.2, 0.8]})
    assert result.sentence.startswith("read took 1.00 s, direct 1.10 s, mmap 4.00 s: ")
    assert "read and direct: the noise" in result.sentence
    assert "read was 4.0 × as fast as mmap" in result.sentence


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
    cold = compare({"a": lambda: 3.0, "b": lambda: 1.0}, rounds=3, warm_up=False)
    assert cold.median("a") == 3.0 and len(cold.seconds["a"]) == 3


def test_a_beaten_ceiling_is_told() -> None:
    """Catches "125 % of the ceiling" without a word: then it is no ceiling."""
    result = Comparison({"step": [0.008] * 3, "other": [0.1] * 3}, unit="ms")
    assert result.against("predicted", 0.006) == "predicted 6.00 ms, step took 8.00 ms: " \
        "75 % of the ceiling"  # fmt: skip
    assert "125 % of the ceiling. Nothing passes" in result.against("predicted", 0.010)
    assert "measured too low" not in result.against("predicted", 0.0083)
    assert "5 % of the ceiling, 20.0 × the time" in result.against("predicted", 0.005, "other")


@pytest.mark.parametrize(
    ("samples", "unit"),
    [({}, "s"), ({"a": [1.0] * 3, "b": [1.0]}, "s"),
     ({"a": [1.0] * 3, "b": [0.0] * 3}, "s"), ({"a": [1.0] * 3, "b": [1.0] * 3}, "hours")],
)  # fmt: skip
def test_too_little_to_compare_is_refused(samples: dict, unit: str) -> None:
    """Catches a sentence about one sample, whose noise nobody knows."""
    with pytest.raises(ConfigError, match="measure more"):
        Comparison(samples, unit)
