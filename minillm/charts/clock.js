// The cut clock: a run without its long pauses, and back again.

// The index of the first item whose key is above x, of items sorted by key.
export function firstAbove(items, x, key) {
  let low = 0, high = items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (key(items[middle]) > x) high = middle; else low = middle + 1;
  }
  return low;
}

// People wait between requests; a player should not. Time runs on at its own rate while anything
// is under way; a pause of more than 30 ms and 5 % of the busy time takes a small fixed width.
export function cutClock(work, begin, end) {
  const gaps = [];
  let until = begin, busy = end - begin;
  for (const e of work) {
    if (e.start > until) {
      gaps.push({ from: until, to: e.start });
      busy -= e.start - until;
    }
    until = Math.max(until, e.end);
  }
  const long = Math.max(0.03, 0.05 * busy), width = 0.02 * busy;
  const stops = [{ t: begin, play: 0 }], cuts = []; // the clock is straight from stop to stop
  let saved = 0;
  for (const { from, to } of gaps.filter((gap) => gap.to - gap.from > long)) {
    const play = from - begin - saved;
    cuts.push({ play, seconds: to - from, width, t: from });
    saved += to - from - width;
    stops.push({ t: from, play }, { t: to, play: play + width });
  }
  const length = end - begin - saved;
  stops.push({ t: end, play: length });
  const along = (x, from, to) => {
    const i = Math.min(stops.length - 1, Math.max(1, firstAbove(stops, x, (s) => s[from])));
    const a = stops[i - 1], b = stops[i], wide = b[from] - a[from];
    const share = wide > 0 ? Math.min(1, Math.max(0, (x - a[from]) / wide)) : 0;
    return a[to] + share * (b[to] - a[to]);
  };
  return {
    length, cuts, play: (t) => along(t, "t", "play"), trace: (p) => along(p, "play", "t"),
  };
}
