// The stretch of a run that the eye sees, shared by the views of that run: their time axes line up.
//
// Lengths are seconds of the run's cut clock ("play" seconds, see run.js): pauses take no room.
import { formatSeconds } from "./run.js";

export const GUTTER = 78; // px left of the time axis: names of rows, zoom buttons
const LIVE_SECONDS = 4, LIVE_STEPS = [0.1, 0.2, 0.5, 1, 2, LIVE_SECONDS]; // what a live view shows
const CLOSEST = 2e-6; // nothing in a trace is finer than a microsecond

// px right of the time axis: figures and direct labels, where there is room for them.
export const marginOf = (width) => (width >= 560 ? 122 : 14);

const stretches = new WeakMap();

// The one stretch of a run.
export function stretchOf(run) {
  if (!stretches.has(run)) stretches.set(run, new Stretch(run));
  return stretches.get(run);
}

// from … to is what is seen. mode: "fit" all of it, "live" the newest, "free" what someone chose.
// pointer: where a mouse is over one of the views, in play seconds; the others show it too.
export class Stretch {
  constructor(run) {
    Object.assign(this, { run, from: 0, to: 1e-3, mode: "fit", pointer: null, goal: null });
    this.watchers = new Set();
  }

  watch(tell) {
    this.watchers.add(tell);
    return () => this.watchers.delete(tell);
  }

  get length() { return Math.max(this.run.clock.length, CLOSEST); }
  get seen() { return this.to - this.from; }
  get isWhole() { return this.from <= 0 && this.to >= this.length; }

  // Called at each draw: follows the run.
  update(view) {
    if (view.live && this.mode === "fit") this.mode = "live";
    if (!view.live && this.mode === "live") this.mode = "fit";
    if (this.mode === "fit" && !this.goal) this._see(0, this.length);
    if (this.mode === "live") this._see(...newest(this.length));
  }

  // Trace seconds from … to, with a little room on both sides.
  show(from, to) {
    const { clock } = this.run, a = clock.play(from), b = clock.play(to), room = 0.06 * (b - a);
    this._aim(a - room, b + room);
  }

  fit() {
    this._aim(0, this.length);
    this.mode = "fit";
  }

  // Nearer by `factor`, with `at` (play seconds, or the middle) staying where it is.
  zoom(factor, at = (this.from + this.to) / 2) {
    const { from, to } = this.goal || this, seen = Math.max((to - from) / factor, CLOSEST);
    if (seen >= this.length) return this.fit();
    const left = at - ((at - from) / (to - from)) * seen;
    return this._aim(left, left + seen);
  }

  pan(seconds) {
    const from = Math.max(0, Math.min(this.from + seconds, this.length - this.seen));
    this.goal = null;
    if (!this.isWhole) this.mode = "free";
    this._see(from, from + this.seen);
  }

  // Turn the page when the playhead leaves it, on its way from `before` to `at`.
  keep(before, at) {
    const { from, to } = this.goal || this;
    if (this.mode !== "free" || before < from || before > to || (from <= at && at <= to)) return;
    const left = at - 0.1 * (to - from);
    this._aim(left, left + to - from);
  }

  // Bring trace seconds from … to into view, as near as it was.
  reveal(from, to) {
    const { clock } = this.run, a = clock.play(from), b = clock.play(to), now = this.goal || this;
    if (this.mode !== "free" || (now.from <= a && b <= now.to)) return;
    const half = Math.max((now.to - now.from) / 2, 0.56 * (b - a)), middle = (a + b) / 2;
    this._aim(middle - half, middle + half);
  }

  point(at) {
    if (at === this.pointer) return;
    this.pointer = at;
    this._tell("glass");
  }

  _see(from, to) {
    if (from === this.from && to === this.to) return;
    Object.assign(this, { from, to });
    this._tell("paper");
  }

  _aim(from, to) {
    const seen = Math.min(to - from, this.length);
    from = Math.max(0, Math.min(from, this.length - seen));
    this.mode = "free";
    const moving = this.goal;
    this.goal = { from, to: from + seen, last: performance.now() };
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.goal.last = -Infinity;
    if (!moving) requestAnimationFrame((now) => this._glide(now));
  }

  // Go there within a fifth of a second, so that the eye can follow.
  _glide(now) {
    const { goal } = this;
    if (!goal) return;
    const near = 1 - Math.exp(-Math.max(0, now - goal.last) / 45);
    goal.last = now;
    const from = this.from + near * (goal.from - this.from);
    const to = this.to + near * (goal.to - this.to);
    const left = Math.abs(goal.from - from) + Math.abs(goal.to - to);
    const there = left < 0.004 * (goal.to - goal.from);
    if (there) this.goal = null;
    this._see(there ? goal.from : from, there ? goal.to : to);
    if (!there) requestAnimationFrame((next) => this._glide(next));
  }

  _tell(what) { for (const tell of this.watchers) tell(what); }
}

// A live view fills a page from left to right, then turns to a longer one, and at last moves on by
// a quarter of a page: what was drawn stays in place for the eye.
function newest(length) {
  const page = LIVE_STEPS.find((step) => step >= length);
  if (page) return [0, page];
  const to = Math.ceil(length / (LIVE_SECONDS / 4)) * (LIVE_SECONDS / 4);
  return [to - LIVE_SECONDS, to];
}

// Round marks for from … to with `room` for at most so many, and the words beside the axis.
// origin: {at, name} counts from there: {at: 0.145, name: "token 3"}. Without it long numbers are
// cut in two: "145 ms +" beside the axis, "20 µs" on it.
export function timeTicks(from, to, room, origin = null) {
  const rough = (to - from) / Math.max(1, room), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((n) => n * power >= rough * 0.999);
  let base = origin ? origin.at : 0, said = origin ? `in ${origin.name}` : "time";
  if (!origin && to / step > 1000) {
    base = Math.floor(from / (10 * step)) * 10 * step;
    said = `${longSeconds(base, step)} +`;
  }
  const marks = [], largest = Math.max(to - base, step);
  for (let i = Math.ceil((from - base) / step - 1e-6); base + i * step <= to + 1e-12; i++) {
    marks.push({ at: base + i * step, text: inUnit(i * step, largest, step) });
  }
  return { marks, said, exact: (at) => inUnit(at - base, largest, step / 20) };
}

// `value` in the unit that suits the largest on the axis, with the decimals that `step` needs.
function inUnit(value, largest, step) {
  if (Math.abs(value) < step / 2) return "0";
  const [unit, scale] = [["s", 1], ["ms", 1e-3], ["µs", 1e-6]].find(([, s]) => largest >= s)
    || ["µs", 1e-6];
  const decimals = Math.max(0, -Math.floor(Math.log10(step / scale) + 1e-9));
  return `${(value / scale).toFixed(decimals).replace("-", "−")} ${unit}`;
}

function longSeconds(value, step) {
  return value ? inUnit(value, value, 10 * step) : "0";
}

// "10.3 s" of a pause that the clock has cut; the words of a break in the axis.
export const pauseWords = (cut) => `${formatSeconds(cut.seconds)} pause`;
