// One event as the browser holds it: from the wire to an object, and what a reader calls it.

export const FIELDS = ["kind", "name", "stage", "resource", "start", "seconds", "nbytes", "source",
  "target", "label", "step", "token", "request", "model", "rank", "link", "how", "bytes_how",
  "detail"];

export const RESERVED = "kv reserved"; // the label of a pool's empty pages: taken, and not in use

export const baseOf = (unit) => unit.split(":")[0];
export const rankOf = (unit) => Number(unit.split(":")[1] || 0);
export const plain = (unit) => (unit.endsWith(":0") ? unit.slice(0, -2) : unit);
const toNano = (t) => Math.round(t * 1e9) / 1e9;

// Columns as charts/live.py sends them (see its `Packer`) to rows in the order of FIELDS: what many
// events share comes once, in `kinds`; times come as whole tenths of a microsecond.
export function unpackRows({ kinds, kind, start, seconds, nbytes, step, token, request }) {
  return kind.map((k, i) => {
    const [what, name, stage, resource, source, target, label, ...rest] = kinds[k];
    return [what, name, stage, resource, start[i] / 1e7, seconds[i] / 1e7, nbytes[i], source,
      target, label, step[i], token[i], request[i], ...rest];
  });
}

// A row as an event: its fields, and its end and rank. Times are kept to the nanosecond, so that
// what ends together still does after the rounding on the wire. Rank 0 has no suffix.
export function asEvent(row) {
  const e = {};
  FIELDS.forEach((field, i) => { e[field] = row[i]; });
  e.end = toNano(e.start + e.seconds);
  e.start = toNano(e.start);
  for (const field of ["resource", "source", "target"]) e[field] = plain(e[field]);
  if (e.kind === "counter") e.name = plain(e.name);
  const places = [e.resource, e.source, e.target, e.kind === "counter" ? e.name : ""];
  e.rank ??= rankOf(places.find((place) => place.includes(":")) || "");
  return e;
}

// The ink of an event: its link, the tier it copies to, or the unit that works or waits.
export function meaningOf(e) {
  if (e.name.startsWith("wait ")) return "idle";
  const target = baseOf(e.target), resource = baseOf(e.resource);
  if (resource === "copy") return target === "hbm" || target === "dram" ? target : "cpu";
  return e.name === "ffn" ? "ffn" : resource;
}

// What a reader calls it: 'logits → DRAM' for a transfer, else its name.
export function nameOf(e) {
  if (e.kind === "transfer") return `${e.label || e.name} → ${baseOf(e.target).toUpperCase()}`;
  return isFromCache(e) ? `page cache (${e.name})` : e.name;
}

// Whether it read weights that the page cache held: work of the CPU, no transfer from SSD.
const isFromCache = ({ kind, stage, label, name }) => kind === "span" && stage === "load"
  && label === "weights" && ["read", "mmap"].includes(name);

// What compute reads from its HBM: spans that say their bytes; of nested ones the outermost, for a
// layer's bytes are in those of its pass. Of events by start; the same as facts.outermost.
export function readsOf(events) {
  const until = new Map();
  return events.filter((e) => {
    if (e.kind !== "span" || !e.nbytes || baseOf(e.resource) !== "compute") return false;
    if (e.end <= (until.get(e.resource) ?? -Infinity)) return false;
    until.set(e.resource, e.end);
    return true;
  });
}

// Events inside which a shorter one runs on the same resource: a pass, seen beside its layers.
export function findParents(events) {
  const parents = new Set(), open = new Map();
  for (const e of events) {
    const around = (open.get(e.resource) || []).filter((p) => p.end >= e.start);
    for (const p of around) if (e.end <= p.end && e.seconds < p.seconds) parents.add(p);
    open.set(e.resource, [...around, e]);
  }
  return parents;
}
