// The boxes of the machine diagram: units that work, switches, doors. Memories: machine_tanks.js.

import { setAttr, setText, svgPart, textWidth } from "./machine_svg.js";

export const INSET = 9; // units left and right of words
export const LINES = 1.32; // em from line to line

// A card with one to three lines of words; `right` stands at the end of the first one.
export class WordBox {
  constructor(parent, id, box, emulated) {
    Object.assign(this, { id, box, emulated, small: box.h < 60 || box.fill === "right" });
    const { x, y, w, h, kind } = box;
    this.g = svgPart("g", { class: `minillm-machine-box minillm-machine-${kind}`, "data-part": id },
      parent);
    svgPart("rect", { x, y, width: w, height: h, rx: Math.min(8, w / 3), class: "card" }, this.g);
  }

  _makeWords() {
    this.lines = [0, 1, 2].map((i) => svgPart("text", { class: i ? "faint" : "name" }, this.g));
    this.right = svgPart("text", { class: "end" }, this.g);
  }

  // Words move with the size of the letters: em is their size in units.
  place(em) {
    this.em = em;
    const { x, y, w, h, kind } = this.box, step = (this.small ? 1.24 : LINES) * em;
    const centre = kind === "nic", above = centre ? 0 : step / 2;
    const first = this.box.fill === "right" ? this.box.tank[1] - 0.45 * em
      : this.small ? y + h / 2 - above + 0.35 * em : y + 1.55 * em;
    this.lines.forEach((line, i) => {
      setAttr(line, "x", centre ? x + w / 2 : x + INSET);
      setAttr(line, "y", (first + i * step).toFixed(1));
      line.classList.toggle("mid", centre);
    });
    setAttr(this.right, "x", x + w - INSET);
    setAttr(this.right, "y", first.toFixed(1));
  }

  get room() { return (this.box.w - 2 * INSET) / this.em; } // of a line, in em

  // right: wordings, of which the first is taken that fits beside the first line.
  say(lines, right = []) {
    this.lines.forEach((line, i) => setText(line, lines[i] || ""));
    const free = this.room - textWidth(lines[0], true) - 0.6;
    setText(this.right, right.find((words) => textWidth(words) <= free) || "");
  }
}

// A bar between many links; its words stand along it.
export class SwitchBox extends WordBox {
  constructor(...args) {
    super(...args);
    const { x, y, w, h } = this.box, place = `translate(${x + w / 2} ${y + h / 2}) rotate(-90)`;
    this.word = svgPart("text", { transform: place, class: "mid faint", dy: "0.35em" }, this.g);
  }

  place(em) { this.em = em; }

  say([name, figure]) {
    const full = figure ? `${name} · ${figure}` : name;
    setText(this.word, textWidth(full) * this.em < this.box.h - 8 ? full : name);
  }
}

// What works: a few large cores or many small ones, lit while they do.
export class UnitBox extends WordBox {
  constructor(...args) {
    super(...args);
    const { kind, h } = this.box;
    const rows = Math.max(3, Math.min(8, Math.floor((h - 60) / 12)));
    if (kind !== "nic" && h >= 84) this._makeCells(...(kind === "cpu" ? [2, 1] : [6, rows]));
    this._makeWords();
  }

  _makeCells(across, down) {
    const { x, y, w, h } = this.box, gap = across > 3 ? 3 : 4;
    const wide = (w - 2 * INSET - gap * (across - 1)) / across, high = Math.min(wide, 14);
    const low = y + h - INSET - down * (high + gap) + gap;
    const cells = Array.from({ length: across * down }, (_, i) => {
      const left = x + INSET + (i % across) * (wide + gap);
      return `M${left} ${low + Math.floor(i / across) * (high + gap)}h${wide}v${high}h${-wide}z`;
    });
    svgPart("path", { d: cells.join(""), class: "cells" }, this.g);
  }

  light(on) { this.g.classList.toggle("busy", on); }
}
