"""How the machine is written down: looks of its parts, words that fit, the SVG and its pixels."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.charts.ink import FAINT, INK, PAPER, RULE, TEXT

if TYPE_CHECKING:
    from minillm.charts.machine_diagram import Diagram, State

STAGES = {
    "load": "1 load", "tokens": "2 tokens", "model": "3 model + kv", "parallel": "4 parallel",
    "decode": "5 decode",
}  # fmt: skip
TITLES = {"ssd": "SSD", "dram": "DRAM", "hbm": "HBM", "cpu": "CPU", "compute": "compute",
          "nic": "NIC", "switch": "PCIe", "nvlink": "NVLink", "pcie": "PCIe",
          "disk": "read"}  # fmt: skip
WIDE, HEAD = 668, 68  # units; the head has title and note, which a page leaves out
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Arial, sans-serif"
RAISED, ACCENT, STRONG = "#F3F4F7", "#6D28D9", {"font-weight": 600}
SMALL, PLAIN, LARGE = 11.5, 12.5, 13  # units: sizes of letters
SMALLEST = 0.8  # of its size, for words that would not fit
# Class of a part: its attributes on light paper. The styles of a page say the same with its theme.
LOOK: dict[str, dict[str, Any]] = {
    "paper": {"fill": PAPER}, "frame": {"fill": RAISED}, "node": {"fill": "none", "stroke": RULE},
    "card": {"fill": PAPER, "stroke": RULE, "stroke-width": 1.2},
    "card busy": {"fill": PAPER, "stroke": INK["compute"].colour, "stroke-width": 1.2},
    "bar": {"fill": RAISED, "stroke": RULE},
    "name": {"fill": TEXT, "font-size": LARGE, **STRONG},
    "say": {"fill": FAINT, "font-size": SMALL}, "label": {"fill": TEXT, "font-size": SMALL},
    "figure": {"fill": TEXT, "font-size": PLAIN, **STRONG},
    "word": {"fill": TEXT, "font-size": 18, **STRONG},
    "title": {"fill": TEXT, "font-size": 14, **STRONG}, "line": {"fill": TEXT, "font-size": LARGE},
    "prompt": {"fill": FAINT}, "words": {"fill": TEXT}, "new": {"fill": ACCENT, **STRONG},
    "stage": {"fill": FAINT, "font-size": SMALL}, "stage near": {"fill": TEXT},
    "stage lit": {"fill": ACCENT}, "rule": {"fill": RULE}, "rule lit": {"fill": ACCENT},
    "cells": {"stroke": RULE, "stroke-width": 13, "stroke-dasharray": "13 3"},
    "cells busy": {"stroke": INK["compute"].colour},
    "pipe": {"fill": "none", "stroke": RULE, "stroke-opacity": 0.5},
    "lane": {"fill": "none", "stroke": "none", "stroke-linecap": "round"},
    "torn": {"fill": "none", "stroke": RULE}, "way": {"fill": "none", "stroke": RULE},
}  # fmt: skip
SAYS = {
    "ssd": "The disk. Weights rest here as files: large, slow, and kept without power.",
    "dram": "The host's memory. Bytes from the disk land here before they go on to a GPU.",
    "cpu": "Turns text into ids before the model runs, and scores into text after it.",
    "hbm": "The GPU's own memory. Weights and KV cache live here, next to the compute.",
    "compute": "Where attention and FFN are computed, from what it reads out of HBM.",
    "switch": "Between the host and its GPUs.",
    "pcie": "Between the host and its GPUs.",
    "nvlink": "Between the GPUs of one node.",
    "nic": "The node's door to the network.",
    "disk": "From the disk to the host's memory.",
    "bus": "Between CPU and DRAM. The trace does not count these bytes.",
    "read": "What compute reads from HBM: for each token the weights and the KV cache, once.",
    "infiniband": "The network between nodes.",
}
# Widths of letters in em, of a font that is wider than most: what fits in it fits in others.
_EM = {letter: wide for letters, wide in (
    ("ijlIJ'", 0.3), (" .,·:;|/", 0.34), ("frt()[]-!\"", 0.41), ("w#+<=>×", 0.84), ("M", 0.87),
    ("mW%@…→←↑↓⏎⇥", 1.0), ("cszkvxyaoeFL?", 0.61), ("ABCDGHKNOQRUVXZ", 0.77),
) for letter in letters}  # fmt: skip


@lru_cache(4096)
def width(words: str, size: float = 1, bold: bool = False) -> float:
    """Of a line of text, at most; ideographs are as wide as they are high."""
    em = sum(_EM.get(letter, 0.64 if ord(letter) < 0x2E80 else 1.0) for letter in words)
    return em * size * (1.13 if bold else 1)


def fit(said: Sequence[str], room: float, size: float = SMALL, bold: bool = False) -> dict:
    """The first wording that fits, if need be set a little smaller; the last one is cut.

    >>> fit(["peak 2.8 of 80 GiB", "2.8 GiB"], 60)
    {'text': '2.8 GiB', 'font-size': 11.5}
    """
    for words in said:
        smaller = room / max(width(words, size, bold), 0.1)
        if smaller >= SMALLEST:
            return {"text": words, "font-size": round(size * min(1, smaller), 1)}
    words = said[-1]
    while words and width(f"{words}…", SMALLEST * size, bold) > room:
        words = words[:-1]
    return {"text": f"{words}…", "font-size": round(SMALLEST * size, 1)}


def look(name: str) -> dict[str, Any]:
    """A class and, on light paper, its attributes; letters keep their size."""
    own = {key: value for key, value in LOOK[name].items() if key != "font-size"}
    return {"class": name, **own}


def heading(finding: str, note: str) -> State:
    """Title and note of a still. A title is never cut: it gets two lines, then smaller ones."""
    lines, room = [finding], 644.0
    gaps = [i for i, letter in enumerate(finding) if letter == " "]
    if width(finding, 14, True) > room and gaps:
        half = min(gaps, key=lambda i: abs(i - len(finding) / 2))
        lines = [finding[:half], finding[half + 1 :]]
    size = min(14, *(14 * room / max(1, width(line, 14, True)) for line in lines))
    two = len(lines) > 1
    return {"title": {"text": lines[0], "y": 20 if two else 26, "font-size": round(size, 1)},
            "title/2": {"text": lines[-1] if two else "", "font-size": round(size, 1)},
            "note": {"y": 57 if two else 46} | fit([note], room)}  # fmt: skip


def svg(diagram: Diagram, state: State) -> str:
    """The picture with this state of its parts."""
    looks = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDE} {diagram.high:g}",
             "data-head": HEAD, "role": "img", "aria-label": "The machine.", "font-family": _FONT,
             "inside": diagram.parts}  # fmt: skip
    return _element("scene", "svg", looks, state)


def _element(name: str, tag: str, looks: dict[str, Any], state: State) -> str:
    looks = looks | state.get(name, {})
    between = "\n" if tag == "svg" else ""  # in a text it would be seen
    inside = between.join(_element(*part, state) for part in looks.pop("inside", ()))
    words, says, tip = (str(looks.pop(key, "")) for key in ("text", "says", "tip"))
    if says:
        inside += f'<title data-of="{name}">{escape(says + tip, quote=False)}</title>'
    listed = " ".join(f'{key}="{escape(f"{value:g}" if isinstance(value, float) else str(value))}"'
                      for key, value in looks.items())  # fmt: skip
    return f'<{tag} data-id="{name}" {listed}>{escape(words, quote=False)}{inside}</{tag}>'


def png(picture: str, wide: int) -> bytes:
    """Pixels of an SVG, so many across, with the font that comes along with matplotlib."""
    import resvg_py

    library = importlib.util.find_spec("matplotlib")
    folder = Path(library.origin).parent / "mpl-data" / "fonts" / "ttf"
    fonts = [str(folder / f"DejaVuSans{kind}.ttf") for kind in ("", "-Bold")]
    return resvg_py.svg_to_bytes(
        svg_string=picture, width=wide, background=PAPER, skip_system_fonts=True, font_files=fonts,
        font_family="DejaVu Sans", sans_serif_family="DejaVu Sans",
    )  # fmt: skip
