"""How the machine is drawn on paper: cards and words in the layout's units, and a tank's scale."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from minillm.charts.facts import RESERVED
from minillm.charts.style import FAINT, PAPER, RULE, width_of

POINTS = 7.2  # of most words
RAISED = "#F3F4F7"
LOWEST = ("weights", "kv", RESERVED)  # in a tank; the rest on top of them
TINTS = (0.28, 0.55, 0.75, 0.95)  # what is large is pale, what is thin is strong


class Pen:
    """Draws in the units of the layout, which begin at the top left."""

    def __init__(self, ax: Axes, unit: float):
        self.ax, self.unit = ax, unit  # unit: inches

    def points(self, units: float) -> float:
        return units * self.unit * 72

    def width(self, words: str, size: float = POINTS, weight: str = "normal") -> float:
        """Of words, in units."""
        return width_of(words, size, weight) / self.unit

    def words(self, x: float, y: float, words: str, ha: str = "left", **look: Any) -> None:
        look = {"size": POINTS, "color": FAINT, "parse_math": False, "va": "baseline"} | look
        self.ax.text(x, y, words, ha=ha, **look)

    def card(self, box: dict, face: str = PAPER, edge: str = RULE, **look: Any) -> Any:
        patch = FancyBboxPatch(
            (box["x"], box["y"]), box["w"], box["h"], facecolor=face, edgecolor=edge, linewidth=0.9,
            boxstyle=f"round,pad=0,rounding_size={min(8, box['w'] / 2)}", **look,
        )  # fmt: skip
        return self.ax.add_patch(patch)

    def fit(self, x: float, y: float, wordings: list[str], room: float, ha: str = "left",
            **look: Any) -> None:  # fmt: skip
        """Write the first wording that fits, if need be a little smaller."""
        size = look.get("size", POINTS)
        fitting = [words for words in wordings if self.width(words, size) <= room / 0.88]
        words = (fitting or wordings[-1:])[0]
        look["size"] = size * min(1.0, room / max(1, self.width(words, size)))
        self.words(x, y, words, ha, **look)


def scale(peak: int, capacity: int | None) -> tuple[float, bool]:
    """Bytes that the top of a tank stands for, and whether that is less than all of it.

    >>> scale(12 * 2**20, 64 * 2**20), scale(2 * 2**20, 24 * 2**30)
    ((67108864, False), (4194304, True))
    """
    if capacity and 8 * peak >= capacity:
        return capacity, False
    top = 4096
    while top < 1.25 * peak:
        top *= 2
    return (capacity, False) if capacity and top >= capacity else (top, peak > 0)


def order(levels: dict[str, int]) -> dict[str, int]:
    """Labels from the bottom up; of more than four the small ones together."""
    first = {label: levels[label] for label in LOWEST if label in levels}
    rest = [(label, n) for label, n in levels.items() if label not in first]
    room = len(TINTS) - len(first)
    if len(rest) > room:
        rest = [*rest[: room - 1], ("other", sum(n for _, n in rest[room - 1 :]))]
    return first | dict(rest)


def arrow(link: dict, sign: str) -> str:
    """Where what goes along (+) or against (-) a link is heading."""
    (x0, y0), (x1, y1) = link["points"][:2]
    across = abs(x1 - x0) > abs(y1 - y0)
    ahead = (x1 > x0 if across else y1 > y0) == (sign == "+")
    return ("→" if ahead else "←") if across else ("↓" if ahead else "↑")


def visible(text: str) -> str:
    """With signs for what cannot be seen."""
    return text.replace("\n", "⏎").replace("\t", "⇥")
