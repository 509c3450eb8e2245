"""What all pictures share, whatever draws them: inks, paper, and how a number is said.

Colour is meaning and is the same in the whole course. A hatch goes with each colour, so colour is
never alone, and every mark is labelled where it stands. The paper is opaque: a picture reads the
same on a light and on a dark page. No drawing library is needed here.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER, TEXT, FAINT, RULE = "#FFFFFF", "#1F2937", "#5B6472", "#D5D9E0"
WIDTH, HEIGHT = 7.0, 3.5  # of a chart, in inches


@dataclass(frozen=True)
class Ink:
    """One meaning: its colour, and the hatch that says the same without colour."""

    colour: str
    hatch: str = ""


INK = {
    "ssd": Ink("#D55E00", "////"),
    "dram": Ink("#0072B2", "...."),
    "hbm": Ink("#009E73"),
    "network": Ink("#CC79A7", "xxxx"),
    "compute": Ink("#4B5563"),
    "ffn": Ink("#4B5563", "////"),
    "cpu": Ink("#9AA3AF", "\\\\\\\\"),
    "idle": Ink("#E5E7EB"),
    "prediction": Ink("#6B7280"),
}


def percent(part: float, whole: float) -> str:
    """'43 %'; a part that is there but small is '< 1 %', never '0 %'."""
    share = 100 * part / whole if whole else 0.0
    return "< 1 %" if 0 < share <= 0.5 else f"{share:,.0f} %"


def counted(number: int, noun: str) -> str:
    """'1 token', '2,048 tokens', '3 passes': right for one as well."""
    many = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{many}"


def times(ratio: float) -> str:
    """Two digits: '8.6 ×', '120 ×'."""
    return f"{ratio:.1f} ×" if ratio < 9.95 else f"{float(f'{ratio:.2g}'):,.0f} ×"


PREFIXED = ("s", "B", "B/s", "FLOP/s", "FLOP")


def scale_of(value: float, unit: str) -> tuple[str, float]:
    """The unit in which people read a value given in `unit`, and its size in that.

    Seconds, B/s, FLOP and FLOP/s take prefixes (GB/s is 10⁹), B is said in KiB, MiB, …; any other
    unit stays. 3.2e9 B/s -> ('GB/s', 1e9).
    """
    if unit == "s":
        sizes = [("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)]
    elif unit in PREFIXED[2:]:
        sizes = [(f"{p}{unit}", 1e3**n) for n, p in enumerate(("", "k", "M", "G", "T", "P"))]
    elif unit == "B":
        sizes = [(p, 1024.0**n) for n, p in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))]
    else:
        return unit, 1.0
    return next((s for s in reversed(sizes) if abs(value) >= 0.9995 * s[1]), sizes[0])


def amount(value: float, unit: str, scale: tuple[str, float] | None = None) -> str:
    """Three digits and a unit, by default the one of `scale_of`: (3.2e9, 'B/s') -> '3.2 GB/s'."""
    name, size = scale or scale_of(value, unit)
    number = value / size
    short = f"{number:,.0f}" if 99.95 <= abs(number) < 1e12 else f"{number:.3g}"
    return f"{short} {name}"
