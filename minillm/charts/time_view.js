// What the canvas views have in common: they follow a run, over all its time, and listen to hands.
import { announce, Sheet } from "./sheet.js";
import { AXIS, paintAxis, paintChosen, shineTime, timeScale } from "./time_axis.js";

// A view over time. One of its kind says: layOut(), which sets `bottom`, px, when there are new
// events; inkPlot(g) and shinePlot(g) between `top` and bottom; words(), the view in a sentence; and
// what hands do: hover(x, y), leave(), step(key), enter().
// Arrow keys that step() knows and Enter are the view's, not the player's.
export class TimeView {
  constructor(el, name, run, onSeek) {
    Object.assign(this, { run, onSeek, t: 0, view: {}, events: null, top: 0, bottom: 0 });
    this.pointer = null; // play seconds under the mouse, or where the arrow keys went
    this.sheet = new Sheet(el, name, { paint: (g) => this.paint(g), shine: (g) => this.shine(g) });
    hearHands(this);
  }

  // To trace time t, as the player says in `view`; redraws only what that changes.
  draw(t, view) {
    const { run, sheet, view: before } = this;
    const way = (one) => JSON.stringify([one.selection || null, Boolean(one.live)]);
    if (way(view) !== way(before)) sheet.touch("paper");
    if (run.events !== this.events) sheet.grow(view.live);
    if (t !== this.t || view.playing !== before.playing) sheet.touch("glass");
    Object.assign(this, { t, view: { ...view } });
  }

  paint(g) {
    const { run, sheet, view } = this;
    if (run.events !== this.events) {
      this.events = run.events;
      this.layOut();
      if (!view.live) sheet.describe(`${this.words()} Arrow keys go through it.`);
    }
    const scale = this.scale = timeScale(sheet.width, run.clock.length, view.live);
    sheet.setHeight(this.bottom + AXIS);
    paintChosen(g, sheet, run, view, scale, this.bottom);
    this.axis = paintAxis(g, sheet, run, scale, this.top, this.bottom);
    this.inkPlot(g);
  }

  shine(g) {
    if (!this.scale) return;
    this.shinePlot(g);
    const { run, sheet, view, scale, axis, t, pointer } = this;
    shineTime(g, sheet, run, view, scale, axis, t, pointer);
  }

  // A line at `at`, play seconds; null for none.
  point(at) {
    if (at !== this.pointer) this.sheet.touch("glass");
    this.pointer = at;
  }

  // The trace time under x goes to the player.
  seek(x) { this.onSeek(this.run.clock.trace(this.scale.at(x))); }

  // Show a card at x, at {y, height}; if the keyboard asked for it, say it too.
  tell(x, place, facts, aloud) {
    this.sheet.card.show(x, place, facts);
    if (aloud) announce(this.sheet.el, `${facts.title}: ${facts.lines.join(", ")}`);
  }

  destroy() { this.sheet.destroy(); }
}

// Pointer and keys of a view: a click or a drag moves the playhead.
function hearHands(view) {
  const { sheet, sheet: { canvas } } = view;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const heard = {
    pointerdown: (event) => {
      if (event.button || !view.scale) return;
      canvas.setPointerCapture(event.pointerId);
      view.seek(place(event)[0]);
    },
    pointermove: (event) => {
      if (!view.scale) return;
      if (event.buttons && canvas.hasPointerCapture(event.pointerId)) view.seek(place(event)[0]);
      else view.hover(...place(event));
    },
    pointerleave: () => view.leave(),
    keydown: (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !view.scale) return;
      if (!pressKey(event.key, view)) return;
      event.preventDefault();
      event.stopPropagation(); // the player has the same keys for other things
    },
    blur: () => view.leave(),
  };
  sheet.box.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's: 0 0 restarts
  for (const [name, hear] of Object.entries(heard)) canvas.addEventListener(name, hear);
}

// Whether the key meant something here.
function pressKey(key, view) {
  if (key.startsWith("Arrow")) return view.step(key);
  if (key === "Enter") return view.enter();
  if (key === "Escape") view.leave();
  return key === "Escape";
}
