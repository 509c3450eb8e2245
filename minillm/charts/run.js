// The run as the browser holds it: events in, questions answered. Views only read it.
//
// An event is an object, see events.js. Times are seconds since the trace began. Rank 0 is written
// without its suffix: "hbm", "hbm:1".

import { RESERVED, asEvent, baseOf, rankOf } from "./events.js";
import { cutClock, firstAbove } from "./clock.js";
export { RESERVED, baseOf, rankOf, readsOf, unpackRows } from "./events.js";
export { formatBytes, formatPercent, formatRate, formatSeconds } from "./formats.js";

const total = (levels) => Object.values(levels).reduce((a, b) => a + b, 0);

export class Run {
  constructor(meta = {}) {
    this.meta = meta;
    this.live = {}; // of the machine, while the run goes on: see machine_view.js
    this._rows = [];
    this._forget();
  }

  // Rows in any order of time. Nothing is worked out until it is asked for.
  append(rows) {
    for (const row of rows) this._rows.push(asEvent(row));
    if (rows.length) this._forget();
  }

  // All events anew, with what the trace says of itself at the end.
  replace(rows, meta) {
    [this._rows, this.meta] = [[], meta];
    this._forget();
    this.append(rows);
  }

  // While live: of more than `many` events the older half goes, but not memory and text.
  forgetBeyond(many) {
    if (this._rows.length <= many) return;
    const kept = (e) => e.kind === "counter" || e.label === "text";
    this._rows = this.events.filter((e, i, all) => kept(e) || i > all.length / 2);
    this._forget();
  }

  _forget() { this._known = new Map(); }

  _once(key, make) {
    if (!this._known.has(key)) this._known.set(key, make());
    return this._known.get(key);
  }

  // -- what happened -----------------------------------------------------------------------------

  // By start, an outer event before what runs inside it.
  get events() {
    return this._once("events", () => this._rows = this._rows.slice().sort(
      (a, b) => a.start - b.start || b.seconds - a.seconds));
  }

  get work() { return this._once("work", () => this.events.filter((e) => e.kind !== "counter")); }
  get begin() { return this.work.length ? this.work[0].start : 0; }
  get end() { return this._once("end", () => this.work.reduce((t, e) => Math.max(t, e.end), 0)); }
  get clock() { return this._once("clock", () => cutClock(this.work, this.begin, this.end)); }
  get requests() { return this._once("requests", () => findRequests(this.work)); }
  get tokens() { return this._once("tokens", () => this.requests.flatMap((r) => r.tokens)); }

  // Of {request, index} the token as it is now; null if there is none.
  token(one) {
    return this.tokens.find((x) => x.request === one?.request && x.index === one.index) || null;
  }

  // When the weights came in; null if they did not.
  get load() {
    return this._once("load", () => {
      const load = this.work.filter((e) => e.stage === "load");
      const stop = load.reduce((t, e) => Math.max(t, e.end), 0);
      return load.length ? { start: load[0].start, stop } : null;
    });
  }

  // Events (no counters) that overlap from … to, by start. One without length counts at its moment.
  between(from, to) {
    const { work } = this;
    const reach = this._once("reach", () => { // the latest end so far: where a search may begin
      let latest = -Infinity;
      return work.map((e) => (latest = Math.max(latest, e.end)));
    });
    const found = [];
    for (let i = firstAbove(reach, from, (end) => end); i < work.length; i++) {
      const e = work[i];
      if (e.start >= to) break;
      if (e.end > from || e.start >= from) found.push(e);
    }
    return found;
  }

  // The token being made at t, at its last moment too; of requests in a batch that of the first.
  tokenAt(t) {
    for (const one of this.requests) {
      if (t < one.start || t > one.stop) continue;
      const token = one.tokens[firstAbove(one.tokens, t - 1e-10, (x) => x.stop)];
      if (token) return token;
    }
    return null;
  }

  // -- memory ------------------------------------------------------------------------------------

  get tiers() {
    return this._once("tiers", () => {
      const names = new Set(Object.keys(this.meta.capacity || {}));
      for (const e of this.events) {
        for (const name of e.kind === "counter" ? [e.name] : [e.source, e.target]) names.add(name);
      }
      const order = ["hbm", "dram", "ssd"];
      const tiers = [...names].filter((name) => order.includes(baseOf(name)));
      return tiers.sort((a, b) => order.indexOf(baseOf(a)) - order.indexOf(baseOf(b))
        || rankOf(a) - rankOf(b));
    });
  }

  capacity(tier) {
    const given = this.meta.capacity || {};
    return given[tier] ?? given[baseOf(tier)] ?? null;
  }

  // Each change of a tier: [{t, levels: {label: bytes}, used, peak so far}], by time. What a pool
  // reserved is not used, but the peak has it.
  series(tier) {
    return this._once(`series ${tier}`, () => {
      const series = [];
      let levels = {}, peak = 0;
      for (const e of this.events) {
        if (e.kind !== "counter" || e.name !== tier) continue;
        levels = { ...levels, [e.label]: e.nbytes };
        const taken = total(levels), used = taken - (levels[RESERVED] || 0);
        peak = Math.max(peak, taken);
        series.push({ t: e.start, levels, used, peak });
      }
      return series;
    });
  }

  peak(tier) {
    const series = this.series(tier);
    const top = series.reduce((a, b) => (b.used > a.used ? b : a), { t: 0, levels: {}, used: 0 });
    return { nbytes: top.used, t: top.t, levels: top.levels, taken: series.at(-1)?.peak || 0 };
  }

  // -- answers for the views ---------------------------------------------------------------------

  // Who had the time from … to: every instant goes to the innermost event under way, once, so that
  // the seconds add up to to - from. What holds others, as a pass its layers, keeps the rest.
  parts(from, to) {
    const events = this.between(from, to), spent = events.map(() => 0), holds = new Set();
    const inside = events.flatMap((e) => [e.start, e.end]).filter((t) => from < t && t < to);
    const edges = [from, ...inside.sort((a, b) => a - b), to], idle = ["in between", "idle", 0];
    const active = []; // indices; the last one pushed is the innermost, for events come by start
    for (let i = 0, next = 0; i + 1 < edges.length; i++) {
      for (; next < events.length && events[next].start <= edges[i]; next++) {
        const e = events[next];
        active.map((k) => events[k]).filter((p) => p.resource === e.resource && p.end >= e.end
          && p.seconds > e.seconds).forEach((p) => holds.add(p));
        active.push(next);
      }
      while (active.length && events[active.at(-1)].end <= edges[i]) active.pop();
      const seconds = edges[i + 1] - edges[i];
      if (active.length) spent[active.at(-1)] += seconds; else idle[2] += seconds;
    }
    const found = new Map();
    const rows = events.map((e, i) => [(holds.has(e) ? "rest of " : "") + e.said, e.ink, spent[i]]);
    for (const [name, ink, seconds] of [...rows, idle]) {
      const key = `${name}\n${ink}`, part = found.get(key) || { name, ink, seconds: 0 };
      part.seconds += seconds;
      found.set(key, part);
    }
    return [...found.values()];
  }

  // The request of the token being made, else the last one that has begun; null before the first.
  requestAt(t) {
    const token = this.tokenAt(t);
    const begun = this.requests.filter((r) => r.start <= t);
    return (token && begun.find((r) => r.number === token.request)) || begun.at(-1) || null;
  }
}

// A request is cut at the end of each generated token, so that its tokens add up to the whole.
// `own` is a token from its first event to its last, without what the caller did before it.
function findRequests(work) {
  const found = new Map(), begins = new Map(); // begins: of a step that several share
  for (const { request, step, stage, start } of work) {
    const shared = request === null && step !== null && stage !== "load";
    if (shared) begins.set(step, Math.min(start, begins.get(step) ?? Infinity));
  }
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
    const token = (one.ends[e.token] ||= { text: "", begin: e.start, stop: 0 });
    token.begin = Math.min(token.begin, begins.get(e.step) ?? Infinity);
    token.stop = Math.max(token.stop, e.end);
    if (e.name === "detokenize") token.text += e.detail;
  }
  return [...found.values()].map(({ ends, ...one }) => {
    let start = one.start;
    const tokens = [];
    ends.forEach(({ text, begin, stop }, index) => {
      const until = index === ends.length - 1 ? one.stop : stop, own = { start: begin, stop };
      tokens.push({ request: one.number, index, text, start, stop: until, own });
      start = until;
    });
    return { ...one, tokens };
  });
}
