// Memory: how full each tier was, by label, over the run.
import { RESERVED, baseOf, formatBytes, formatPercent } from "./run.js";
import { dashed, line } from "./sheet.js";
import { crisp } from "./time_axis.js";
import { TimeView } from "./time_view.js";
import { memoryFacts, memoryPanels, memoryWords, pointAt } from "./memory_panels.js";

const SHADES = [[0.85, ""], [0.55, "/"], [0.32, "."]]; // strength and hatch, largest label first
const PALE = [0.1, ""]; // what is reserved, and empty

export class MemoryView extends TimeView {
  constructor(el, run, { onSeek }) {
    super(el, "memory", run, onSeek);
    Object.assign(this, { panels: [], chosen: 0 }); // chosen: the panel of the arrow keys
  }

  layOut() {
    this.panels = memoryPanels(this.run);
    this.bottom = placePanels(this.panels);
  }

  words() { return memoryWords(this.panels); }

  inkPlot(g) {
    const { run, sheet, scale } = this, emulated = run.meta.device === "cpu";
    for (const panel of this.panels) {
      paintAreas(g, sheet, scale, panel, run.clock.length);
      paintLevels(g, sheet, scale, panel, emulated);
    }
  }

  shinePlot(g) {
    const at = this.pointer ?? this.run.clock.play(this.t);
    for (const panel of this.panels) shineValues(g, this.sheet, this.scale, panel, at);
  }

  hover(x, y) {
    const { scale } = this, inside = x >= scale.left && x <= scale.right;
    this.point(inside ? scale.at(x) : null);
    const panel = inside && this.panels.find((p) => y >= p.y - 4 && y <= p.y + p.height + 4);
    if (panel) this.tell(x, { y, height: 0 }, memoryFacts(panel, scale.at(x)), false);
    else this.sheet.card.hide();
  }

  leave() {
    this.point(null);
    this.sheet.card.hide();
  }

  // Left and right to the next change of a tier, up and down to the next tier.
  step(key) {
    const { panels } = this, down = { ArrowDown: 1, ArrowUp: -1 }[key] || 0;
    if (!panels.length) return false;
    this.chosen = Math.min(Math.max(this.chosen + down, 0), panels.length - 1);
    const panel = panels[this.chosen], { points } = panel;
    let at = this.pointer ?? 0;
    if (key === "ArrowRight") at = (points.find((p) => p.at > at + 1e-9) || points.at(-1)).at;
    if (key === "ArrowLeft") at = (points.findLast((p) => p.at < at - 1e-9) || points[0]).at;
    this.point(at);
    this.tell(this.scale.x(at), panel, memoryFacts(panel, at), true);
    return true;
  }

  enter() {
    const { pointer } = this;
    if (pointer !== null) this.onSeek(this.run.clock.trace(pointer));
    return pointer !== null;
  }
}

// Gives each panel its y and height.
function placePanels(panels) {
  let y = 8;
  for (const panel of panels) {
    panel.y = y;
    panel.height = panel.small ? 26 : baseOf(panel.tier) === "hbm" ? 100 : 82;
    y += panel.height + (panel.small ? 4 : 12);
  }
  return Math.max(y - 8, 30);
}

const heightOf = (panel, nbytes) => panel.y + panel.height * (1 - nbytes / panel.top);

// Stacked steps. Of the changes within one pixel the fullest is kept: a peak is never lost.
function paintAreas(g, sheet, scale, panel, end) {
  const areas = panel.labels.map(() => new Path2D());
  for (const { x0, x1, held } of thinned(panel.points, scale, end)) {
    let floor = 0;
    held.forEach((nbytes, i) => {
      const low = heightOf(panel, floor), top = heightOf(panel, floor += nbytes);
      areas[i].rect(x0, top, x1 - x0, low - top);
    });
  }
  areas.forEach((area, i) => fillShade(g, sheet, panel, i, area));
}

// The i-th label's strength and hatch of its tier's ink.
function fillShade(g, sheet, panel, i, area) {
  const [strength, hatch] = panel.labels[i] === RESERVED ? PALE : SHADES[i];
  Object.assign(g, { fillStyle: sheet.inkOf(baseOf(panel.tier)).colour, globalAlpha: strength });
  g.fill(area);
  g.globalAlpha = 1;
  if (!hatch) return;
  g.fillStyle = sheet.hatchOf(hatch);
  g.fill(area);
}

function thinned(points, scale, end) {
  const kept = [];
  for (let i = 0; i < points.length; i++) {
    const until = i + 1 < points.length ? points[i + 1].at : end;
    const x0 = scale.x(points[i].at), x1 = scale.x(until);
    const last = kept.at(-1), { held, used } = points[i];
    if (last && x1 - last.x0 < 1) {
      last.x1 = x1;
      if (used > last.used) Object.assign(last, { held, used });
    } else kept.push({ x0, x1, held, used });
  }
  return kept;
}

// Name and peak in the gutter, the lines of peak and budget across the plot.
function paintLevels(g, sheet, scale, panel, emulated) {
  const { ink } = sheet, { y, height, peak, small, tier } = panel, low = y + height;
  Object.assign(g, { strokeStyle: ink.rule, lineWidth: 1, fillStyle: ink.text,
    textAlign: "right", textBaseline: "middle", font: sheet.font(11) });
  line(g, scale.left, low + 0.5, scale.right, low + 0.5);
  if (small) {
    g.fillText(panel.name, scale.left - 10, y + height / 2);
  } else {
    g.fillText(panel.name, scale.left - 10, low - 22);
    Object.assign(g, { fillStyle: ink.faint, font: sheet.font(10) });
    if (tier === "hbm" && emulated) g.fillText("emulated", scale.left - 10, low - 9);
  }
  const top = crisp(heightOf(panel, peak.nbytes)), x = scale.x(panel.peakAt);
  if (!small) {
    Object.assign(g, { fillStyle: ink.text, strokeStyle: ink.text, font: sheet.font(10) });
    dashed(g, [1, 3], scale.left, top, scale.right, top);
    g.fillText(`peak ${formatBytes(peak.nbytes)}`, scale.left - 6, Math.min(top, low - 36));
  }
  g.fillStyle = ink.text;
  g.beginPath();
  g.arc(x, top, small ? 2 : 3, 0, 7);
  g.fill();
  if (!panel.near) return;
  const most = crisp(heightOf(panel, panel.budget));
  Object.assign(g, { strokeStyle: ink.prediction, globalAlpha: small ? 0.6 : 1 });
  dashed(g, [5, 4], scale.left, most, scale.right, most);
  g.globalAlpha = 1;
}

// What each label holds at `at`, right of the plot.
function shineValues(g, sheet, scale, panel, at) {
  const { ink } = sheet, point = pointAt(panel, at), x = scale.right + 10;
  const used = point ? point.used : 0, { y, height, budget, peak } = panel;
  Object.assign(g, { textAlign: "left", textBaseline: "middle", fillStyle: ink.text,
    font: sheet.font(10) });
  if (panel.small) {
    const words = formatBytes(used) + (budget ? ` · ${formatPercent(used, budget)}` : "");
    g.fillText(words, x, y + height / 2);
    return;
  }
  panel.labels.forEach((label, i) => {
    const nbytes = point ? point.held[i] : 0, middle = y + height - 6 - 15 * i;
    const swatch = new Path2D();
    swatch.rect(x, middle - 4, 8, 8);
    fillShade(g, sheet, panel, i, swatch);
    g.fillStyle = nbytes ? ink.text : ink.faint;
    g.fillText(`${label} ${formatBytes(nbytes)}`, x + 12, middle);
  });
  if (budget === null) return;
  g.fillStyle = ink.faint;
  const most = `${formatPercent(peak.nbytes, budget)} used at peak`;
  const lines = [`budget ${formatBytes(budget)}`, most];
  const top = panel.near ? heightOf(panel, budget) : y + 4;
  lines.forEach((words, i) => g.fillText(words, x, top + 13 * i));
}
