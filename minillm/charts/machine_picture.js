// One picture of the machine, wide or narrow: it puts the parts together and sets them to a moment.

import { baseOf, formatRate } from "./run.js";
import { SwitchBox, UnitBox } from "./machine_boxes.js";
import { MemoryBox } from "./machine_tanks.js";
import { FADES, MachinePipe } from "./machine_pipes.js";
import { StageStrip, TextLine, TokenCard } from "./machine_text.js";
import { flowsOf } from "./machine_flows.js";
import { linkLines, linkSentence, memorySaid, pipeName } from "./machine_words.js";
import { partSays, sceneSentence } from "./machine_words.js";
import { fitting, setText, svgPart } from "./machine_svg.js";

const SMALLEST = 10.4, EM = [10.2, 14.2]; // px on the page; units: the size of letters
const WORDS_EVERY = 250, ARIA_EVERY = 2000; // ms
const pictureCount = { made: 0 };

export class MachinePicture {
  constructor(root, run, sheet) {
    Object.assign(this, { root, run, sheet, em: 0, wordsAt: -Infinity, ariaAt: -Infinity });
    const { width, height, boxes, links } = sheet;
    this.emulated = run.meta.device === "cpu";
    this.svg = svgPart("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
      "data-keys": "own", "aria-label": "The machine." }, root);
    this.svg.classList.toggle("narrow", sheet.narrow);
    this.strip = new StageStrip(this.svg, sheet.stages, sheet.gpus < 2);
    this._makeFrames();
    const pipes = Object.entries(links), parts = Object.entries(boxes);
    this.pipes = new Map(pipes.map(([id, link]) => [id, new MachinePipe(this.svg, id, link)]));
    this.boxes = new Map(parts.map(([id, box]) => [id, this._makeBox(id, box)]));
    this.token = new TokenCard(this.svg, sheet.card, boxes.cpu, sheet.narrow);
    this.line = new TextLine(this.svg, sheet.text, `minillm-line-${pictureCount.made++}`);
    const made = this.emulated && sheet.gpus > 1 ? ["GPUs emulated by the CPU, HBM in DRAM"] : [];
    const note = svgPart("text", { x: width - 14, y: 49, class: "faint end" }, this.svg);
    setText(note, [...(sheet.note ? [sheet.note] : []), ...made].join(" · "));
  }

  destroy() { this.svg.remove(); }

  _makeBox(id, box) {
    const Kind = box.tank ? MemoryBox : ["pcie", "nvlink"].includes(box.kind) ? SwitchBox : UnitBox;
    return new Kind(this.svg, id, box, this.emulated);
  }

  _makeFrames() {
    this.captions = this.sheet.frames.map(({ kind, title, x, y, w, h, side }) => {
      svgPart("rect", { x, y, width: w, height: h, rx: 12, class: `frame ${kind}` }, this.svg);
      const end = side === "end", at = end ? x + w - 12 : x + 12;
      const text = svgPart("text", { x: at, class: end ? "faint end" : "faint" }, this.svg);
      const emulated = kind === "gpu" && this.emulated;
      const how = !emulated ? "" : this.sheet.narrow ? ", emulated" : ", emulated by the CPU";
      setText(text, title + how);
      return { text, y };
    });
  }

  // Letters keep a size that can be read, whatever the width of the page.
  resize(width) {
    const scale = width / this.sheet.width;
    const em = Math.min(EM[1], Math.max(EM[0], SMALLEST / scale));
    if (Math.abs(em - this.em) < 0.01) return;
    this.em = em;
    this.svg.style.fontSize = `${em.toFixed(2)}px`;
    [...this.boxes.values(), this.token].forEach((part) => part.place(em));
    this.captions.forEach(({ text, y }) => text.setAttribute("y", y + 1.5 * em));
    this.wordsAt = -Infinity;
  }

  // Set the picture to t. Returns the ms after which its words are due, 0 if they are up to date.
  show(t, view, now, calm) {
    const still = !view.live && !view.playing;
    if (still || t < this.t) { // nothing said or lit before holds any more
      this.pipes.forEach((pipe) => pipe.forget());
      this.wordsAt = -Infinity;
    }
    Object.assign(this, { t, view, still, calm, scene: this.run.scene(t, view.window) });
    const { events } = this.scene;
    this.flows = flowsOf(events, this.sheet, this.run.meta);
    this.flows.forEach((flow, step) => {
      if (step[0] !== "=") this.pipes.get(step.slice(1)).carry(flow, now);
    });
    this._fill();
    this._light(events, now);
    this.line.show(this.scene, this.em);
    this._card(now);
    const due = WORDS_EVERY - (now - this.wordsAt);
    if (due > 0) return due;
    this.say(now);
    return 0;
  }

  _card(now) {
    const { number } = this.run.requestAt(this.t) || {};
    this.token.show({ words: this.scene.words, number }, now, this);
  }

  // -- memory ------------------------------------------------------------------------------------

  // What a new event may change: which transfers fill the weights' room; peaks of the whole run.
  _facts() {
    const { events } = this.run;
    if (this.facts?.events !== events) {
      const loads = events.filter((e) => e.kind === "transfer" && e.label === "weights"
        && baseOf(e.target) === "hbm");
      this.facts = { events, loads, peaks: new Map() };
    }
    return this.facts;
  }

  // Bytes of weights that have come into an HBM by now; null for a run that loads none.
  _arrived(tier) {
    const mine = this._facts().loads.filter((e) => e.target === tier);
    return mine.length ? mine.reduce((sum, e) => sum + (e.end <= this.t ? e.nbytes : 0), 0) : null;
  }

  _peak(tier) {
    if (this.view.live) return this.scene.tiers[tier].peak;
    const { peaks } = this._facts();
    if (!peaks.has(tier)) peaks.set(tier, this.run.peak(tier).taken);
    return peaks.get(tier);
  }

  // What each memory box holds; the DRAM of several ranks is one box. What lies on the disk is not
  // counted in a trace: we show the weights there, of which we know that they came from it.
  _tanks() {
    const { home, boxes } = this.sheet, { weight_bytes: weights } = this.run.meta;
    const tanks = new Map();
    for (const [id, { kind }] of Object.entries(boxes)) {
      const filed = kind === "ssd" && weights ? { weights } : {};
      if (boxes[id].tank) {
        tanks.set(id, { levels: filed, used: filed.weights || 0, peak: filed.weights || 0,
          capacity: null, arrived: null });
      }
    }
    for (const [name, tier] of Object.entries(this.scene.tiers)) {
      const tank = tanks.get(home[name]);
      if (!tank) continue;
      for (const [label, nbytes] of Object.entries(tier.levels)) {
        tank.levels[label] = (tank.levels[label] || 0) + nbytes;
      }
      tank.used += tier.used;
      tank.peak += this._peak(name);
      tank.capacity ??= tier.capacity;
      if (baseOf(name) === "hbm") tank.arrived = this._arrived(name);
    }
    return tanks;
  }

  _fill() {
    this.tanks = this._tanks();
    for (const [id, tank] of this.tanks) this.boxes.get(id).hold(tank);
  }

  // -- who is at work --------------------------------------------------------------------------

  _light(events, now) {
    const spent = {}, units = new Map();
    for (const e of events) {
      spent[e.stage] = (spent[e.stage] || 0) + e.seconds;
      const works = e.kind === "span" && e.ink !== "idle";
      if (works) units.set(this.sheet.home[e.resource], e.resource);
    }
    this.strip.light(spent, now, this.still);
    this.busy = new Map([...units].map(([id, unit]) => [id, this.scene.busy[unit]]));
    for (const [id, box] of this.boxes) {
      if (box instanceof UnitBox) box.light(this.busy.has(id));
    }
  }

  // -- words, at most four times a second --------------------------------------------------------

  say(now) {
    this.wordsAt = now;
    for (const [id, box] of this.boxes) this._sayBox(id, box);
    for (const pipe of this.pipes.values()) {
      if (pipe.link.kind === "bus") continue;
      const flow = pipe.flow(now), flows = flow && (this.still || now - flow.seen < FADES + 100);
      const lines = linkLines(pipe.link, flow, this.run.meta, this.still, this.sheet.narrow);
      pipe.say(lines, this.em, flows);
    }
    this._card(now);
    if (!this.still && now - this.ariaAt < ARIA_EVERY) return;
    this.ariaAt = now;
    this.svg.setAttribute("aria-label", sceneSentence(this));
  }

  _sayBox(id, box) {
    const { kind, title, rank } = box.box, tank = this.tanks.get(id);
    const rate = (step) => (this.flows.has(step) ? formatRate(this.flows.get(step).rate) : "");
    if (tank) box.sayHeld(tank);
    else if (box instanceof SwitchBox) {
      box.say([kind === "pcie" && this.emulated ? "copies" : title, rate(`=${id}`)]);
    } else if (kind === "nic") box.say([title]);
    else {
      const read = this.sheet.gpus > 1 && kind === "compute" ? rate(`+read:${rank}`) : "";
      const now = this.busy.get(id) || "idle";
      const does = read ? [`reads ${read}`, read] : [now, now.split(" ")[0]];
      box.say([title, fitting(does, box.room)]);
    }
  }

  // All there is to say of a part: [name, what it is, figures …].
  about(id) {
    const box = this.boxes.get(id), pipe = this.pipes.get(id), { meta } = this.run;
    if (box) {
      const tank = this.tanks.get(id), { kind, title, rank } = box.box, says = [];
      if (tank) says.push(memorySaid(kind, tank)[0], ...box.held());
      if (tank) says.push(this.emulated && kind === "hbm" ? "emulated in DRAM" : "measured");
      if (this.busy.has(id)) says.push(`now: ${this.busy.get(id)}`);
      const read = kind === "compute" && this.pipes.get(`read:${rank}`);
      if (read) says.push(linkSentence(read.link, read.flow(performance.now()), meta));
      return [title, partSays(kind), ...says];
    }
    if (!pipe) return null;
    const { link } = pipe, flows = [...pipe.flows.values()];
    const said = (flows.length ? flows : [null]).map((flow) => linkSentence(link, flow, meta));
    const ends = [link.from, link.to].map((end) => this.sheet.boxes[end].title).join(" – ");
    return [`${pipeName(link.kind, this.emulated)}, ${ends}`, partSays(link.kind), ...said];
  }

  // Dots go on by dt seconds; returns whether any of them moves.
  move(now, dt) {
    return [...this.pipes.values()].filter((pipe) => pipe.move(now, dt, this)).length > 0;
  }
}
