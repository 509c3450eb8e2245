// From events to what flows through which pipe: the bytes of a transfer pass all pipes on its way.

import { baseOf, rankOf, readsOf } from "./run.js";
import { ceilingOf } from "./machine_words.js";

const READS = ["weights, KV", "weights", "read"]; // from the fullest wording to the shortest
const END_INK = { compute: "hbm", hbm: "hbm", dram: "dram", cpu: "cpu", ssd: "ssd" };

// The box of a tier or unit. A name without a rank belongs to the node of the other end.
function boxOf(sheet, unit, rank) {
  const shared = ["ssd", "dram", "cpu"].includes(baseOf(unit)) && !unit.includes(":");
  return sheet.home[shared && rank ? `${unit}:${rank}` : unit];
}

// The pipes from one end to the other, as "+pcie" (along it) or "-pcie" (against it).
export function wayOf(sheet, from, to) {
  const rank = rankOf(from) || rankOf(to);
  const [begin, end] = [boxOf(sheet, from, rank), boxOf(sheet, to, rank)];
  const there = sheet.routes[`${begin} ${end}`], back = sheet.routes[`${end} ${begin}`] || [];
  return there || back.map((step) => (step[0] === "+" ? "-" : "+") + step.slice(1)).reverse();
}

function inkOf(pipe, e, to) {
  if (e.resource.startsWith("network")) return "network";
  return pipe.kind === "disk" ? "ssd" : END_INK[baseOf(to)] || "cpu";
}

const endsOf = (e) => (e.kind === "transfer" ? [e.source, e.target]
  : [e.rank ? `hbm:${e.rank}` : "hbm", e.resource]);

// Flows by step: {sign, nbytes, rate (bytes/s while it moved), label, how, share of the ceiling or
// null, ink}. Steps are as in wayOf; "=nvlink" is what goes through that switch in all.
export function flowsOf(events, sheet, meta) {
  const found = new Map(), ways = new Map();
  const copies = events.filter((e) => e.kind === "transfer");
  for (const e of [...copies, ...readsOf(events)]) {
    const ends = endsOf(e), key = `${ends[0]} ${ends[1]} ${e.resource}`;
    if (!ways.has(key)) ways.set(key, stepsOf(sheet, e, ends));
    for (const { step, ink } of ways.get(key)) add(found, step, e, ink);
  }
  for (const [step, flow] of found) {
    const { kind } = sheet.links[step.slice(1)] || {}, ceiling = ceilingOf(kind, meta);
    const alone = kind === "disk" || kind === "infiniband" || flow.ranks.size === 1;
    flow.rate = flow.seconds > 0 ? flow.nbytes / flow.seconds : 0;
    flow.share = ceiling && alone && step[0] !== "=" && flow.rate ? flow.rate / ceiling : null;
    flow.sign = step[0] === "-" ? -1 : 1;
  }
  return found;
}

function stepsOf(sheet, e, [from, to]) {
  return wayOf(sheet, from, to).flatMap((step) => {
    const pipe = sheet.links[step.slice(1)], one = { step, ink: inkOf(pipe, e, to) };
    const both = pipe.kind === "nvlink" && step[0] === "+";
    return both ? [one, { step: `=${pipe.to}`, ink: "network" }] : [one];
  });
}

function add(found, step, e, ink) {
  let flow = found.get(step);
  if (!flow) {
    flow = { seconds: 0, nbytes: 0, until: -Infinity, most: -1, ranks: new Set() };
    found.set(step, flow);
  }
  flow.seconds += Math.max(0, e.end - Math.max(flow.until, e.start)); // at once: counted once
  flow.until = Math.max(flow.until, e.end);
  flow.nbytes += e.nbytes;
  flow.ranks.add(e.rank);
  if (e.nbytes <= flow.most) return;
  const read = e.kind === "span";
  Object.assign(flow, { most: e.nbytes, ink, label: read ? READS : e.label || e.name,
    how: read && e.bytes_how === "predicted" ? "predicted" : e.how });
}
