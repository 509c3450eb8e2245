// From events to what flows through which pipe: the bytes of a transfer pass all pipes on its way.

import { readsOf } from "./run.js";

const READS = ["weights, KV", "weights", "read"]; // from the fullest wording to the shortest

// Flows by step: {sign, nbytes, rate (bytes/s while it moved), label, how, share of the ceiling or
// null, ink}. A step is "+pcie" (along that pipe) or "-pcie" (against it); "=nvlink" is what goes
// through that switch in all.
export function flowsOf(events, sheet, { ceilings = {} }) {
  const found = new Map(), copies = events.filter((e) => e.kind === "transfer");
  for (const e of [...copies, ...readsOf(events)]) {
    for (const [step, ink] of e.way) {
      const { kind, to } = sheet.links[step.slice(1)];
      add(found, step, e, ink);
      if (kind === "nvlink" && step[0] === "+") add(found, `=${to}`, e, ink);
    }
  }
  for (const [step, flow] of found) {
    const { limit } = sheet.links[step.slice(1)] || {}, ceiling = ceilings[limit];
    flow.rate = flow.seconds > 0 ? flow.nbytes / flow.seconds : 0;
    flow.share = ceiling && flow.rate ? flow.rate / ceiling : null;
    flow.sign = step[0] === "-" ? -1 : 1;
  }
  return found;
}

function add(found, step, e, ink) {
  let flow = found.get(step);
  if (!flow) {
    flow = { seconds: 0, nbytes: 0, until: -Infinity, most: -1 };
    found.set(step, flow);
  }
  flow.seconds += Math.max(0, e.end - Math.max(flow.until, e.start)); // at once: counted once
  flow.until = Math.max(flow.until, e.end);
  flow.nbytes += e.nbytes;
  if (e.nbytes <= flow.most) return;
  const read = e.kind === "span";
  Object.assign(flow, { most: e.nbytes, ink, label: read ? READS : e.label || e.name,
    how: read && e.bytes_how === "predicted" ? "predicted" : e.how });
}
