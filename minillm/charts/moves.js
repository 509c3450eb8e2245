// What a list of events adds up to: requests with their tokens, and links with what crossed them.

import { baseOf } from "./events.js";

// A request is cut at the end of each generated token, so that its tokens add up to the whole.
export function findRequests(work) {
  const found = new Map();
  for (const e of work) {
    if (e.request === null || e.stage === "load") continue;
    if (!found.has(e.request)) {
      const { request: number, start, end: stop } = e;
      found.set(number, { number, prompt: "", start, stop, ends: [] });
    }
    const one = found.get(e.request);
    one.stop = Math.max(one.stop, e.end);
    if (e.name === "tokenize") one.prompt = e.detail;
    if (e.token === null) continue;
    const token = (one.ends[e.token] ||= { text: "", stop: 0 });
    token.stop = Math.max(token.stop, e.end);
    if (e.name === "detokenize") token.text += e.detail;
  }
  return [...found.values()].map(({ ends, ...one }) => {
    let start = one.start;
    const tokens = [];
    ends.forEach(({ text, stop }, index) => {
      const until = index === ends.length - 1 ? one.stop : stop;
      tokens.push({ request: one.number, index, text, start, stop: until });
      start = until;
    });
    return { ...one, tokens };
  });
}

// What moves, one link for each pair of ends: transfers, and what compute reads from its HBM.
export function findLinks(events, t, ceilings) {
  const groups = new Map();
  let read = {}; // by resource: until when a span that read bytes lasts; what is inside is counted
  for (const e of events) {
    let from = e.source, to = e.target, kind = "copy", ceiling = ceilings[baseOf(e.resource)];
    if (e.kind === "span") {
      if (!e.nbytes || baseOf(e.resource) !== "compute" || e.end <= read[e.resource]) continue;
      read = { ...read, [e.resource]: e.end };
      to = e.resource;
      from = e.rank ? `hbm:${e.rank}` : "hbm";
      kind = "read";
      ceiling = ceilings.hbm;
    } else if (baseOf(e.resource) === "network") {
      kind = e.detail.includes("infiniband") ? "infiniband" : "nvlink";
    }
    const key = `${from} ${to} ${kind}`;
    if (!groups.has(key)) groups.set(key, { from, to, kind, ceiling, events: [] });
    groups.get(key).events.push(e);
  }
  return [...groups.values()].map((group) => summed(group, t));
}

function summed({ from, to, kind, ceiling, events }, t) {
  let seconds = 0, until = -Infinity, nbytes = 0;
  for (const e of events) { // two at once on a link take their time once
    seconds += Math.max(0, e.end - Math.max(until, e.start));
    until = Math.max(until, e.end);
    nbytes += e.nbytes;
  }
  const largest = events.reduce((a, b) => (b.nbytes > a.nbytes ? b : a));
  const rate = seconds > 0 ? nbytes / seconds : 0;
  return {
    from, to, kind, rate, nbytes, label: largest.label || (kind === "read" ? "weights, kv" : ""),
    how: kind === "read" && largest.detail.includes("predicted") ? "predicted" : largest.how,
    share: ceiling && rate ? rate / ceiling : null, age: Math.max(0, t - until),
  };
}
