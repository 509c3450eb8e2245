// How the timeline draws its rows: names, blocks, and above them requests and tokens.
import { formatBytes, formatPercent, formatRate, formatSeconds } from "./run.js";
import { fittingIn, line, shortened } from "./sheet.js";
import { crisp } from "./time_axis.js";
import { rowTotals } from "./timeline_rows.js";

export function paintRule(g, sheet, scale, y) {
  Object.assign(g, { strokeStyle: sheet.ink.rule, lineWidth: 1 });
  line(g, scale.left, y, scale.right, y);
}

// The name to the left; to the right how busy it was, and what it moved.
export function paintNames(g, sheet, row, scale, end) {
  const { ink } = sheet, middle = row.y + row.height / 2, many = row.tracks.length > 1;
  Object.assign(g, { fillStyle: ink.text, font: sheet.font(11), textAlign: "right",
    textBaseline: "middle" });
  const lines = many ? row.name.split(" ") : [row.name]; // ranks need some of the room
  lines.forEach((words, i) => g.fillText(words, scale.left - (many ? 20 : 10),
    middle + 13 * (i - (lines.length - 1) / 2)));
  if (many) {
    Object.assign(g, { fillStyle: ink.faint, font: sheet.font(8.5) });
    row.tracks.forEach(({ rank, y, height }, i) => { // of thin lines the first and the last
      const end = i === 0 || i === row.tracks.length - 1;
      if (end || height > 9) g.fillText(rank, scale.left - 8, y + height / 2 + 0.5);
    });
  }
  const { share, words } = totalWords(row, end);
  Object.assign(g, { font: sheet.font(10), textAlign: "left" });
  g.fillStyle = share ? ink.text : ink.faint;
  g.fillText(share ? `${formatPercent(share)} busy` : "idle", scale.right + 10,
    middle - (words ? 6 : 0));
  g.fillStyle = ink.faint;
  if (words) g.fillText(words, scale.right + 10, middle + 7);
}

function totalWords(row, end) {
  const { share, nbytes, seconds } = rowTotals(row, end);
  if (!nbytes || row.key === "cpu") return { share, words: "" };
  const rate = !seconds ? "" : ` · ${formatRate(nbytes / seconds)}`;
  return { share, words: formatBytes(nbytes) + rate };
}

export function paintLane(g, sheet, scale, { lane, y, height }) {
  const pen = new Pen(g, sheet, !lane.crowded);
  lane.events.forEach((e, i) => {
    pen.block(e, scale.x(lane.from[i]), scale.x(lane.to[i]), y, height);
  });
  pen.flush();
}

// Draws blocks. Those narrower than a pixel are gathered by ink, as dense as they were busy.
class Pen {
  constructor(g, sheet, named) {
    Object.assign(this, { g, sheet, named, narrow: new Map() });
    Object.assign(g, { font: sheet.font(10), textAlign: "left", textBaseline: "middle" });
  }

  block(e, x0, x1, y, height) {
    const { g } = this, wide = x1 - x0;
    if (wide < 1.5) return this.gather(e.ink, x0, x1, y, height);
    const ink = this.sheet.inkOf(e.ink), gap = wide > 4 ? 1 : 0.5;
    g.fillStyle = ink.colour;
    g.fillRect(x0, y, wide - gap, height);
    if (ink.hatch && wide > 6) {
      g.fillStyle = ink.hatch;
      g.fillRect(x0, y, wide - gap, height);
    }
    if (this.named && wide > 34 && height > 10) this.label(e, ink, x0, x1, y, height);
  }

  // In place, on a plate of the ink so that the hatch does not cross the letters.
  label(e, ink, x0, x1, y, height) {
    const { g } = this, plate = Math.min(14, height), middle = y + height / 2;
    const wordings = [`${e.said}  ${formatSeconds(e.seconds)}`, e.said];
    if (e.kind === "transfer") wordings.push(e.label);
    const words = fittingIn(g, wordings, x1 - x0 - 6);
    if (!words) return;
    const half = g.measureText(words).width / 2, x = (x0 + x1) / 2;
    g.fillStyle = ink.colour;
    if (ink.hatch) g.fillRect(x - half - 3, middle - plate / 2, 2 * half + 6, plate);
    g.fillStyle = ink.on;
    g.fillText(words, x - half, middle + 0.5);
  }

  gather(meaning, x0, x1, y, height) {
    const last = this.narrow.get(meaning);
    if (last && x0 - last.x1 < 1) {
      last.x1 = Math.max(last.x1, x1);
      last.busy += x1 - x0;
      return;
    }
    if (last) this.fill(last, meaning);
    this.narrow.set(meaning, { x0, x1, y, height, busy: x1 - x0 });
  }

  fill({ x0, x1, y, height, busy }, meaning) {
    const { g } = this, wide = Math.max(x1 - x0, 1);
    g.fillStyle = this.sheet.inkOf(meaning).colour;
    g.globalAlpha = wide < 2 ? 0.9 : Math.min(1, Math.max(wide < 8 ? 0.35 : 0.2, busy / wide));
    g.fillRect(x0, y, wide, height);
    g.globalAlpha = 1;
  }

  flush() {
    for (const [meaning, last] of this.narrow) this.fill(last, meaning);
    this.narrow.clear();
  }
}

// Above the rows: the load, each request with its prompt, and below them the tokens as cells.
export function paintStrip(g, sheet, run, scale, stages, chosen) {
  const { ink } = sheet, edge = (t) => scale.x(run.clock.play(t));
  Object.assign(g, { textBaseline: "middle", strokeStyle: ink.rule, lineWidth: 1 });
  for (const { start, stop, words, tokens } of stages) {
    const x0 = edge(start), x1 = edge(stop);
    paintCell(g, sheet, x0, x1, tokens.length ? 0.1 : 0, "");
    if (x1 - x0 > 2.5 * tokens.length) {
      for (const { start: a, stop: b, index, text } of tokens) {
        paintCell(g, sheet, edge(a), edge(b), index % 2 ? 0.09 : 0, text);
      }
    }
    if (x1 - x0 < 8) continue;
    Object.assign(g, { font: sheet.font(10.5, 600), textAlign: "left" });
    g.fillText(shortened(g, words, x1 - x0 - 14), x0 + 5, 10);
    line(g, crisp(x0), 3, crisp(x0), 18);
  }
  if (chosen) {
    const x0 = edge(chosen.start);
    g.fillStyle = ink.accent;
    g.fillRect(x0, 34, Math.max(edge(chosen.stop) - x0, 2), 2);
  }
}

// A cell of the strip, with the text of its token where there is room.
function paintCell(g, sheet, x0, x1, shade, text) {
  Object.assign(g, { fillStyle: sheet.ink.text, globalAlpha: shade });
  g.fillRect(x0, 20, x1 - x0, 15);
  g.globalAlpha = 1;
  const room = x1 - x0 - 4, letters = room < 8 ? "" : text.replaceAll("\n", "⏎").trim();
  if (!letters) return;
  Object.assign(g, { font: sheet.font(10), textAlign: "center" });
  const words = fittingIn(g, [letters], room) || (room > 24 ? shortened(g, letters, room) : "");
  g.fillText(words, (x0 + x1) / 2, 28);
}
