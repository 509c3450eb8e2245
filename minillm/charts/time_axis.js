// Time along a canvas view: the scale, the axis with its breaks, the playhead, the chosen token.
//
// Both views draw it the same way, so that one can be read against the other. All of the run is
// seen; who wants to look closer opens it in Perfetto. Lengths are seconds of the run's cut clock
// ("play" seconds, see run.js): pauses take no room.
import { formatSeconds } from "./run.js";
import { dashed, line } from "./sheet.js";

export const GUTTER = 78; // px left of the time axis: names of rows
const MARGIN = 122; // px right of it: figures and labels
export const AXIS = 22; // px of height, below the plot
const SHORTEST = 2e-6; // nothing in a trace is finer than a microsecond

// Play seconds to px and back: the plot lies between left and right, where it ends at `to`. While
// live that is the next power of two, so that what was drawn stays in place for the eye.
export function timeScale(width, length, live) {
  const left = GUTTER, right = Math.max(left + 40, width - MARGIN);
  const whole = Math.max(length, SHORTEST);
  const to = live ? 2 ** Math.ceil(Math.log2(whole)) : whole, perSecond = (right - left) / to;
  return {
    left, right, to, perSecond,
    x: (at) => left + at * perSecond,
    at: (x) => (x - left) / perSecond,
  };
}

// A band over the chosen token.
export function paintChosen(g, sheet, run, view, scale, bottom) {
  const token = run.token(view.selection);
  if (!token) return;
  const x0 = scale.x(run.clock.play(token.start)), x1 = scale.x(run.clock.play(token.stop));
  Object.assign(g, { fillStyle: sheet.ink.accent, globalAlpha: 0.12 });
  g.fillRect(x0, 0, Math.max(x1 - x0, 2), bottom);
  Object.assign(g, { strokeStyle: sheet.ink.accent, globalAlpha: 0.5, lineWidth: 1 });
  for (const x of [x0, x1]) line(g, crisp(x), 0, crisp(x), bottom);
  g.globalAlpha = 1;
}

// Where a hairline is one pixel wide.
export const crisp = (x) => Math.round(x) + 0.5;

// "10.3 s pause" that the clock has cut; the words of a break in the axis.
export const pauseWords = (cut) => `${formatSeconds(cut.seconds)} pause`;

// Round marks from 0 to `to`, with `room` for at most so many; exact(at): a time between them.
function timeTicks(to, room) {
  const rough = to / Math.max(1, room), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((n) => n * power >= rough * 0.999);
  const [unit, size] = [["s", 1], ["ms", 1e-3]].find(([, s]) => to >= s) || ["µs", 1e-6];
  const said = (at, fine) => {
    const decimals = Math.max(0, -Math.floor(Math.log10(fine / size) + 1e-9));
    return at < fine / 2 ? "0" : `${(at / size).toFixed(decimals)} ${unit}`;
  };
  const count = Math.floor(to / step + 1e-6) + 1;
  const places = Array.from({ length: count }, (_, i) => i * step);
  const marks = places.map((at) => ({ at, text: said(at, step) }));
  return { marks, exact: (at) => said(at, step / 20) };
}

// The axis of a view: hairlines through the plot and, for each pause that was cut, a break. Its
// words are on the glass, where they make way for the playhead's. Returns what shineTime needs.
export function paintAxis(g, sheet, run, scale, top, bottom) {
  const ticks = timeTicks(scale.to, (scale.right - scale.left) / 84);
  const cuts = run.clock.cuts.map((cut) => (
    { words: pauseWords(cut), x: scale.x(cut.play + cut.width / 2) }));
  Object.assign(g, { strokeStyle: sheet.ink.rule, lineWidth: 1 });
  line(g, scale.left, bottom + 0.5, scale.right, bottom + 0.5);
  for (const { at } of ticks.marks) {
    const x = crisp(scale.x(at));
    g.globalAlpha = 0.45;
    line(g, x, top, x, bottom);
    g.globalAlpha = 1;
    line(g, x, bottom, x, bottom + 4);
  }
  for (const { x } of cuts) paintBreak(g, sheet, x, top, bottom);
  return { ...ticks, cuts, top, bottom };
}

// A gap in the axis between two slanted lines, and dots across the rows.
function paintBreak(g, sheet, x, top, bottom) {
  Object.assign(g, { strokeStyle: sheet.ink.faint, globalAlpha: 0.8 });
  dashed(g, [1, 3], crisp(x), top, crisp(x), bottom - 5);
  g.clearRect(x - 2, bottom - 1, 4, 3);
  for (const side of [x - 2, x + 2]) line(g, side - 2, bottom + 5, side + 2, bottom - 4);
  Object.assign(g, { strokeStyle: sheet.ink.rule, globalAlpha: 1 });
}

// Words below the axis: the playhead's time first, then pauses, then marks, where there is room.
function shineWords(g, sheet, scale, axis, playhead) {
  const { ink } = sheet, y = axis.bottom + 12.5, taken = [];
  const put = (words, x, colour, padding, pill = false) => {
    const half = g.measureText(words).width / 2 + padding;
    const at = Math.min(Math.max(x, scale.left + (pill ? half : 0)), sheet.width - half);
    if (taken.some(([a, b]) => at + half > a && at - half < b)) return;
    taken.push([at - half, at + half]);
    if (pill) {
      g.fillStyle = ink.accent;
      g.beginPath();
      g.roundRect(at - half, y - 8.5, 2 * half, 16, 4);
      g.fill();
    }
    g.fillStyle = colour;
    g.fillText(words, at, y);
  };
  Object.assign(g, { textAlign: "center", textBaseline: "middle", font: sheet.font(10, 600) });
  put(playhead.words, playhead.x, ink.paper, 5, true);
  g.font = sheet.font(10);
  for (const { words, x } of axis.cuts) put(words, x, ink.text, 3);
  for (const { at, text } of axis.marks) put(text, scale.x(at), ink.faint, 3);
  Object.assign(g, { textAlign: "right", fillStyle: ink.faint });
  g.fillText("time", scale.left - 10, y);
}

// The playhead at trace time t with its time on the axis, and a fainter line at the pointer.
export function shineTime(g, sheet, run, view, scale, axis, t, pointer) {
  const { ink } = sheet, { top, bottom } = axis, at = run.clock.play(t), x = scale.x(at);
  if (pointer !== null) {
    Object.assign(g, { strokeStyle: ink.faint, lineWidth: 1, globalAlpha: 0.6 });
    line(g, crisp(scale.x(pointer)), top, crisp(scale.x(pointer)), bottom);
    g.globalAlpha = 1;
  }
  if (view.playing) { // what is still to come steps back
    Object.assign(g, { fillStyle: ink.paper, globalAlpha: 0.45 });
    g.fillRect(x, top, scale.right - x + 1, bottom - top);
    g.globalAlpha = 1;
  }
  Object.assign(g, { strokeStyle: ink.accent, lineWidth: 1.5 });
  line(g, x, top, x, bottom + 4);
  shineWords(g, sheet, scale, axis, { x, words: axis.exact(at) });
}
