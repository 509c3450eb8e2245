"""Charts of a run, each a plain function of its trace: memory over time, and what each stage did.

Every title is a sentence with numbers of this trace. A trace without what a chart needs raises
MinillmError and says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from minillm.charts import facts, loading
from minillm.charts.facts import Memory, Window
from minillm.charts.show import Chart, Table
from minillm.charts.style import (
    HEIGHT,
    INK,
    PAPER,
    TEXT,
    amount,
    cut,
    name_row,
    panels,
    percent,
    time_axis,
    width_of,
)  # fmt: skip
from minillm.errors import MinillmError, format_size
from minillm.trace import Trace


def memory(trace: Trace, budget: Mapping[str, int] | None = None) -> Chart:
    """Bytes in HBM and DRAM over time, stacked by label, with the budget and the peak.

    budget: bytes by tier, such as {"hbm": machine.hbm.capacity}. One that is more than twice the
    peak is told in words, so that it does not press the data flat.
    """
    every = _tiers(trace)
    tiers = [max(every[name], key=lambda tier: tier.peak) for name in ("hbm", "dram")
             if name in every]  # fmt: skip
    if not tiers:
        raise MinillmError("wanted memory counters in the trace, found none; load an engine first")
    names = [_tier_name(tier, len(every[facts.bare(tier.tier)])) for tier in tiers]
    finding = _fullest(tiers[0], names[0], len(every[facts.bare(tiers[0].tier)]))
    chart = Chart(finding, f"Memory by tier over time. {finding}.", note=facts.provenance(trace))
    views = _views(trace)
    grid = panels(chart, [1.0, 1.7][-len(views) :], 0.8, 1.4, rows=(1.8, 1.0)[: len(tiers)])
    for tier, name, axes in zip(tiers, names, grid, strict=True):
        for ax, (title, window) in zip(axes, views, strict=True):
            first, last = axes is grid[0], axes is grid[-1]
            _stack(ax, tier, window, title if first else "", last)
        room = budget or {}
        _size_axis(axes, tier, name, room.get(tier.tier, room.get(facts.bare(tier.tier))))
    return chart


def _views(trace: Trace) -> list[tuple[str, Window]]:
    """What is worth a panel: the load and the last request; without both, everything."""
    moved = any(e.kind == "transfer" for e in trace.events)
    asked = any(e.token is not None for e in trace.events)
    views = [(loading.panel_title(trace), loading.load(trace))] if moved else []
    views += [("one request", facts.request(trace))] if asked else []
    whole = Window(0.0, max(e.end for e in trace.events) or 1.0, trace.events)
    return [(title, window) for title, window in views if window] or [("the whole run", whole)]


def _tier_name(tier: Memory, count: int) -> str:
    name = facts.bare(tier.tier).upper()
    return name if count == 1 else f"{name} {facts.rank_of(tier.tier)}"


def _fullest(tier: Memory, name: str, count: int) -> str:
    """What the tier holds at its peak, and of several such tiers that it is the fullest."""
    held = [(format_size(n), _said(label)) for label, n in tier.at_peak().items() if n]
    name += f", the fullest of {count}," if count > 1 else ""
    whole = f"{name} holds {format_size(tier.peak)} at its peak"
    if len(held) < 2:
        return whole + "".join(f", all of it {label}" for _, label in held)
    return f"{whole}: {', '.join(' '.join(words) for words in held[:2])}"


def _tiers(trace: Trace) -> dict[str, list[Memory]]:
    """Every tier that was counted, by its name without rank: {"hbm": [of rank 0, of rank 1], …}."""
    found: dict[str, list[Memory]] = {}
    for name in sorted({e.name for e in trace.events if e.kind == "counter"}, key=facts.rank_of):
        found.setdefault(facts.bare(name), []).append(facts.memory(trace, name))
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
        area.set(facecolor=INK[facts.bare(tier.tier)].colour, alpha=(1, 0.65, 0.4)[min(rank, 2)])
        area.set(hatch=("", "////", "....")[min(rank, 2)])
        floor = roof


def _size_axis(axes: list[Axes], tier: Memory, name: str, budget: int | None) -> None:
    """One height for all panels; the peak on the left; labels, and the budget, on the right."""
    near = budget is not None and budget <= 2 * tier.peak
    top = 1.12 * (budget if near and budget else tier.peak) or 1.0
    for ax in axes:
        ax.set_ylim(0, top)
        ax.axhline(tier.peak, color=TEXT, linestyle=":", linewidth=0.8, zorder=0)
        if near:
            ax.axhline(budget, color=INK["prediction"].colour, linestyle="--", linewidth=1)
    name_row(axes[0], tier.peak, f"peak\n{format_size(tier.peak)}")
    name_row(axes[0], tier.peak / 3, name)
    labels, floor = [], 0.0
    for label, nbytes in _largest(tier.at_peak()).items():
        size = f" {format_size(nbytes)}"
        room = 1.28 - width_of(size, 8)  # of the margin on the right
        labels.append((floor + nbytes / 2, cut(_said(label), room, 8) + size))
        floor += nbytes
    if budget is not None:
        used = f"\n({percent(tier.peak, budget)} used)"
        labels.append((budget if near else top, f"budget {format_size(budget)}{used}"))
    _beside(axes[-1], labels)


def _beside(ax: Axes, labels: list[tuple[float, str]]) -> None:
    """Words to the right of the axes, from the lowest up, pushed apart where they would touch."""
    line = 0.15 * ax.get_ylim()[1] / (ax.get_position().height * HEIGHT)  # 0.15 in, in bytes
    free = 0.0
    for y, text in labels:
        half = line * (1 + text.count("\n")) / 2
        y = max(y, free + half)
        free = y + half
        ax.annotate(
            text, (1, y), xytext=(6, 0), textcoords="offset points", size=8, color=TEXT,
            xycoords=("axes fraction", "data"), va="center", annotation_clip=False,
            parse_math=False,
        )  # fmt: skip


def _largest(held: dict[str, int]) -> dict[str, int]:
    """The two or three largest labels by name, the rest together: they add up to the whole."""
    labels = [label for label, nbytes in held.items() if nbytes]
    if len(labels) <= 3:
        return {label: held[label] for label in labels}
    shown = {label: held[label] for label in labels[:2]}
    return {**shown, "other": sum(held[label] for label in labels[2:])}


def _said(label: str) -> str:
    return "KV cache" if label == "kv" else label


def stages(trace: Trace) -> Table:
    """Stage · bytes · time · share: what each stage moved and how long it was at work.

    The last row is their sum. Bytes that the engine predicts instead of counting say so.
    """
    facts.work(trace)  # an empty trace is an error that says what to do
    totals = trace.by_stage()
    rows = []
    for total in totals:
        mine = [e for e in trace.events if e.stage == total.stage]
        guessed = any(e.detail.startswith("bytes predicted") for e in mine)
        moved = format_size(total.nbytes) + (" (predicted)" if guessed else "")
        bar = "█" * round(24 * total.share) or ("▏" if total.seconds else "")
        share = f"{percent(total.share, 1)}".rjust(5)
        rows.append((total.stage, moved, amount(total.seconds, "s"), f"{share} {bar}"))
    everything = format_size(sum(t.nbytes for t in totals)), sum(t.seconds for t in totals)
    rows.append(("all", everything[0], amount(everything[1], "s"), "100 %"))
    top = max(totals, key=lambda total: total.seconds)
    finding = f"The {top.stage} stage takes {percent(top.share, 1)} of the time"
    return Table(("stage", "bytes", "time", "share of time"), tuple(rows),
                 f"{finding}: {amount(top.seconds, 's')}")  # fmt: skip
