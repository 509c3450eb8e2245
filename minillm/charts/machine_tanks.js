// The memories of the machine diagram: tanks that fill, a layer for each label.

import { INSET, LINES, WordBox } from "./machine_boxes.js";
import { RESERVED } from "./events.js";
import { formatBytes } from "./formats.js";
import { memorySaid } from "./machine_words.js";
import { fitting, setAttr, setText, svgPart } from "./machine_svg.js";

const LOWEST = ["weights", "KV cache", RESERVED]; // in a tank; the rest on top of them
const TINTS = [0.28, 0.55, 0.75, 0.95]; // what is large is pale, what is thin is strong
const UNNAMED = 2000; // a layer this many times smaller than the whole is seen, but not named
const tankCount = { made: 0 };

// The bytes that the top of a tank stands for. A tank of which less than an eighth is ever used is
// drawn magnified: to a power of two above its peak, with a torn top edge and the words to say so.
export function tankTop(peak, capacity) {
  if (capacity && peak * 8 >= capacity) return { top: capacity, open: false };
  const top = 2 ** Math.ceil(Math.log2(Math.max(4096, peak * 1.25)));
  return capacity && top >= capacity ? { top: capacity, open: false } : { top, open: peak > 0 };
}

// From levels to layers, from the bottom up; of more than four the small ones together.
// arrived: how many bytes of the weights' room are filled; null if all of them are.
export function layersOf(levels, arrived) {
  const rank = (label) => (LOWEST.includes(label) ? LOWEST.indexOf(label) : LOWEST.length);
  const all = Object.entries(levels).filter(([, nbytes]) => nbytes > 0)
    .map(([label, nbytes]) => ({ label, nbytes, there: nbytes }))
    .sort((a, b) => rank(a.label) - rank(b.label) || b.nbytes - a.nbytes);
  const weights = all.find((one) => one.label === "weights");
  if (weights && arrived !== null) weights.there = Math.min(weights.nbytes, arrived);
  if (all.length <= TINTS.length) return all;
  const rest = all.slice(TINTS.length - 1).reduce((sum, one) => sum + one.nbytes, 0);
  return [...all.slice(0, TINTS.length - 1), { label: "other", nbytes: rest, there: rest }];
}

// A memory fills from the bottom up, or, where it is low and wide, from the left.
export class MemoryBox extends WordBox {
  constructor(...args) {
    super(...args);
    const { box } = this, [x, y, w, h] = box.tank, ink = `var(--m-${box.kind})`;
    this.up = box.fill === "up";
    this.long = this.up ? h : w;
    const clip = `minillm-tank-${tankCount.made++}`;
    const shape = svgPart("clipPath", { id: clip }, this.g);
    svgPart("rect", this.up ? { x: box.x, y: box.y, width: box.w, height: box.h, rx: 8 }
      : { x, y, width: w, height: h, rx: 3 }, shape);
    const held = svgPart("g", { "clip-path": `url(#${clip})` }, this.g);
    if (!this.up) svgPart("rect", { x, y, width: w, height: h, class: "track" }, held);
    this.layers = TINTS.map((tint) => ({
      there: svgPart("rect", { x, y, fill: ink, "fill-opacity": tint }, held),
      awaited: svgPart("rect", { x, y, class: "awaited", stroke: ink }, held),
    }));
    this.surface = svgPart("path", { class: "surface", stroke: ink }, held);
    this.torn = svgPart("path", { class: "torn", d: this.up ? tornEdge(box.tank) : "" }, this.g);
    this.tornSays = svgPart("text", { class: "end faint" }, this.g);
    this.labels = TINTS.map((tint) => {
      const label = svgPart("g", {}, this.g);
      svgPart("rect", { width: 6, height: 6, y: -6.5, fill: ink, "fill-opacity": tint,
        stroke: ink, "stroke-width": 0.8 }, label);
      svgPart("text", { x: 11 }, label);
      return label;
    });
    this._makeWords();
  }

  // tank: {levels, used, capacity, peak, arrived}: see layersOf and tankTop.
  hold(tank) {
    Object.assign(this, tankTop(Math.max(tank.peak, tank.used), tank.capacity));
    let low = 0;
    this.edges = layersOf(tank.levels, tank.arrived).map((one) => {
      const size = Math.min(this.long - low, Math.max(1.5, (one.nbytes / this.top) * this.long));
      const filled = one.label === RESERVED ? 0 : one.there / one.nbytes;
      const edge = { ...one, low, size, full: size * filled };
      low += size;
      return { ...edge, named: one.nbytes * UNNAMED >= tank.used };
    });
    this.layers.forEach(({ there, awaited }, i) => {
      const { low: from, full, size } = this.edges[i] || { low: 0, full: 0, size: 0 };
      this._stretch(there, from, full);
      this._stretch(awaited, from + full, size - full);
    });
    const [x, y, w, h] = this.box.tank, first = this.edges.find((one) => one.full < one.size);
    const level = Math.round(10 * (first ? first.low + first.full : low)) / 10; // what is there
    this.air = this.long - level;
    const line = this.up ? `M${x} ${y + h - level}h${w}` : `M${x + level} ${y}v${h}`;
    setAttr(this.surface, "d", low ? line : "");
    setAttr(this.torn, "display", this.open ? "inline" : "none");
  }

  _stretch(rect, low, size) {
    const [x, y, w, h] = this.box.tank, shown = size > 0.05;
    setAttr(rect, this.up ? "y" : "x", (this.up ? y + h - low - size : x + low).toFixed(1));
    setAttr(rect, this.up ? "height" : "width", shown ? size.toFixed(1) : 0);
    setAttr(rect, this.up ? "width" : "height", shown ? (this.up ? w : h) : 0);
  }

  // Write how full it is, to what scale it is drawn, and what its layers are.
  sayHeld(tank) {
    const { kind, title } = this.box, said = memorySaid(kind, tank);
    const top = formatBytes(this.top);
    const scale = !this.open ? [] : this.up ? [`top = ${top}`, top] : [`to ${top}`];
    const how = kind === "hbm" && this.emulated ? "emulated in DRAM" : "";
    if (this.up) {
      const third = this.box.tank[1] - this.box.y > 45, short = how ? ["emulated"] : [];
      this.say([title, fitting(said, this.room), third ? how : ""], third ? [] : short);
    } else {
      this.say([title], said);
    }
    this._sayScale(scale);
    if (this.up) this._label();
  }

  // Not where the surface would strike it through.
  _sayScale(scale) {
    const [x, y, w, h] = this.box.tank, { em, box } = this, free = !this.up || this.air >= 2 * em;
    this.scaled = free && this.long > 6 * em && scale.length > 0;
    setText(this.tornSays, this.scaled ? fitting(scale, this.room) : "");
    setAttr(this.tornSays, "x", this.up ? x + w - INSET : box.x + box.w - INSET);
    setAttr(this.tornSays, "y", (this.up ? y + 1.55 * em : y + h / 2 + 0.35 * em).toFixed(1));
  }

  // Names stand inside a thick layer, and above the surface for the thin ones.
  _label() {
    const [x, y, w, h] = this.box.tank, { em } = this, room = (w - 2 * INSET - 11) / em;
    const total = this.edges.reduce((high, one) => Math.max(high, one.low + one.size), 0);
    const highest = h - (this.scaled ? 2.4 : 0.7) * em;
    let free = -Infinity; // up to here, from the bottom, words stand
    this.labels.forEach((label, i) => {
      const one = this.edges[i];
      const thick = one && one.size >= 1.5 * em && one.there === one.nbytes;
      const wanted = one && (thick ? one.low + one.size / 2 : total + 0.9 * em);
      const middle = one ? Math.max(wanted, free + LINES * em) : 0;
      const shown = one && one.named && (thick || middle <= highest);
      setAttr(label, "display", shown ? "inline" : "none");
      if (!shown) return;
      free = middle;
      const name = one.label, brief = name.split(" ")[0];
      const nbytes = formatBytes(one.there);
      const arriving = { used: one.there, capacity: one.nbytes };
      const part = one.there === one.nbytes ? []
        : memorySaid("", arriving).map((words) => `${name} ${words}`);
      const said = [...part, `${name} ${nbytes}`, `${brief} ${nbytes}`, name];
      setText(label.lastChild, fitting(said, room));
      setAttr(label.firstChild, "fill-opacity", one.full ? TINTS[i] : 0);
      setAttr(label, "transform",
        `translate(${x + INSET} ${(y + h - middle + 0.34 * em).toFixed(1)})`);
    });
  }

  // The same for a tip: each label with its bytes.
  held() {
    const scale = this.open ? [`drawn up to ${formatBytes(this.top)}, so that it can be seen`] : [];
    return [...this.edges.map((one) => `${one.label} ${formatBytes(one.there)}`
      + (one.there < one.nbytes ? ` of ${formatBytes(one.nbytes)}` : "")), ...scale];
  }
}

// A zigzag along the edge beyond which the tank goes on.
function tornEdge([x, y, w]) {
  const many = 2 * Math.round(w / 14);
  const teeth = Array.from({ length: many }, (_, i) => `l${w / many} ${i % 2 ? 4 : -4}`);
  return `M${x} ${y + 2}${teeth.join("")}`;
}
