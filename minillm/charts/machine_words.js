// What the machine diagram says: of each part in a sentence, of each link in a few short lines.

import { baseOf, formatBytes, formatPercent, formatRate } from "./run.js";

const PART_SAYS = {
  ssd: "The disk. Weights rest here as files: large, slow, and kept without power.",
  dram: "The host's memory. Bytes from the disk land here before they go on to a GPU.",
  cpu: "Turns text into ids before the model runs, and scores into text after it.",
  hbm: "The GPU's own memory. Weights and KV cache live here, next to the compute.",
  compute: "Where attention and FFN are computed, from what it reads out of HBM.",
  pcie: "Between the host and its GPUs.",
  nvlink: "Between the GPUs of one node.",
  nic: "The node's door to the network.",
  disk: "From the disk to the host's memory.",
  bus: "Between CPU and DRAM. The trace does not count these bytes.",
  read: "What compute reads from HBM: for each token the weights and the KV cache, once.",
  infiniband: "The network between nodes.",
};
const PIPE_NAMES = {
  disk: "read", pcie: "PCIe", bus: "bus", read: "read", nvlink: "NVLink", nic: "NIC",
  infiniband: "InfiniBand",
};
const CACHED = 1.1; // of the disk's ceiling: what is read faster than that was in DRAM already
const ARROWS = { across: ["→", "←"], down: ["↓", "↑"] };

export const partSays = (kind) => PART_SAYS[kind] || "";
export const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");

// On a machine without a GPU a link to HBM is a copy inside DRAM: it is not called PCIe.
export const pipeName = (kind, emulated) =>
  (kind === "pcie" && emulated ? "copy" : PIPE_NAMES[kind]);

export function arrowOf({ points }, sign) {
  const [[x0, y0], [x1, y1]] = points;
  const across = Math.abs(x1 - x0) > Math.abs(y1 - y0), ahead = across ? x1 > x0 : y1 > y0;
  return ARROWS[across ? "across" : "down"][ahead === sign > 0 ? 0 : 1];
}

// A link's figures: {over: lines above it, the last its rate; under: how known, share of ceiling}.
// A line may be a list of wordings, the fullest first. flow: see flowsOf, null if nothing has moved
// yet. total: say how many bytes, too. brief: few lines, for there is little room.
export function linkLines(link, flow, meta, total, brief = false) {
  if (!flow) {
    const ceiling = meta.ceilings?.[link.limit];
    return { over: [pipeName(link.kind, meta.device === "cpu")],
      under: ceiling ? ["ceiling", formatRate(ceiling)] : [] };
  }
  const arrow = arrowOf(link, flow.sign), name = link.kind === "infiniband" ? "InfiniBand · " : "";
  const over = [[flow.label].flat().map((label) => `${name}${label || "bytes"} ${arrow}`)];
  if (total) over.push(formatBytes(flow.nbytes));
  over.push(flow.rate ? formatRate(flow.rate) : "at once");
  const under = [flow.how], share = formatPercent(flow.share || 0);
  if (flow.share) under.push(brief ? [`${share} of ceiling`, share] : `${share} of ceiling`);
  if (flow.share > CACHED && link.kind === "disk") under.push("(page cache)");
  return { over, under };
}

// The same in one line: "weights → 4.0 MiB 2.1 GB/s · emulated · 11 % of ceiling".
export function linkSentence(link, flow, meta) {
  const { over, under } = linkLines(link, flow, meta, true);
  return flow ? [over.map((line) => [line].flat()[0]).join(" "), ...under].join(" · ")
    : ["nothing has moved", ...(under.length ? [under.join(" ")] : [])].join("; ");
}

// How full a memory is, and the same shorter: "2.8 of 80 GiB", "2.8 GiB". Units that differ stay:
// "5 MiB of 80 GiB". Of a disk we know what is free, not what is used.
export function memorySaid(kind, { used, capacity }) {
  if (kind === "ssd") return [capacity ? `${formatBytes(capacity)} free` : ""];
  const held = formatBytes(used), whole = capacity ? formatBytes(capacity) : "";
  const [amount, unit] = held.split(" "), same = !used || whole.endsWith(` ${unit}`);
  return [...(whole ? [`${same ? amount : held} of ${whole}`] : []), held];
}

// The whole picture in a sentence, for who cannot see it: of what flows the largest three.
export function sceneSentence({ scene, strip, flows, sheet }) {
  const says = [strip.title ? `Stage ${strip.title}` : "Nothing is under way"];
  for (const [name, tier] of Object.entries(scene.tiers)) {
    if (baseOf(name) !== "ssd" && tier.used && says.length < 6) {
      says.push(`${name.toUpperCase()} holds ${memorySaid("", tier)[0]}`);
    }
  }
  const moved = [...flows].filter(([step]) => step[0] !== "=");
  for (const [step, flow] of moved.sort((a, b) => b[1].nbytes - a[1].nbytes).slice(0, 3)) {
    const link = sheet.links[step.slice(1)], way = [link.from, link.to];
    const ends = (flow.sign > 0 ? way : way.reverse()).map((end) => sheet.boxes[end].title);
    const label = [flow.label].flat()[0] || "bytes";
    says.push(`${ends.join(" to ")}: ${label} at ${formatRate(flow.rate)}, ${flow.how}`);
  }
  const word = scene.words.at(-1);
  if (word) says.push(`newest token ${scene.words.length - 1}: ${visible(word).trim()}`);
  return `The machine. ${says.join("; ")}.`;
}
