"""The rows of a timeline: a strip of blocks for each resource, and what it did in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from minillm.charts import meaning
from minillm.charts.facts import Window
from minillm.charts.ink import INK, PAPER, RULE, TEXT, WIDTH, amount
from minillm.charts.meaning import ROWS
from minillm.charts.style import name_row, time_axis, width_of
from minillm.trace import Event, bare, busy_seconds, rank_of
from minillm.units import format_size

MOST = 8  # pieces of work at one time that a strip shows one below the other


@dataclass(frozen=True)
class Row:
    """One of meaning.ROWS: a lane for each rank of it. Heights count rows of one lane as 1."""

    key: str
    lanes: tuple[str, ...]  # 'compute', 'compute:1', …
    top: float

    @property
    def high(self) -> float:
        return 1.0 if len(self.lanes) == 1 else 0.54 + 0.2 * len(self.lanes)

    @property
    def name(self) -> str:
        return ROWS[self.key] + (f"\n{len(self.lanes)} ranks" if len(self.lanes) > 1 else "")

    def strip(self, lane: str) -> tuple[float, float]:
        """Where the blocks of a lane stand: upper edge and height."""
        if len(self.lanes) == 1:
            return self.top + 0.42, 0.46
        return self.top + 0.42 + 0.2 * self.lanes.index(lane), 0.17

    def of(self, events: Sequence[Event]) -> list[Event]:
        return [e for e in events if meaning.row(e) == self.key]

    def busiest(self, events: Sequence[Event]) -> list[Event]:
        """The events of the lane that has most to do: what the row's words tell of."""
        mine = [[e for e in self.of(events) if e.resource == lane] for lane in self.lanes]
        return max(mine, key=busy_seconds)


def find_rows(windows: Sequence[Window]) -> list[Row]:
    """A row for each kind of resource at work, from the top down."""
    found = {(meaning.row(e), e.resource) for window in windows for e in window.events}
    rows: list[Row] = []
    for key in ROWS:
        lanes = sorted((unit for row, unit in found if row == key), key=rank_of)
        if lanes:
            rows.append(Row(key, tuple(lanes), rows[-1].top + rows[-1].high if rows else 0.0))
    return rows


def name_rows(ax: Axes, rows: Sequence[Row]) -> None:
    """Their names, to the left of the first panel."""
    for row in rows:
        middle = 0.65 if len(row.lanes) == 1 else (0.42 + row.high) / 2
        name_row(ax, row.top + middle, row.name)


def draw_rows(
    ax: Axes, title: str, window: Window, rows: Sequence[Row], inner: bool, more: dict[str, str]
) -> None:
    """Blocks lane by lane; with `inner`, what runs inside a block is drawn in it.

    more: by row, what the words of its row add if there is room.
    """
    scale = time_axis(ax, title, 0, window.seconds)
    ax.set_ylim(rows[-1].top + rows[-1].high, 0)
    for row in rows:
        ax.axhline(row.top + row.high - 0.08, color=RULE, linewidth=0.6, zorder=0)
        mine = row.of(window.events)
        top = not_inside(mine)
        outer = set(map(id, top))
        nested = [e for e in mine if id(e) not in outer] if inner else []
        for lane in row.lanes:
            above, below = ([e for e in some if e.resource == lane] for some in (top, nested))
            for events, strip in _side_by_side(above, row.strip(lane), window):
                _blocks(ax, window, scale, events, strip, alpha=0.3 if below else 1)
            _blocks(ax, window, scale, below, row.strip(lane))
        words = told(row.busiest(nested or top))
        words = [words[0] + more.get(row.key, ""), *words]
        words = words if len(row.lanes) == 1 else [f"busiest {said}" * bool(said) for said in words]
        words = _fitting(words, ax.get_position().width * WIDTH)
        ax.text(0, row.top + 0.36, words, size=7.5, color=TEXT, va="bottom", parse_math=False)


def not_inside(events: Sequence[Event]) -> list[Event]:
    """Leaves out spans that run inside another span on their resource, as a layer in a step.

    Transfers all stay, and so does work of one name: threads do it beside each other.
    """
    until: dict[str, dict[str, float]] = {}
    kept = []
    for event in sorted(events, key=lambda e: (e.start, -e.seconds)):
        ends = until.setdefault(event.resource, {})
        inside = any(end >= event.end for name, end in ends.items() if name != event.name)
        if event.kind == "transfer" or not inside:
            kept.append(event)
            ends[event.name] = max(event.end, ends.get(event.name, 0.0))
    return kept


def at_once(events: Sequence[Event], slack: float = 1e-6) -> list[list[Event]]:
    """The events in as few lines as it takes, so that in a line none overlaps another.

    slack: seconds of overlap that do not count.
    """
    lines: list[list[Event]] = []
    for event in sorted(events, key=lambda e: e.start):
        free = (line for line in lines if line[-1].end <= event.start + slack)
        line = next(free, None)
        if line is None:
            lines.append([event])
        else:
            line.append(event)
    return lines


def _side_by_side(
    events: list[Event], strip: tuple[float, float], window: Window
) -> list[tuple[list[Event], tuple[float, float]]]:
    """What several threads do at one time stands one below the other, each line with its part."""
    top, high = strip
    lines = at_once(events, slack=0.002 * window.seconds)
    many = min(MOST, len(lines))
    return [(line, (top + high * (i % many) / many, high / many)) for i, line in enumerate(lines)]


def _blocks(
    ax: Axes, window: Window, scale: float, events: list[Event], strip: tuple[float, float],
    alpha: float = 1,
) -> None:  # fmt: skip
    """A block for each event, at least a hairline wide, in the ink of its meaning."""
    # Many short events would, at a hairline each, look like one long one.
    hairline = min(0.004, 0.4 / max(len(events), 1)) * window.seconds
    for ink in dict.fromkeys(map(meaning.ink, events)):
        mine = [e for e in events if meaning.ink(e) == ink]
        spans = [((e.start - window.start) / scale, max(e.seconds, hairline) / scale) for e in mine]
        wide = sum(e.seconds for e in mine) / len(mine) > 4 * hairline
        bars = ax.broken_barh(spans, strip, facecolor=INK[ink].colour, alpha=alpha)
        bars.set(edgecolor=PAPER, linewidth=0.4 if wide else 0)
        bars.set(hatch=INK[ink].hatch if wide and alpha == 1 else "")


def told(events: Sequence[Event]) -> list[str]:
    """What a row did, from the fullest wording to the shortest; all of them end in the same sum.

    'prefill 31 ms, 23 × decode step 48.3 ms'; '15.0 MiB → HBM 1.75 ms'; 'sample, … 3.06 ms'.
    Bytes are all that moved; of seconds those in which two things went on count once.
    """
    waits = [e for e in events if meaning.ink(e) == "idle"]
    work = [e for e in events if meaning.ink(e) != "idle"]
    waited = f" + {amount(busy_seconds(waits), 's')} waiting" if waits else ""
    if not work:
        return [f"{amount(busy_seconds(waits), 's')} waiting" if waits else ""]
    groups: dict[str, list[Event]] = {}
    for event in work:
        groups.setdefault(meaning.name_of(event), []).append(event)
    groups = {_moved(name, group): group for name, group in groups.items()}
    busy = {name: busy_seconds(group) for name, group in groups.items()}
    total = amount(busy_seconds(work), "s") + waited
    if len(groups) == 1 and work[0].kind == "transfer":
        moved = format_size(sum(e.nbytes for e in work))
        return [f"{moved} → {bare(work[0].target).upper()} {total}"]
    if set(groups) == {"attention", "ffn"}:
        longest = f"attention ■ {amount(busy['attention'], 's')}, ffn ▨ {amount(busy['ffn'], 's')}"
        return [longest, longest.replace("attention ", "").replace("ffn ", "")]
    counted = {name for name, group in groups.items() if len(group) > 1 and not _is_weights(group)}
    times = {name: f"{len(groups[name])} × {name}" if name in counted else name for name in groups}
    each = ", ".join(f"{times[name]} {amount(spent, 's')}" for name, spent in busy.items())
    longest = max(busy, key=busy.__getitem__)
    return [each + waited, f"{longest}{', …' * (len(groups) > 1)} {total}", total]


def _moved(name: str, group: list[Event]) -> str:
    """Of weights, their bytes: 'weights → HBM' is said as '9.6 MiB → HBM'."""
    moved = format_size(sum(e.nbytes for e in group))
    return name.replace("weights", moved, 1) if _is_weights(group) else name


def _is_weights(group: list[Event]) -> bool:
    return group[0].kind == "transfer" and group[0].label == "weights"


def _fitting(wordings: list[str], inches: float) -> str:
    """The fullest wording that fits a row of this width, at 7.5 points."""
    fits = (words for words in wordings if width_of(words, 7.5) <= inches + 0.05)
    return next(fits, wordings[-1])
