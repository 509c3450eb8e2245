// Words in and out of the machine: the strip of stages above it, the text so far below it, and the
// card with the word that has just left the CPU.

import { setText, svgPart, textWidth } from "./machine_svg.js";
import { visible } from "./machine_words.js";

const TOKENS = 80; // tokens of which the line can show no more
const LINE_EM = 1.15, WORD_EM = 1.6; // letters of the line and of the card
const HOLD = 350, NEAR = 500, CARD_EVERY = 120, GLIDE = 240; // ms for which the eye keeps something

// The stage that has most of the window is lit; others in it are near it.
export class StageStrip {
  constructor(svg, stages, lacking) {
    this.stages = stages.map((one) => {
      const none = one.stage === "parallel" && lacking;
      const g = svgPart("g", { class: `stage${none ? " none" : ""}` }, svg);
      svgPart("rect", { x: one.x, y: one.y, width: one.w - 8, height: 3, rx: 1.5 }, g);
      setText(svgPart("text", { x: one.x, y: one.y + 19 }, g), one.title);
      return { ...one, g, seen: -Infinity };
    });
  }

  get title() { return this.stages.find((one) => one.stage === this.lit)?.title; }

  light(spent, now, still) {
    const most = Object.keys(spent).reduce((a, b) => (spent[b] > (spent[a] ?? -1) ? b : a), null);
    if (most !== this.lit && (still || !most || !(now - this.since < HOLD))) {
      [this.lit, this.since] = [most, now];
    }
    for (const one of this.stages) {
      if (one.stage in spent) one.seen = now;
      const near = one.stage in spent || (!still && now - one.seen < NEAR);
      one.g.classList.toggle("lit", one.stage === this.lit);
      one.g.classList.toggle("near", near);
    }
  }
}

// The prompt faint, the words so far, the newest one marked; cropped at the left when it is long.
export class TextLine {
  constructor(svg, [x, y, w], id) {
    Object.assign(this, { x, w });
    const clip = svgPart("clipPath", { id }, svg);
    svgPart("rect", { x, y: y - 24, width: w, height: 36 }, clip);
    const held = svgPart("g", { "clip-path": `url(#${id})` }, svg);
    this.text = svgPart("text", { x, y, class: "line" }, held);
    const names = ["prompt", "", "newest"];
    this.spans = names.map((name) => svgPart("tspan", { class: name }, this.text));
  }

  show({ words, prompt }, em) {
    const newest = visible(words.at(-1) || ""), before = visible(words.slice(-TOKENS, -1).join(""));
    const first = words.length > TOKENS ? "" : visible(prompt || "");
    [first, before, newest].forEach((text, i) => setText(this.spans[i], text));
    const wide = textWidth(first) + textWidth(before) + textWidth(newest, true);
    const long = wide * LINE_EM * em > this.w;
    this.text.setAttribute("x", long ? this.x + this.w : this.x);
    this.text.classList.toggle("end", long);
  }
}

// The newest token comes out of the CPU. It glides if there is time for that before the next one.
export class TokenCard {
  constructor(svg, [x, y, w, h], cpu, narrow) {
    Object.assign(this, { x, y, w, h, narrow, shown: "", at: -Infinity });
    const [px, py] = narrow ? [Math.min(cpu.x + cpu.w / 2, x + w - 12), y] : [x + w, y + h / 2];
    const way = narrow ? `M${px} ${cpu.y + cpu.h}V${py - 4}` : `M${cpu.x} ${py}H${px + 4}`;
    const tip = narrow ? `M${px - 4} ${py - 6}l4 6l4 -6z` : `M${px + 6} ${py - 4}l-6 4l6 4z`;
    svgPart("path", { d: way, class: "way" }, svg);
    svgPart("path", { d: tip, class: "tip" }, svg);
    this.g = svgPart("g", { class: "minillm-machine-token", "data-part": "token" }, svg);
    svgPart("rect", { x, y, width: w, height: h, rx: 8, class: "card" }, this.g);
    this.caption = svgPart("text", { x: x + 9, class: "faint" }, this.g);
    this.word = svgPart("text", { x: x + 9, class: "word" }, this.g);
  }

  place(em) {
    this.em = em;
    this.caption.setAttribute("y", this.y + 1.35 * em);
    this.word.setAttribute("y", this.y + this.h - (this.narrow ? 0.6 : 0.8) * em);
    this.shown = "";
  }

  show({ words, number }, now, { still, calm }) {
    const key = `${number} ${words.length}`, some = words.length > 0;
    if (key === this.shown || (!still && now - this.at < CARD_EVERY)) return;
    const text = visible(words.at(-1) || ""), space = text.startsWith(" ") ? "␣" : "";
    setText(this.caption, some ? `token ${words.length - 1}` : "next token");
    this.word.replaceChildren();
    const said = some ? text.slice(space.length) || (space ? "" : "…") : "";
    for (const [name, part] of [["space", space], ["", said]]) {
      setText(svgPart("tspan", { class: name }, this.word), part);
    }
    const fits = (this.w - 18) / (this.em * Math.max(1, textWidth(space + said, true)));
    this.word.style.fontSize = `${Math.min(WORD_EM, fits).toFixed(2)}em`;
    if (this.shown && some && !still && !calm && now - this.at > GLIDE) this._arrive();
    this.g.classList.toggle("empty", !some);
    [this.shown, this.at] = [key, now];
  }

  _arrive() {
    const from = this.narrow ? "translateY(-8px)" : "translateX(14px)";
    this.word.animate([{ transform: from, opacity: 0 }, { transform: "none", opacity: 1 }],
      { duration: GLIDE, easing: "ease-out" });
  }
}
