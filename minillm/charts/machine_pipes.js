// The pipes of the machine diagram: as wide as their kind is fast, with dots that show what moves.
//
// Dots are one dashed path a lane: a dash of no length with round ends is a dot, and moving the
// dashes along moves them all. Speed and density follow bytes/s, both by its logarithm.

import { fitting, setAttr, setText, svgPart, textWidth } from "./machine_svg.js";

export const FADES = 500; // ms in which a link that has just carried something goes dark
const DOTS = { disk: 5, nic: 4, infiniband: 4.5, pcie: 4.5, bus: 4, nvlink: 5, read: 6 };

// 1 MB/s … 1 TB/s as 0 … 1.
export const paceOf = (rate) => Math.min(1, Math.max(0, (Math.log10(rate + 1) - 6) / 6));

// A polyline beside another one, by d units; its corners are right angles.
function beside(points, d) {
  const aside = points.slice(1).map(([x, y], i) => {
    const [u, v] = [x - points[i][0], y - points[i][1]], long = Math.hypot(u, v) || 1;
    return [(-v / long) * d, (u / long) * d];
  });
  const corners = points.map(([x, y], i) => {
    const before = aside[Math.max(0, i - 1)], after = aside[Math.min(aside.length - 1, i)];
    const turns = i > 0 && i < points.length - 1;
    return [x + after[0] + (turns ? before[0] : 0), y + after[1] + (turns ? before[1] : 0)];
  });
  return `M${corners.map(([x, y]) => `${x} ${y}`).join(" L")}`;
}

export class MachinePipe {
  constructor(parent, id, link) {
    Object.assign(this, { id, link, flows: new Map(), lanes: new Map() });
    this.g = svgPart("g", { class: `minillm-machine-link minillm-machine-${link.kind}`,
      "data-part": id }, parent);
    svgPart("path", { d: link.path, class: "reach", "stroke-width": link.width + 12 }, this.g);
    svgPart("path", { d: link.path, class: "pipe", "stroke-width": link.width }, this.g);
    this.words = Array.from({ length: link.label ? 9 : 0 }, () => svgPart("text", {}, this.g));
  }

  // At this moment these bytes move along (sign 1) or against (-1) the pipe.
  carry(flow, now) { this.flows.set(flow.sign, { ...flow, seen: now }); }

  forget() { this.flows.clear(); }

  // The flow that its words tell of: what moves now, else what moved last; of two the larger.
  flow(now) {
    const all = [...this.flows.values()], recent = all.filter((one) => now - one.seen < FADES);
    const larger = (a, b) => (a && a.nbytes >= b.nbytes ? a : b);
    return (recent.length ? recent : all).reduce(larger, null);
  }

  // A wide pipe that only leads one way has two rows of dots; else each direction has its side.
  _lane(sign) {
    if (!this.lanes.has(sign)) {
      const { kind, width, points } = this.link, side = width / 4;
      const rows = kind === "read" ? [-side, side] : [kind === "disk" ? 0 : sign * side];
      const paths = rows.map((d) => svgPart("path", { class: "lane", d: beside(points, d),
        "stroke-width": DOTS[kind] }, this.g));
      this.lanes.set(sign, { paths, at: 0 });
    }
    return this.lanes.get(sign);
  }

  // Move the dots by dt seconds; calm: a line instead. Returns whether they still move.
  // still: time stands, what is here stays lit.
  move(now, dt, { calm, still }) {
    let moves = false;
    for (const sign of [1, -1]) {
      const flow = this.flows.get(sign);
      if (!flow && !this.lanes.has(sign)) continue;
      const lane = this._lane(sign), age = flow ? now - flow.seen : Infinity;
      const light = still ? Number(Boolean(flow)) : Math.max(0, 1 - Math.max(0, age - 60) / FADES);
      if (light > 0) {
        this._drift(lane, flow, sign, still ? 0 : dt, calm);
        moves ||= !still;
      }
      const shown = light.toFixed(2);
      if (lane.light !== shown) lane.paths.forEach((path) => { path.style.opacity = shown; });
      lane.light = shown;
    }
    return moves;
  }

  _drift(lane, flow, sign, dt, calm) {
    const pace = paceOf(flow.rate), spacing = Math.round(25 - 14 * pace);
    lane.at = (lane.at + dt * (14 + 80 * pace)) % 1e6;
    const dots = calm ? "none" : `0 ${spacing}`;
    lane.paths.forEach((path, i) => {
      if (lane.dots !== dots) path.style.strokeDasharray = dots;
      if (lane.ink !== flow.ink) path.style.stroke = `var(--m-${flow.ink})`;
      const begin = spacing / 2 + (i * spacing) / 2;
      if (!calm) path.style.strokeDashoffset = (begin - sign * lane.at).toFixed(1);
    });
    Object.assign(lane, { dots, ink: flow.ink });
  }

  // Write its figures around it (see linkLines), fainter if nothing moves at this moment.
  say({ over, under }, em, flows) {
    if (!this.words.length) return;
    const [x, y, side, room] = this.link.label, step = 1.28 * em, half = this.link.width / 2;
    const wrapped = (lines) => lines.flatMap((line) =>
      (Array.isArray(line) ? [fitting(line, room / em)] : wrap(line, room / em)));
    const above = wrapped(over), below = wrapped(under), all = [...above, ...below];
    const oneLine = side === "start" && room > 200;
    const said = all.map((_, i) => all.slice(0, all.length - i).join(" · "));
    const lines = oneLine ? [[fitting(said, room / em), y + 0.35 * em]] : side === "start"
      ? all.map((line, i) => [line, y + 0.35 * em + (i - (all.length - 1) / 2) * step])
      : all.map((line, i) => [line, i < above.length
        ? y - half - 0.55 * em - (above.length - 1 - i) * step
        : y + half + 1.2 * em + (i - above.length) * step]);
    this.words.forEach((word, i) => {
      const [text, at] = lines[i] || ["", 0];
      setText(word, text);
      if (!text) return;
      setAttr(word, "x", x);
      setAttr(word, "y", at.toFixed(1));
      const kind = !flows ? "old" : text === above.at(-1) ? "figure" : "faint";
      setAttr(word, "class", side === "middle" ? `mid ${kind}` : kind);
    });
  }
}

// A line that is too long on two lines, if there is a space in it.
function wrap(line, room) {
  if (textWidth(line) <= room) return [line];
  const gaps = [...line].flatMap((letter, i) => (letter === " " ? [i] : []));
  const cut = gaps.filter((i) => textWidth(line.slice(0, i)) <= room).at(-1) ?? gaps[0];
  return cut === undefined ? [line] : [line.slice(0, cut), line.slice(cut + 1)];
}
