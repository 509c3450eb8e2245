// One event as the browser holds it: from the wire to an object. What it means to a reader comes
// along: charts/meaning.py has those rules.

// As minillm.trace.Event, and ink: of ink.INK; said: its name; row: of the timeline; limit: which
// ceiling is its.
export const FIELDS = ["kind", "name", "stage", "resource", "start", "seconds", "nbytes", "source",
  "target", "label", "step", "token", "request", "model", "rank", "link", "how", "bytes_how",
  "detail", "ink", "said", "row", "limit"];

export const RESERVED = "KV reserved"; // the label of a pool's empty pages: taken, and not in use

export const baseOf = (unit) => unit.split(":")[0];
export const rankOf = (unit) => Number(unit.split(":")[1] || 0);
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

// A row as an event, with its end. Times are kept to the nanosecond, so that what ends together
// still does after the rounding on the wire.
export function asEvent(row) {
  const e = Object.fromEntries(FIELDS.map((field, i) => [field, row[i]]));
  e.end = toNano(e.start + e.seconds);
  e.start = toNano(e.start);
  return e;
}

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
