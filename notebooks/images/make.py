"""Make the strips in this folder: `python notebooks/images/make.py`.

strip.png and strip_<stage>.png stand on top of the notebooks and need no run. machine.webp, the
film in the README, is made by animate.py.
"""

from __future__ import annotations

from pathlib import Path

from minillm import charts
from minillm.trace import STAGES

HERE = Path(__file__).resolve().parent


def main() -> None:
    charts.strip().save(HERE / "strip.png")
    for stage in STAGES:
        charts.strip(here=stage).save(HERE / f"strip_{stage}.png")


if __name__ == "__main__":
    main()
