"""Make the pictures in this folder: `python notebooks/images/make.py`.

strip.png and strip_<stage>.png stand on top of the notebooks and need no run. tour_timeline.png,
for the README, is drawn from a real run: data/town is loaded and answers the tour's question, after
a short request that warms the machine up.
"""

from __future__ import annotations

import re
from pathlib import Path

from minillm import Engine, Machine, SamplingParams, charts
from minillm.trace import STAGES, Trace

HERE = Path(__file__).resolve().parent
TOUR = HERE.parent / "source" / "00_tour.py"


def tour_prompt() -> str:
    """The prompt as the tour's source writes it."""
    written = re.search(r'^prompt = """(.*?)"""', TOUR.read_text("utf-8"), re.M | re.S)
    assert written, "the tour defines its prompt in another way"
    return written[1].replace("\\\n", "")


def tour_run() -> Trace:
    """Load, one short request, then the tour's: the charts show the last."""
    engine = Engine.load("data/town", Machine.here(hbm="64 MiB"))
    greedy = SamplingParams(max_tokens=32, temperature=0.0, stop="\n")
    for prompt in ("Mia", tour_prompt()):
        engine.generate(prompt, greedy)
    return engine.trace


def main() -> None:
    charts.strip().save(HERE / "strip.png")
    for stage in STAGES:
        charts.strip(here=stage).save(HERE / f"strip_{stage}.png")
    chart = charts.timeline(tour_run())
    chart.save(HERE / "tour_timeline.png")
    print(chart.alt)


if __name__ == "__main__":
    main()
