"""Make the strips in this folder: `python notebooks/images/make.py`.

strip.png and strip_<stage>.png stand on top of the notebooks, the map of the five stages with "you
are here". They need no run. machine.webp, the film in the README, is made by animate.py.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from minillm.charts import Chart
from minillm.charts.style import FAINT, INK, PAPER, RULE, TEXT, WIDTH
from minillm.trace import STAGES

HERE = Path(__file__).resolve().parent
# stage: its title, what happens in it, and the units its bytes pass, in order
MAP = {
    "load": ("1 load", "weights come in", ("ssd", "dram", "hbm")),
    "tokens": ("2 tokens", "text becomes ids", ("cpu", "dram", "hbm")),
    "model": ("3 model + kv", "ids become scores", ("hbm", "compute", "hbm")),
    "parallel": ("4 parallel", "GPUs share the work", ("compute", "network", "compute")),
    "decode": ("5 decode", "scores become text", ("hbm", "dram", "cpu")),
}
CHIPS = {
    "ssd": "SSD", "dram": "DRAM", "hbm": "HBM", "cpu": "CPU", "compute": "GPU", "network": "link",
}  # fmt: skip
BOX, STEP, HIGH = 1.26, 1.41, 1.06  # inches: width of a box, from box to box, height


def main() -> None:
    strip().save(HERE / "strip.png")
    for stage in STAGES:
        strip(stage).save(HERE / f"strip_{stage}.png")


def strip(here: str | None = None) -> Chart:
    """The five stages, one of them marked."""
    below, above = 0.06, 0.22 if here else 0.06
    height = below + HIGH + above
    finding = " → ".join(STAGES) + (f"; you are here: {here}" if here else "")
    chart = Chart(finding, f"The five stages: {finding}.", size=(WIDTH, height), titled=False)
    ax = chart.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.axis("off")
    for i, stage in enumerate(STAGES):
        left = 0.05 + i * STEP
        _box(ax, left, below, stage, stage == here)
        if i:
            _arrow(ax, left - STEP + BOX + 0.01, left - 0.01, below + HIGH / 2, TEXT, 9)
    return chart


def _box(ax: Axes, left: float, bottom: float, stage: str, here: bool) -> None:
    title, what, chips = MAP[stage]
    ax.add_patch(FancyBboxPatch(
        (left, bottom), BOX, HIGH, boxstyle="round,pad=0,rounding_size=0.08",
        facecolor="#EEF1F5" if here else PAPER, edgecolor=TEXT if here else RULE,
        linewidth=1.8 if here else 1.0))  # fmt: skip
    middle = left + BOX / 2
    ax.text(middle, bottom + HIGH - 0.2, title, ha="center", va="center", size=10, weight="bold",
            color=TEXT)
    ax.text(middle, bottom + HIGH - 0.43, what, ha="center", va="center", size=8, color=FAINT)
    if here:
        ax.text(middle, bottom + HIGH + 0.1, "you are here ▾", ha="center", va="center", size=8,
                weight="bold", color=TEXT)
    for i, chip in enumerate(chips):
        _chip(ax, left + 0.07 + i * 0.4, bottom + 0.13, chip)
        if i:
            _arrow(ax, left + 0.07 + i * 0.4 - 0.08, left + 0.07 + i * 0.4, bottom + 0.26, FAINT, 5)


def _chip(ax: Axes, left: float, bottom: float, unit: str) -> None:
    chip = FancyBboxPatch((left, bottom), 0.32, 0.26, boxstyle="round,pad=0,rounding_size=0.04")
    ax.add_patch(chip)
    chip.set(facecolor=INK[unit].colour, linewidth=0)
    ax.text(left + 0.16, bottom + 0.13, CHIPS[unit], ha="center", va="center", size=6.2,
            weight="bold", color=TEXT if unit in ("cpu", "network") else PAPER)


def _arrow(ax: Axes, start: float, stop: float, y: float, colour: str, head: float) -> None:
    ax.add_patch(FancyArrowPatch((start, y), (stop, y), arrowstyle="-|>", mutation_scale=head,
                                 linewidth=0.9, color=colour, shrinkA=0, shrinkB=0))


if __name__ == "__main__":
    main()
