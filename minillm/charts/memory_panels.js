// How full each tier was, as the memory view shows it, and what can be said of it. Nothing draws.
import { firstAbove } from "./clock.js";
import { RESERVED, baseOf, formatBytes, formatPercent, formatSeconds, rankOf } from "./run.js";

const MOST = 3; // labels shown by name; the rest of them together are "other"

// One panel for each tier that was counted: {tier, name, labels, points, peak, peakAt, budget,
// near, top, small}. labels: the largest at the peak first, the last of them may be "other"; points:
// [{t, at (play seconds), held: bytes by label in that order, used}] after each change; what is
// reserved comes last, and is not used; near: the budget is drawn as a line; one of more than twice the peak is told in words, or it would press
// the data flat; top: bytes at the upper edge; small: one of many ranks.
export function memoryPanels(run) {
  const tiers = run.tiers.filter((tier) => run.series(tier).length && run.peak(tier).taken);
  const panels = tiers.map((tier) => {
    const peak = run.peak(tier), budget = run.capacity(tier), labels = panelLabels(run, tier, peak);
    const points = run.series(tier).map(({ t, levels, used }) => (
      { t, at: run.clock.play(t), used, held: heldBy(labels, levels, used) }));
    const near = budget !== null && budget <= 2 * peak.taken;
    return { tier, labels, points, peak, peakAt: run.clock.play(peak.t), budget, near };
  });
  for (const panel of panels) { // ranks of one kind share a scale, so that they compare
    const alike = panels.filter((other) => baseOf(other.tier) === baseOf(panel.tier));
    panel.top = 1.14 * Math.max(...alike.map((p) => (p.near ? p.budget : p.peak.taken)));
    panel.small = alike.length > 1;
    panel.name = baseOf(panel.tier).toUpperCase() + (panel.small ? ` ${rankOf(panel.tier)}` : "");
  }
  return panels;
}

function panelLabels(run, tier, peak) {
  const most = {}; // a label that is never held at the peak counts too
  for (const { levels } of run.series(tier)) {
    for (const label in levels) most[label] = Math.max(most[label] || 0, levels[label]);
  }
  const labels = Object.keys(most).filter((label) => most[label] && label !== RESERVED)
    .sort((a, b) => (peak.levels[b] || 0) - (peak.levels[a] || 0) || most[b] - most[a]);
  const named = labels.length > MOST ? [...labels.slice(0, MOST - 1), "other"] : labels;
  return most[RESERVED] ? [...named, RESERVED] : named;
}

function heldBy(labels, levels, used) {
  const held = labels.map((label) => levels[label] || 0), other = labels.indexOf("other");
  if (other >= 0) held[other] = used - held.slice(0, other).reduce((a, b) => a + b, 0);
  return held;
}

// The point of a panel that holds at `at` (play seconds); null before the first.
export const pointAt = ({ points }, at) =>
  points[firstAbove(points, at, (point) => point.at) - 1] || null;

// What the card says at `at`: {title, lines}.
export function memoryFacts(panel, at) {
  const point = pointAt(panel, at), used = point ? point.used : 0;
  const lines = panel.labels.map((label, i) => [label, point ? point.held[i] : 0])
    .filter(([, nbytes]) => nbytes).map(([label, n]) => `${label} ${formatBytes(n)}`);
  const { budget } = panel;
  const share = budget ? ` · ${formatPercent(used, budget)} of ${formatBytes(budget)}` : "";
  lines.push(`at ${formatSeconds(at)}`);
  return { title: `${panel.name} ${formatBytes(used)}${share}`, lines };
}

export function memoryWords(panels) {
  if (!panels.length) return "Memory over time: no tier has been counted yet.";
  const said = panels.map((panel) => {
    const { name, peak, budget } = panel;
    const most = budget ? `, ${formatPercent(peak.nbytes, budget)} of its budget` : "";
    return `${name} ${formatBytes(peak.nbytes)}${most}`;
  });
  return `Memory over time, stacked by label. Peaks: ${said.join("; ")}.`;
}
