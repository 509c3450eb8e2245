"""The machine on paper: boxes, tanks at their peak, and links with what crossed them in all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.patches import Rectangle

from minillm.charts import facts, meaning
from minillm.charts.machine_pen import RAISED, TINTS, Pen, arrow, order, scale, visible
from minillm.charts.style import INK, PAPER, RULE, TEXT, WIDTH, Chart, amount, percent

if TYPE_CHECKING:
    from minillm.charts.machine_view import Did, Flow, Peak

HEAD = 0.56  # inches: title and note
NAMED = 3  # labels of a memory that are named


def draw(sheet: dict[str, Any], did: Did, finding: str, note: str, emulated: bool) -> Chart:
    """A chart of this layout, with what a run did on it; see machine_view.py."""
    flows = did.flows
    unit = WIDTH / sheet["width"]
    top = min(f["y"] for f in [*sheet["frames"], *sheet["boxes"].values()]) - 3
    high = sheet["height"] - 4 - top
    chart = Chart(finding, note=note, size=(WIDTH, HEAD + high * unit))
    ax = chart.add_axes((0, 0, 1, high * unit / (HEAD + high * unit)))
    ax.set(xlim=(0, sheet["width"]), ylim=(top + high, top))
    ax.axis("off")
    pen = Pen(ax, unit)
    for frame in sheet["frames"]:
        gpu = frame["kind"] == "gpu"
        pen.card(frame, RAISED if gpu else PAPER, RAISED if gpu else RULE, zorder=0.5)
        by_cpu = ", emulated by the CPU" if gpu and emulated else ""
        pen.words(frame["x"] + 12, frame["y"] + 17, frame["title"] + by_cpu)
    for name, link in sheet["links"].items():
        _pipe(pen, name, link, flows)
    for name, box in sheet["boxes"].items():
        if name in did.held:
            _tank(pen, box, did.held[name], emulated)
        elif box["kind"] in ("pcie", "nvlink"):
            _switch(pen, name, box, sheet["links"], flows, emulated)
        else:
            _unit(pen, box, flows, did.busy.get(name))
    for name, link in sheet["links"].items():
        if "label" in link:
            _figures(pen, name, link, flows)
    _text(pen, sheet, did.prompt, did.words)
    return chart


def _pipe(pen: Pen, name: str, link: dict, flows: dict[str, Flow]) -> None:
    """A band as wide as the link is fast, with dots in the ink of what crossed it."""
    x, y = zip(*link["points"], strict=True)
    wide = pen.points(link["width"])
    pen.ax.plot(x, y, color="#E9EBEF", linewidth=wide, solid_capstyle="butt", zorder=0.8)
    ways = [sign for sign in "+-" if f"{sign}{name}" in flows]
    for sign in ways:
        ink = INK[flows[f"{sign}{name}"].ink].colour
        aside = (link["width"] / 4) * (len(ways) - 1) * (1 if sign == "+" else -1)
        flat = y[0] == y[1]
        rows = (-link["width"] / 4, link["width"] / 4) if link["kind"] == "read" else (aside,)
        for row in rows:
            moved = ([*x], [v + row for v in y]) if flat else ([u + row for u in x], [*y])
            pen.ax.plot(*moved, color=ink, linewidth=3, dash_capstyle="round", zorder=0.9,
                        linestyle=(1.5 if row < 0 else 0, (0.01, 4)))  # fmt: skip


def _switch(
    pen: Pen, name: str, box: dict, links: dict, flows: dict[str, Flow], emulated: bool
) -> None:
    """A bar, with what went through it in all."""
    pen.card(box, RAISED)
    title = "copies" if box["kind"] == "pcie" and emulated else box["title"]
    mine = [flows[f"+{n}"].nbytes for n, link in links.items()
            if link["kind"] == "nvlink" and link["to"] == name and f"+{n}" in flows]  # fmt: skip
    said = f"{title} · {amount(sum(mine), 'B')}" if sum(mine) else title
    said = said if pen.width(said) < box["h"] - 8 else title
    pen.words(box["x"] + box["w"] / 2, box["y"] + box["h"] / 2, said, "center", rotation=90,
              va="center")  # fmt: skip


def _unit(pen: Pen, box: dict, flows: dict[str, Flow], busy: float | None) -> None:
    """What works: for how long in all and, in a row, how fast it read its memory."""
    kind, x, y, w, h = (box[key] for key in ("kind", "x", "y", "w", "h"))
    pen.card(box)
    if kind == "nic":
        pen.words(x + w / 2, y + h / 2 + 4, "NIC", "center", weight="bold", color=TEXT)
        return
    first = y + 16 if h >= 60 else y + h / 2 - 3
    pen.words(x + 9, first, box["title"], weight="bold", color=TEXT)
    read = flows.get(f"+read:{box['rank']}") if kind == "compute" and h < 84 else None
    said = f"read {amount(read.rate, 'B/s')}" if read else f"busy {amount(busy or 0.0, 's')}"
    pen.fit(x + 9, first + 13.5, [said if read or busy else "idle"], w - 16)
    if kind == "compute" and h >= 84:
        size, ink = (w - 18 - 15) / 6, "compute" if busy else "idle"
        for i in range(6 * max(3, min(8, int((h - 60) / 12)))):
            corner = (x + 9 + i % 6 * (size + 3), y + h - 9 - size - i // 6 * (size + 3))
            pen.ax.add_patch(Rectangle(corner, size, size, facecolor=INK[ink].colour))


def _tank(pen: Pen, box: dict, peak: Peak, emulated: bool) -> None:
    """Layers up to the peak; of a memory of which little was used only the lower part is drawn."""
    x, y, w, h = box["tank"]
    up, ink, card = box["fill"] == "up", INK[box["kind"]].colour, pen.card(box)
    top, magnified = scale(sum(peak.levels.values()), peak.capacity)
    if not up:
        pen.ax.add_patch(Rectangle((x, y), w, h, facecolor=RAISED))
    low, long, edges = 0.0, h if up else w, []
    for (label, nbytes), tint in zip(order(peak.levels).items(), TINTS, strict=False):
        size = min(long - low, max(1.5, nbytes / top * long))
        corner, wide, high = ((x, y + h - low - size), w, size) if up else ((x + low, y), size, h)
        look = {"facecolor": ink, "alpha": tint, "linewidth": 0}
        if label == facts.RESERVED:
            look = {"fill": False, "edgecolor": ink, "linestyle": ":"}
        layer = pen.ax.add_patch(Rectangle(corner, wide, high, **look))
        layer.set_clip_path(card)
        edges.append((label, nbytes, low, size))
        low += size
    if low and up:
        level = next((edge[2] for edge in edges if edge[0] == facts.RESERVED), low)
        line = pen.ax.plot((x, x + w), (y + h - level,) * 2, color=ink, linewidth=1.3)[0]
        line.set_clip_path(card)
    _say_held(pen, box, peak, emulated, amount(top, "B") if magnified else "")
    if up:
        _label(pen, box, edges)


def _say_held(pen: Pen, box: dict, peak: Peak, emulated: bool, top: str) -> None:
    """Name, how much at the peak, of how much; and where a magnified tank is cut off."""
    x, y, w, up = box["x"], box["y"], box["w"], box["fill"] == "up"
    held, whole = amount(peak.nbytes, "B"), amount(peak.capacity or 0, "B")
    number, unit = held.split()
    brief = number if whole.endswith(f" {unit}") else held
    said = [f"{held} of {whole}", f"{brief} of {whole}"] if peak.capacity else []
    said = [*(f"peak {words}" for words in said), *said, f"peak {held}"]
    if box["kind"] == "ssd":
        said = [f"{whole} free" if peak.capacity else ""]
    tank = box["tank"]
    first = y + 16 if up else tank[1] - 5
    pen.words(x + 9, first, box["title"], weight="bold", color=TEXT)
    if not up:
        room = w - 24 - pen.width(box["title"], weight="bold")
        pen.fit(x + w - 9, first, said, room, "right", color=TEXT)
        pen.words(x + w - 9, tank[1] + tank[3] / 2 + 3.5, f"to {top}" if top else "", "right")
        return
    pen.fit(x + 9, first + 13.5, said, w - 18)
    if box["kind"] == "hbm" and emulated and tank[1] - y > 45:
        pen.words(x + 9, first + 27, "emulated in DRAM")
    if top:
        many = 2 * round(w / 14)
        teeth = [tank[1] + 2 - 4 * (i % 2) for i in range(many + 1)]
        pen.ax.plot([x + i * w / many for i in range(many + 1)], teeth, color=RULE, linewidth=0.9)
        pen.words(x + w - 9, tank[1] + 15, f"top = {top}", "right")


def _label(pen: Pen, box: dict, edges: list[tuple[str, int, float, float]]) -> None:
    """Names stand inside a thick layer, and above the surface for the thin ones."""
    x, y, w, h = box["tank"]
    total, free = sum(size for *_, size in edges), float("-inf")
    named = [edge for edge in edges if edge[1] * 2000 >= sum(n for _, n, *_ in edges)][:NAMED]
    for label, nbytes, low, size in named:
        middle = max(low + size / 2 if size >= 17 else total + 10, free + 14)
        if middle > h - 20:
            continue
        free = middle
        name, size = meaning.said(label), amount(nbytes, "B")
        words = [f"{name} {size}", f"{label} {size}", name]
        tint = TINTS[[edge[0] for edge in edges].index(label)]
        ink = INK[box["kind"]].colour
        pen.ax.add_patch(Rectangle((x + 9, y + h - middle - 3), 6, 6, facecolor=ink, alpha=tint,
                                   fill=label != facts.RESERVED))  # fmt: skip
        pen.fit(x + 19, y + h - middle + 4, words, w - 26, color=TEXT)


def _figures(pen: Pen, name: str, link: dict, flows: dict[str, Flow]) -> None:
    """Around the link: what crossed it, how many bytes, how fast, and how that is known."""
    x, y, side, room = link["label"]
    ways = [(sign, flows[f"{sign}{name}"]) for sign in "+-" if f"{sign}{name}" in flows]
    if not ways:
        return
    ways.sort(key=lambda way: -way[1].nbytes)
    (sign, flow), half = ways[0], link["width"] / 2
    over = [f"{flow.label or 'bytes'} {arrow(link, sign)}", amount(flow.nbytes, "B")]
    under = [flow.how]
    if flow.ceiling and flow.rate:
        under.append(f"{percent(flow.rate, flow.ceiling)} of ceiling")
    for other, back in ways[1:]:
        under.append(f"{arrow(link, other)} {back.label} {amount(back.nbytes, 'B')}")
    rate = amount(flow.rate, "B/s")
    if side == "start":
        parts = ["InfiniBand", *over, rate, *under]
        said = [" · ".join(parts[:n]) for n in range(len(parts), 4, -1)]
        pen.fit(x, y + 4, said, room)
        return
    lines = [*over, rate]
    for i, words in enumerate(lines):
        look = {"weight": "bold", "color": TEXT} if words == rate else {}
        pen.fit(x, y - half - 6 - 13 * (len(lines) - 1 - i), [words], room - 6, "center", **look)
    for i, words in enumerate(under):
        pen.fit(x, y + half + 13 + 13 * i, [words], room - 6, "center")


def _text(pen: Pen, sheet: dict, prompt: str, words: list[str]) -> None:
    """The last words of the last request, and the newest on the card that leaves the CPU."""
    if not words:
        return
    (x, y, w, h), cpu = sheet["card"], sheet["boxes"]["cpu"]
    pen.card({"x": x, "y": y, "w": w, "h": h})
    pen.ax.annotate("", (x + w, y + h / 2), (cpu["x"], y + h / 2), zorder=0.7, arrowprops={
        "arrowstyle": "-|>", "color": "#B6BCC6", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0})
    last = len(words) - 1
    newest = visible(words[last])
    pen.words(x + 9, y + 15, f"token {last}, the last one")
    said = newest.replace(" ", "␣", 1) if newest.startswith(" ") else newest
    pen.fit(x + 9, y + h - 9, [said or "…"], w - 18, size=12, weight="bold", color=TEXT)
    left, base, room = sheet["text"]
    said = [visible(prompt) if last < 80 else "…", visible("".join(words[-80:]))]
    while pen.width("".join(said), 8) > room:
        said = ["", ("…" + "".join(said).lstrip("…")[4:])]
    pen.words(left, base - 4, said[0], size=8)
    pen.words(left + pen.width(said[0], 8), base - 4, said[1], size=8, color=TEXT)
