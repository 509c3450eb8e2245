"""Charts of a run, each a plain function of its trace: memory over time, and what each stage did.

Every title is a sentence with numbers of this trace. A trace without what a chart needs raises
MinillmError and says what to do.
"""

from __future__ import annotations

from itertools import accumulate

from matplotlib.axes import Axes

from minillm.charts import facts, loading, meaning
from minillm.charts.facts import Memory, Window
from minillm.charts.ink import HEIGHT, INK, PAPER, TEXT, amount, percent
from minillm.charts.place import spread
from minillm.charts.show import Table
from minillm.charts.style import Chart, cut, name_row, panels, time_axis, width_of
from minillm.errors import MinillmError
from minillm.trace import STAGES, Event, Trace, bare, busy_seconds, rank_of
from minillm.units import format_size


def memory(trace: Trace) -> Chart:
    """Bytes in HBM and DRAM over time, stacked by label, with the peak."""
    every = _tiers(trace)
    tiers = [max(every[name], key=lambda tier: tier.peak) for name in ("hbm", "dram")
             if name in every]  # fmt: skip
    if not tiers:
        raise MinillmError("wanted memory counters in the trace, found none; load an engine first")
    names = [_tier_name(tier, len(every[bare(tier.tier)])) for tier in tiers]
    finding = _fullest(tiers[0], names[0], len(every[bare(tiers[0].tier)]))
    chart = Chart(finding, f"Memory by tier over time. {finding}.", note=facts.provenance(trace))
    views = _views(trace)
    grid = panels(chart, [1.0, 1.7][-len(views) :], 0.8, 1.4, rows=(1.8, 1.0)[: len(tiers)])
    for tier, name, axes in zip(tiers, names, grid, strict=True):
        for ax, (title, window) in zip(axes, views, strict=True):
            first, last = axes is grid[0], axes is grid[-1]
            _stack(ax, tier, window, title if first else "", last)
        _size_axis(axes, tier, name)
    return chart


def _views(trace: Trace) -> list[tuple[str, Window]]:
    """What is worth a panel: the load and the last request, with how many ran meanwhile; without
    both, everything."""
    moved = any(e.kind == "transfer" for e in trace.events)
    views = [(loading.panel_title(trace), loading.load(trace))] if moved else []
    if facts.asked(trace):
        one = facts.request(trace)
        alive = {e.request for e in facts.work(trace) if one.start <= e.start <= one.stop} - {None}
        views.append(("one request" if len(alive) < 2 else f"{len(alive)} requests", one))
    whole = Window(0.0, max(e.end for e in trace.events) or 1.0, trace.events)
    return [(title, window) for title, window in views if window] or [("the whole run", whole)]


def _tier_name(tier: Memory, count: int) -> str:
    name = bare(tier.tier).upper()
    return name if count == 1 else f"{name} {rank_of(tier.tier)}"


def _fullest(tier: Memory, name: str, count: int) -> str:
    """What the tier holds at its peak, and of several such tiers that it is the fullest."""
    held = [(format_size(n), meaning.said(label)) for label, n in tier.at_peak().items()
            if n and label != facts.RESERVED]  # fmt: skip
    name += f", the fullest of {count}," if count > 1 else ""
    whole = f"{name} holds {format_size(tier.peak)} at its peak"
    if len(held) < 2:
        return whole + "".join(f", all of it {label}" for _, label in held)
    return f"{whole}: {', '.join(' '.join(words) for words in held[:2])}"


def _tiers(trace: Trace) -> dict[str, list[Memory]]:
    """Every tier that was counted, by its name without rank: {"hbm": [of rank 0, of rank 1], …}."""
    found: dict[str, list[Memory]] = {}
    for name in sorted({e.name for e in trace.events if e.kind == "counter"}, key=rank_of):
        found.setdefault(bare(name), []).append(facts.memory(trace, name))
    return found


def _stack(ax: Axes, tier: Memory, window: Window, title: str, named: bool) -> None:
    """Areas by label. A little more time on both sides shows memory being taken and given back."""
    more = 0.05 * window.seconds
    scale = time_axis(ax, title, -more, window.seconds + more, named)
    times = [(t - window.start) / scale for t in tier.times] + [(window.seconds + more) / scale]
    floor = [0] * len(times)
    for rank, label in enumerate(tier.at_peak()):
        levels = [*tier.levels[label], tier.levels[label][-1]]
        roof = [low + level for low, level in zip(floor, levels, strict=True)]
        area = ax.fill_between(times, floor, roof, step="post", linewidth=0.4, edgecolor=PAPER)
        area.set(facecolor=INK[bare(tier.tier)].colour, alpha=(1, 0.65, 0.4)[min(rank, 2)])
        area.set(hatch=("", "////", "....")[min(rank, 2)])
        if label == facts.RESERVED:
            area.set(hatch="", alpha=0.12)
        floor = roof


def _size_axis(axes: list[Axes], tier: Memory, name: str) -> None:
    """One height for all panels; the peak on the left, labels on the right."""
    for ax in axes:
        ax.set_ylim(0, 1.12 * tier.most or 1.0)
        ax.axhline(tier.peak, color=TEXT, linestyle=":", linewidth=0.8, zorder=0)
    ax, held = axes[-1], _largest(tier.at_peak())
    roof = ax.get_ylim()[1]
    line = 0.15 * roof / (ax.get_position().height * HEIGHT)  # 0.15 in, in bytes
    places = spread((tier.peak / 3, tier.peak), (line, 2 * line), 0, roof)
    for y, words in zip(places, (name, f"peak\n{format_size(tier.peak)}"), strict=True):
        name_row(axes[0], y, words)
    tops = accumulate(held.values())
    middles = [top - nbytes / 2 for top, nbytes in zip(tops, held.values(), strict=True)]
    places = spread(middles, [line] * len(held), 0, roof)
    for y, (label, nbytes) in zip(places, held.items(), strict=True):
        size = f" {format_size(nbytes)}"
        room = 1.28 - width_of(size, 8)  # of the margin on the right
        name_row(ax, y, cut(meaning.said(label), room, 8) + size, right=True)


def _largest(held: dict[str, int]) -> dict[str, int]:
    """The two or three largest labels by name, the rest together: they add up to the whole."""
    used = {label: nbytes for label, nbytes in held.items() if nbytes}
    empty = {facts.RESERVED: used.pop(facts.RESERVED)} if facts.RESERVED in used else {}
    if len(used) > 3:
        first, rest = list(used)[:2], list(used)[2:]
        used = {label: used[label] for label in first} | {"other": sum(used[k] for k in rest)}
    return used | empty


def stages(trace: Trace) -> Table:
    """Stage · bytes · time · share: what each stage moved and how long it was at work.

    time: of a stage, the length of the union of its spans and transfers, so that a layer inside a
    step, or two copies at once, are not counted twice. The last row is the sum of the others.
    Bytes that the engine predicts instead of counting say so.
    """
    work = facts.work(trace)
    did = {stage: [e for e in work if e.stage == stage] for stage in STAGES}
    moved = {stage: _bytes(mine) for stage, mine in did.items()}
    busy = {stage: busy_seconds(mine) for stage, mine in did.items()}
    nbytes, seconds, rows = sum(moved.values()), sum(busy.values()), []
    for stage, mine in did.items():
        guessed = any(map(facts.guessed, mine))
        size = format_size(moved[stage]) + (" (predicted)" if guessed else "")
        bar = "█" * round(24 * busy[stage] / (seconds or 1)) or ("▏" if busy[stage] else "")
        share = percent(busy[stage], seconds).rjust(5)
        rows.append((stage, size, amount(busy[stage], "s"), f"{share} {bar}"))
    rows.append(("all", format_size(nbytes), amount(seconds, "s"), "100 %"))
    top = max(STAGES, key=lambda stage: busy[stage])
    finding = f"The {top} stage takes {percent(busy[top], seconds)} of the time"
    return Table(("stage", "bytes", "time", "share of time"), tuple(rows),
                 f"{finding}: {amount(busy[top], 's')}")  # fmt: skip


def _bytes(work: list[Event]) -> int:
    """Of every transfer, and of every span that is no part of another, as a layer of a step."""
    spans = facts.outermost(e for e in work if e.kind == "span" and e.nbytes)
    return sum(e.nbytes for e in [*spans, *(e for e in work if e.kind == "transfer")])
