// Where each event of a run lies on the timeline. Nothing here draws.
import { firstAbove } from "./clock.js";
import { baseOf, rankOf } from "./run.js";

export const STRIP = 40; // px above the rows, for requests and tokens
const BETWEEN = 9; // px between two rows

const MOST_LANES = 8; // more at once on one resource are drawn over each other, without names

// [{key, name, tracks: [{rank, lanes}]}] from the top down, only rows that occur.
// A track is one unit: compute of GPU 3. A lane of it holds what never overlaps, save inside each
// other, as arrays of equal length: events by start; from and to on the cut clock; depth, 0 for
// the outermost; next, the index after all that runs inside.
export function timelineRows(run) {
  const rows = new Map(run.meta.rows.map(([key, name]) => [key, { key, name, lanes: new Map() }]));
  for (const e of run.work) {
    const { lanes } = rows.get(e.row);
    const rank = baseOf(e.resource) === "network" ? rankOf(e.source) : e.rank; // the sender's
    if (!lanes.has(rank)) lanes.set(rank, []);
    putInLane(lanes.get(rank), e, run.clock);
  }
  return [...rows.values()].filter(({ lanes }) => lanes.size).map(({ lanes, ...row }) => {
    const tracks = [...lanes].sort((a, b) => a[0] - b[0]);
    for (const [, some] of tracks) some.forEach(findNext);
    return { ...row, tracks: tracks.map(([rank, some]) => ({ rank, lanes: some })) };
  });
}

// In the first lane where it is alone or, being a span, inside another: a layer of a step. Two
// transfers at once are never parts of one another, nor is work of one name: threads do it.
function putInLane(lanes, e, clock) {
  let lane = null;
  for (let i = 0; i < MOST_LANES && !lane; i++) {
    const one = (lanes[i] ||= { events: [], from: [], to: [], depth: [], open: [] });
    while (one.open.length && one.open.at(-1).end <= e.start) one.open.pop();
    const outer = one.open.at(-1);
    const inside = outer && e.kind === "span" && e.end <= outer.end && e.name !== outer.name;
    if (!one.open.length || inside) lane = one;
  }
  if (!lane) {
    lane = lanes.at(-1);
    [lane.open, lane.crowded] = [[], true]; // not inside what is under way, but over it
  }
  lane.events.push(e);
  lane.from.push(clock.play(e.start));
  lane.to.push(clock.play(e.end));
  lane.depth.push(lane.open.length);
  lane.open.push(e);
}

function findNext(lane) {
  const { depth } = lane, outer = []; // indices whose inside is not over yet, seen from the end
  lane.next = new Array(depth.length);
  for (let i = depth.length - 1; i >= 0; i--) {
    while (outer.length && depth[outer.at(-1)] > depth[i]) outer.pop();
    lane.next[i] = outer.length ? outer.at(-1) : depth.length;
    outer.push(i);
  }
}

// Where rows and lanes lie: each row gets y, height, and lanes [{lane, y, height}]. Of many units
// each is a thin line, so that eight GPUs still fit on the page.
export function layoutRows(run) {
  let y = STRIP + 8;
  return timelineRows(run).map((row) => {
    const many = row.tracks.length > 1, deep = row.key === "compute";
    const tall = many ? (deep ? 13 : 8) : (deep ? 40 : 22);
    const start = y, lanes = [];
    for (const track of row.tracks) {
      const share = tall / track.lanes.length;
      const least = many ? 4 : track.lanes.length > 3 ? 7 : 12; // in 12 px a name has room
      const each = track.lanes.length > 1 ? Math.max(least, share) : tall;
      track.y = y;
      for (const lane of track.lanes) {
        lanes.push({ lane, y, height: each - (track.lanes.length > 1 ? 1 : 0) });
        y += each;
      }
      track.height = y - track.y;
      y += many ? 2 : 0;
    }
    y += BETWEEN;
    return { ...row, y: start, height: y - BETWEEN - start, lanes };
  });
}

// The index of the first outermost event that ends after `at`, in play seconds.
export function firstSeen(lane, at) {
  const { from, depth } = lane;
  let i = Math.max(0, firstAbove(from, at, (start) => start) - 1);
  while (i > 0 && depth[i] > 0) i--;
  return i < from.length && lane.to[i] <= at ? lane.next[i] : i;
}

// The index of the event at `at`, give or take `slack`; the innermost if `inside`. -1 for none.
export function indexAt(lane, at, slack, inside) {
  let best = -1, nearest = Infinity;
  const consider = (i) => {
    const away = Math.max(0, lane.from[i] - at, at - lane.to[i]);
    if (away > slack || away > nearest) return;
    [best, nearest] = [i, away];
  };
  for (let i = firstSeen(lane, at - slack); i < lane.from.length; i = lane.next[i]) {
    if (lane.from[i] > at + slack) break;
    consider(i);
    if (inside(i)) for (let j = i + 1; j < lane.next[i]; j++) consider(j);
  }
  return best;
}

// Bytes that moved or were at work in a run of `length` play seconds, and the share of the time.
export function rowTotals(row, length) {
  let busy = 0, seconds = 0, nbytes = 0;
  for (const { lanes } of row.tracks) {
    let until = 0; // two lanes at once take their time once
    const spans = [];
    for (const lane of lanes) {
      for (let i = 0; i < lane.from.length; i = lane.next[i]) {
        if (lane.events[i].ink !== "idle") spans.push([lane.from[i], lane.to[i]]);
        nbytes += lane.events[i].nbytes;
        seconds += lane.events[i].seconds;
      }
    }
    if (lanes.length > 1) spans.sort((a, b) => a[0] - b[0]);
    for (const [start, stop] of spans) {
      busy += Math.max(0, stop - Math.max(start, until));
      until = Math.max(until, stop);
    }
  }
  return { share: busy / Math.max(1e-12, row.tracks.length * length), nbytes, seconds };
}

// What goes on over all rows: [{start, stop (trace seconds), words, tokens}]: the load, then each
// request. Those that run at once are one, with the tokens of the first, for they share steps.
export function stagesOf(run) {
  const load = run.work.filter((e) => e.stage === "load"), stages = [];
  for (const { start, stop, prompt, tokens } of run.requests) {
    const last = stages.at(-1);
    if (!last || start >= last.stop) {
      stages.push({ start, stop, tokens, count: 1, words: prompt ? `“${prompt}”` : "request" });
    } else {
      last.stop = Math.max(last.stop, stop);
      last.words = `${++last.count} requests at once`;
    }
  }
  if (!load.length) return stages;
  const stop = load.reduce((t, e) => Math.max(t, e.end), 0);
  return [{ start: load[0].start, stop, words: "load", tokens: [] }, ...stages];
}
