// Time along a canvas view: the scale, the axis with its breaks, the playhead, the chosen token.
// Both views draw it the same way, so that one can be read against the other.
import { GUTTER, marginOf, pauseWords, timeTicks } from "./stretch.js";
import { dashed, line, shortened } from "./sheet.js";

export const AXIS = 22; // px of height, below the plot

// Play seconds to px and back: the plot lies between left and right.
export function timeScale(sheet, stretch) {
  const left = GUTTER, right = Math.max(left + 40, sheet.width - marginOf(sheet.width));
  const { from, to } = stretch, perSecond = (right - left) / (to - from);
  return {
    left, right, from, to, perSecond,
    x: (at) => left + (at - from) * perSecond,
    at: (x) => from + (x - left) / perSecond,
  };
}

// Everything that follows is drawn between left and right only, until g.restore().
export function clipTo(g, scale, top, bottom) {
  g.save();
  g.beginPath();
  g.rect(scale.left, top, scale.right - scale.left, bottom - top);
  g.clip();
}

// The token to count from, if it is chosen and fills a good part of the view.
function originOf(run, view, scale) {
  const token = chosenToken(run, view);
  if (!token) return null;
  const start = run.clock.play(token.start), stop = run.clock.play(token.stop);
  const near = stop - start > 0.15 * (scale.to - scale.from);
  return near && start < scale.to && stop > scale.from
    ? { at: start, name: `token ${token.index}` } : null;
}

export function chosenToken(run, view) {
  const { request, index } = view.selection || {};
  const one = run.requests.find((r) => r.number === request);
  return (one && one.tokens.find((token) => token.index === index)) || null;
}

// A band over the chosen token's stretch, fainter where it would fill the view.
export function paintChosen(g, sheet, run, view, scale, bottom) {
  const token = chosenToken(run, view);
  if (!token) return;
  const x0 = scale.x(run.clock.play(token.start)), x1 = scale.x(run.clock.play(token.stop));
  clipTo(g, scale, 0, bottom);
  const fills = x1 - x0 > 0.4 * (scale.right - scale.left);
  Object.assign(g, { fillStyle: sheet.ink.accent, globalAlpha: fills ? 0.035 : 0.12 });
  g.fillRect(x0, 0, Math.max(x1 - x0, 2), bottom);
  Object.assign(g, { strokeStyle: sheet.ink.accent, globalAlpha: 0.5, lineWidth: 1 });
  for (const x of [x0, x1]) line(g, crisp(x), 0, crisp(x), bottom);
  g.restore();
}

// Where a hairline is one pixel wide.
export const crisp = (x) => Math.round(x) + 0.5;

// The axis of a view: hairlines through the plot and, for each pause that was cut, a break. Its
// words are on the glass, where they make way for the playhead's. Returns what shineTime needs.
export function paintAxis(g, sheet, run, view, scale, top, bottom) {
  const origin = originOf(run, view, scale);
  const ticks = timeTicks(scale.from, scale.to, (scale.right - scale.left) / 84, origin);
  const cuts = run.clock.cuts.map((cut) => ({ words: pauseWords(cut),
    x: scale.x(cut.play + cut.width / 2) })).filter(({ x }) => x > scale.left && x < scale.right);
  Object.assign(g, { strokeStyle: sheet.ink.rule, lineWidth: 1 });
  line(g, scale.left, bottom + 0.5, scale.right, bottom + 0.5);
  for (const { at } of ticks.marks) {
    const x = crisp(scale.x(at));
    if (x < scale.left - 1 || x > scale.right + 1) continue;
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
  const { ink } = sheet, y = axis.bottom + 12.5;
  const taken = [[0, scale.left - 8]]; // by the words in the gutter
  const put = (words, x, colour, padding, pill = false) => {
    const half = g.measureText(words).width / 2 + padding;
    const at = Math.min(Math.max(x, scale.left + (pill ? half : 0)), sheet.width - half);
    if (taken.some(([a, b]) => at + half > a && at - half < b)) return;
    taken.push([at - half, at + half]);
    if (pill) {
      Object.assign(g, { fillStyle: ink.accent });
      g.beginPath();
      g.roundRect(at - half, y - 8.5, 2 * half, 16, 4);
      g.fill();
    }
    g.fillStyle = colour;
    g.fillText(words, at, y);
  };
  Object.assign(g, { textAlign: "center", textBaseline: "middle", font: sheet.font(10, 600) });
  if (playhead) put(playhead.words, playhead.x, ink.paper, 5, true);
  g.font = sheet.font(10);
  for (const { words, x } of axis.cuts) put(words, x, ink.text, 3);
  for (const { at, text } of axis.marks) {
    if (at >= scale.from - 1e-12 && at <= scale.to + 1e-12) put(text, scale.x(at), ink.faint, 3);
  }
  Object.assign(g, { textAlign: "right", fillStyle: ink.faint });
  g.fillText(shortened(g, axis.said, GUTTER - 12), scale.left - 10, y);
}

// The playhead at trace time t with its time on the axis, and a fainter line at the pointer.
export function shineTime(g, sheet, run, view, scale, axis, t, pointer) {
  const { ink } = sheet, { top, bottom } = axis, at = run.clock.play(t), x = scale.x(at);
  if (pointer !== null && pointer >= scale.from && pointer <= scale.to) {
    Object.assign(g, { strokeStyle: ink.faint, lineWidth: 1, globalAlpha: 0.6 });
    line(g, crisp(scale.x(pointer)), top, crisp(scale.x(pointer)), bottom);
    g.globalAlpha = 1;
  }
  const seen = x >= scale.left - 0.5 && x <= scale.right + 0.5;
  if (view.playing && x < scale.right) { // what is still to come steps back
    const from = Math.max(x, scale.left);
    Object.assign(g, { fillStyle: ink.paper, globalAlpha: 0.45 });
    g.fillRect(from, top, scale.right - from + 1, bottom - top);
    g.globalAlpha = 1;
  }
  if (seen) {
    Object.assign(g, { strokeStyle: ink.accent, lineWidth: 1.5 });
    line(g, x, top, x, bottom + 4);
  }
  const words = seen ? axis.exact(at) : "";
  shineWords(g, sheet, scale, axis, seen && { x, words });
}
