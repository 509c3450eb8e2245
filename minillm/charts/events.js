// One event as the browser holds it: an object with the fields of minillm.trace.Event, and what it
// means to a reader, which charts/meaning.py decides. ink: of ink.INK; said: its name; row: of the
// timeline; limit: which ceiling is its.

export const RESERVED = "KV reserved"; // the label of a pool's empty pages: taken, and not in use

export const baseOf = (unit) => unit.split(":")[0];
export const rankOf = (unit) => Number(unit.split(":")[1] || 0);
const toNano = (t) => Math.round(t * 1e9) / 1e9;

// Columns as charts/wire.py packs them to rows: what many events share comes once, in `kinds`; times
// come as whole tenths of a microsecond.
export function unpackRows({ kinds, kind, start, seconds, nbytes, step, token, request }) {
  return kind.map((k, i) => ({ ...kinds[k], start: start[i] / 1e7, seconds: seconds[i] / 1e7,
    nbytes: nbytes[i], step: step[i], token: token[i], request: request[i] }));
}

// A row as an event, with its end. Times are kept to the nanosecond, so that what ends together
// still does after the rounding on the wire.
export const asEvent = (row) => (
  { ...row, start: toNano(row.start), end: toNano(row.start + row.seconds) });

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
