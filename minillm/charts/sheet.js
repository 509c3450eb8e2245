// What the canvas views are drawn on: two layers of canvas, the inks, and a card for figures.
//
// The paper holds what changes with the run or the width; the glass over it holds the playhead and
// what the pointer touches, so that playing redraws little. At most one redraw an animation frame.

// The hatch of each meaning, as in charts/ink.py: a way to tell inks apart without colour.
// The inks themselves are in view.css.
const HATCH = { ssd: "/", dram: ".", network: "x", ffn: "/", cpu: "\\" };
const INKS = ["text", "faint", "rule", "paper", "raised", "accent", "ssd", "dram", "hbm", "network",
  "compute", "ffn", "cpu", "idle", "prediction"];

// paint(g, sheet) draws the paper, shine(g, sheet) the glass; both in CSS pixels, on clean layers.
export class Sheet {
  constructor(el, name, { paint, shine }) {
    Object.assign(this, { el, paint, shine, width: 0, height: 0, rested: 0, stale: new Set() });
    this.box = newElement("div", `minillm-sheet minillm-${name}-sheet`);
    this.layers = [0, 1].map(() => this.box.appendChild(newElement("canvas")));
    this.layers[0].setAttribute("aria-hidden", "true"); // the glass speaks for both
    this.canvas = this.layers[1];
    this.canvas.setAttribute("role", "img");
    this.canvas.tabIndex = 0;
    el.append(this.box);
    this.card = new Card(this.box);
    this.touch = this.touch.bind(this);
    this._watch();
  }

  _watch() {
    const all = () => this.touch("paper");
    const sized = () => { if (this.stale.size || this.box.clientWidth !== this.width) all(); };
    const sizes = new ResizeObserver(sized), themes = new MutationObserver(all);
    sizes.observe(this.box);
    const attributeFilter = ["class", "data-jp-theme-light", "data-jp-theme-name"];
    for (const page of [document.documentElement, document.body]) {
      themes.observe(page, { attributeFilter });
    }
    this._unwatch = () => {
      sizes.disconnect();
      themes.disconnect();
    };
  }

  // Redraw "paper" (and the glass over it) or "glass" in the next frame.
  touch(what) {
    this.stale.add(what);
    this.frame ||= requestAnimationFrame(() => this._redraw());
  }

  _redraw() {
    this.frame = 0;
    const width = this.box.clientWidth;
    if (!width) return; // not on the page yet, or hidden: the ResizeObserver will call
    const all = this.stale.has("paper") || width !== this.width;
    this.stale.clear();
    this.width = width;
    if (all) {
      clearTimeout(this.later); // a redraw of the glass alone leaves a late paper to come
      this.later = 0;
      const start = performance.now();
      this.ink = readInks(this.box);
      this.paint(this._clean(0), this);
      this.rested = performance.now() + 12 * (performance.now() - start);
    }
    this.shine(this._clean(1), this);
  }

  // There are new events. A live view of very many draws less often: it must not slow down the run
  // that it shows.
  grow(live) {
    const wait = live ? this.rested - performance.now() : 0;
    if (wait <= 0) this.touch("paper");
    else this.later ||= setTimeout(() => this.touch("paper"), wait);
  }

  describe(words) { this.canvas.setAttribute("aria-label", words); }

  // Set by paint before it draws, for only then does it know its rows.
  setHeight(height) {
    if (height === this.height) return;
    this.height = height;
    this.box.style.height = `${height}px`;
    this._clean(0);
  }

  _clean(layer) {
    const canvas = this.layers[layer], dots = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(this.width * dots), Math.round(this.height * dots)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const g = canvas.getContext("2d");
    g.setTransform(dots, 0, 0, dots, 0, 0);
    g.clearRect(0, 0, this.width, this.height);
    this.dots = dots;
    return g;
  }

  // `size` px of the page's own typeface.
  font(size, weight = 400) { return `${weight} ${size}px ${this.ink.family}`; }

  // The ink of a meaning: {colour, on: what is read on it, hatch: a pattern or null}.
  inkOf(meaning) {
    const { known } = this.ink;
    if (!known.has(meaning)) {
      const colour = this.ink[meaning] || this.ink.cpu;
      const hatch = HATCH[meaning] ? this.hatchOf(HATCH[meaning]) : null;
      known.set(meaning, { colour, on: readable(colour), hatch });
    }
    return known.get(meaning);
  }

  // "/", "\\", "." or "x" as a pattern to fill with, over an ink.
  hatchOf(kind) {
    const { known } = this.ink, key = `hatch ${kind}`;
    if (!known.has(key)) known.set(key, newHatch(kind, this.ink.paper, this.dots));
    return known.get(key);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.later);
    this._unwatch();
    this.box.remove();
  }
}

// Colours of the theme, read afresh at each full redraw; a theme may lighten some.
function readInks(el) {
  const style = getComputedStyle(el), inks = { family: style.fontFamily, known: new Map() };
  for (const name of INKS) inks[name] = style.getPropertyValue(`--m-${name}`).trim();
  return inks;
}

// Black or white, whichever reads better on a colour "#RRGGBB".
function readable(colour) {
  const hex = /^#(..)(..)(..)$/.exec(colour);
  if (!hex) return "#FFFFFF";
  const [r, g, b] = hex.slice(1).map((two) => (parseInt(two, 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#111827" : "#FFFFFF";
}

// A tile of thin lines or dots in the colour of the paper.
function newHatch(kind, paper, dots) {
  const side = 6, tile = document.createElement("canvas");
  tile.width = tile.height = side * dots;
  const g = tile.getContext("2d");
  g.scale(dots, dots);
  Object.assign(g, { strokeStyle: paper, fillStyle: paper, globalAlpha: 0.42, lineWidth: 0.9 });
  if (kind === ".") {
    for (const [x, y] of [[1.5, 1.5], [4.5, 4.5]]) g.fillRect(x - 0.6, y - 0.6, 1.2, 1.2);
  }
  for (const shift of [-side, 0, side]) { // lines go over the edges, so that tiles join
    if (kind === "/" || kind === "x") line(g, shift, side, shift + side, 0);
    if (kind === "\\" || kind === "x") line(g, shift, 0, shift + side, side);
  }
  const pattern = g.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / dots));
  return pattern;
}

export function line(g, x0, y0, x1, y1) {
  g.beginPath();
  g.moveTo(x0, y0);
  g.lineTo(x1, y1);
  g.stroke();
}

export function dashed(g, dashes, x0, y0, x1, y1) {
  g.setLineDash(dashes);
  line(g, x0, y0, x1, y1);
  g.setLineDash([]);
}

// The longest of the wordings that fits into `room` px, or "".
export function fittingIn(g, wordings, room) {
  return wordings.find((words) => g.measureText(words).width <= room) || "";
}

// `words` cut to `room` px with an ellipsis; "" where hardly a letter would stay.
export function shortened(g, words, room) {
  if (g.measureText(words).width <= room) return words;
  const letter = g.measureText(words).width / words.length;
  const keep = Math.floor(room / letter) - 1;
  return keep < 3 ? "" : `${words.slice(0, keep).trimEnd()}…`;
}

// The figures of one thing, beside it: a title and lines. The live region says them aloud, once.
export class Card {
  constructor(box) {
    Object.assign(this, { box, el: newElement("div", "minillm-card") });
    this.el.setAttribute("aria-hidden", "true");
    this.el.hidden = true;
    box.append(this.el);
  }

  // Above what it speaks of, or below: {y, height} in px of the sheet. facts: {title, lines}.
  show(x, { y, height }, { title, lines }) {
    const said = lines.map((text) => newElement("span", "", text));
    this.el.replaceChildren(newElement("strong", "", title), ...said);
    this.el.hidden = false;
    const { offsetWidth: w, offsetHeight: h } = this.el, wide = this.box.clientWidth;
    const left = x + 12 + w <= wide ? x + 12 : x - 12 - w;
    this.el.style.left = `${Math.max(0, Math.min(left, wide - w))}px`;
    this.el.style.top = `${y - h - 8 >= 0 ? y - h - 8 : y + height + 8}px`;
  }

  hide() { this.el.hidden = true; }
}

export const newElement = (tag, className = "", textContent = "") => (
  Object.assign(document.createElement(tag), { className, textContent }));

// Say it to those who listen instead of looking: one polite region for the whole player.
export function announce(el, words) {
  el.closest(".minillm").querySelector(":scope > [aria-live]").textContent = words;
}
