// What the canvas views have in common: they follow a run, share its stretch, and listen to hands.
import { announce, Sheet } from "./sheet.js";
import { stretchOf } from "./stretch.js";
import { AXIS, chosenToken, paintAxis, paintChosen, shineTime, timeScale } from "./time_axis.js";

const DRAGGED = 4; // px after which a press is no click

// A view over time. One of its kind says: layOut() when there are new events; place(), which sets
// `bottom`, px, when the width is known; inkPlot(g) and shinePlot(g) between `top` and bottom;
// words(), the view in a sentence; and what hands do: hover(x, y), leave(), open(x), step(key),
// enter(). Arrow keys that step() knows and Enter are the view's, not the player's.
export class TimeView {
  constructor(el, name, run, onSeek) {
    Object.assign(this, { run, onSeek, t: 0, view: {}, events: null, top: 0, bottom: 0 });
    this.stretch = stretchOf(run);
    this.sheet = new Sheet(el, name, { paint: (g) => this.paint(g), shine: (g) => this.shine(g) });
    this.undo = [this.stretch.watch(this.sheet.touch), hearHands(this)];
  }

  // To trace time t, as the player says in `view`; redraws only what that changes.
  draw(t, view) {
    const { run, stretch, sheet, view: before } = this;
    const way = (one) => JSON.stringify([one.selection || null, Boolean(one.live)]);
    if (way(view) !== way(before)) {
      sheet.touch("paper");
      const token = chosenToken(run, view);
      if (token && !view.live) stretch.reveal(token.start, token.stop);
    }
    if (run.events !== this.events) sheet.grow(view.live);
    if (t !== this.t || view.playing !== before.playing) sheet.touch("glass");
    stretch.update(view);
    if (t !== this.t) stretch.keep(run.clock.play(this.t), run.clock.play(t));
    Object.assign(this, { t, view: { ...view } });
  }

  paint(g) {
    const { run, sheet, view } = this;
    if (run.events !== this.events) {
      this.events = run.events;
      this.layOut();
      if (!view.live) sheet.describe(`${this.words()} Arrow keys go through it.`);
    }
    const scale = this.scale = timeScale(sheet, this.stretch);
    this.place();
    sheet.setHeight(this.bottom + AXIS);
    paintChosen(g, sheet, run, view, scale, this.bottom);
    this.axis = paintAxis(g, sheet, run, view, scale, this.top, this.bottom);
    this.inkPlot(g);
  }

  shine(g) {
    if (!this.scale) return;
    this.shinePlot(g);
    const { run, sheet, view, scale, axis, t } = this;
    shineTime(g, sheet, run, view, scale, axis, t, this.stretch.pointer);
  }

  // The trace time under x goes to the player.
  seek(x) { this.onSeek(this.run.clock.trace(this.scale.at(x))); }

  // Bring from … to (play seconds) into view.
  reach(from, to) {
    const { stretch } = this;
    if (from >= stretch.from && to <= stretch.to) return;
    stretch.pan((from + to) / 2 - (stretch.from + stretch.to) / 2);
    this.scale = timeScale(this.sheet, stretch);
  }

  // Show a card at x, at {y, height}; if the keyboard asked for it, say it too.
  tell(x, place, facts, aloud) {
    this.sheet.card.show(x, place, facts);
    if (aloud) announce(this.sheet.el, `${facts.title}: ${facts.lines.join(", ")}`);
  }

  destroy() {
    for (const undo of this.undo) undo();
    this.sheet.destroy();
  }
}

// Pointer, wheel and keys of a view. Returns the undo.
function hearHands(view) {
  const { sheet, stretch } = view, { canvas } = sheet;
  const heard = {
    ...pointerHands(view),
    wheel: (event) => view.scale && turnWheel(event, view.scale, stretch),
    keydown: (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !view.scale) return;
      if (!pressKey(event, view)) return;
      event.preventDefault();
      event.stopPropagation(); // the player has the same keys for other things
    },
    blur: () => view.leave(),
  };
  sheet.box.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's: 0 0 restarts
  for (const [name, hear] of Object.entries(heard)) {
    canvas.addEventListener(name, hear, { passive: false });
  }
  return () => {
    for (const [name, hear] of Object.entries(heard)) canvas.removeEventListener(name, hear);
  };
}

// A click seeks. A drag moves what is seen, or the playhead if all of the run is.
function pointerHands(view) {
  const { sheet, stretch } = view;
  let press = null; // {x, from, moved}
  const place = (event) => {
    const box = sheet.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  return {
    pointerdown: (event) => {
      if (event.button || !view.scale) return;
      press = { x: place(event)[0], from: stretch.from, moved: false };
      sheet.canvas.setPointerCapture(event.pointerId);
    },
    pointermove: (event) => {
      const [x, y] = place(event);
      if (!view.scale) return;
      if (!press) view.hover(x, y);
      else if (press.moved ||= Math.abs(x - press.x) > DRAGGED) {
        if (stretch.isWhole) view.seek(x);
        else stretch.pan(press.from - (x - press.x) / view.scale.perSecond - stretch.from);
      }
    },
    pointerup: (event) => {
      if (press && !press.moved) view.seek(place(event)[0]);
      press = null;
    },
    pointercancel: () => { press = null; },
    pointerleave: () => { if (!press) view.leave(); },
    dblclick: (event) => view.open(place(event)[0]),
  };
}

// A wheel with Ctrl, which is also how a pinch comes, zooms; sideways pans; else the page scrolls.
function turnWheel(event, scale, stretch) {
  const aside = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
  if (event.ctrlKey) {
    stretch.zoom(Math.exp(-0.01 * event.deltaY), scale.at(event.offsetX));
  } else if (Math.abs(aside) > Math.abs(event.deltaY) / 2 && !stretch.isWhole) {
    stretch.pan(aside / scale.perSecond);
  } else return;
  event.preventDefault();
}

// Whether the key meant something here.
function pressKey(event, view) {
  const { key } = event, { stretch } = view, side = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (key === "+" || key === "=") stretch.zoom(2);
  else if (key === "-" || key === "_") stretch.zoom(0.5);
  else if (key === "0") stretch.fit();
  else if (side && event.shiftKey) stretch.pan(0.2 * side * stretch.seen);
  else if (key.startsWith("Arrow")) return view.step(key);
  else if (key === "Enter") return view.enter();
  else if (key === "Escape") view.leave();
  else return false;
  return true;
}

// Buttons for those with neither wheel nor keyboard, in the gutter: the same in every width.
export function zoomButtons(sheet, stretch) {
  const group = document.createElement("div");
  group.className = "minillm-zoom";
  const acts = [["+", "zoom in", () => stretch.zoom(2)],
    ["−", "zoom out", () => stretch.zoom(0.5)],
    ["↔", "show the whole run", () => stretch.fit()]];
  for (const [sign, name, act] of acts) {
    const button = group.appendChild(document.createElement("button"));
    Object.assign(button, { type: "button", textContent: sign, title: name, onclick: act });
    button.setAttribute("aria-label", name);
  }
  sheet.box.append(group);
}
