// Where each event of a run lies on the timeline. Nothing here draws.
import { firstAbove } from "./clock.js";
import { baseOf, rankOf } from "./run.js";

export const STRIP = 40; // px above the rows, for requests and tokens
const BETWEEN = 9; // px between two rows

const MOST_LANES = 8; // more at once on one resource are drawn over each other, without names

// [{key, name, tracks: [{rank, lanes}]}] from the top down, only rows that occur.
// A track is one unit: compute of GPU 3. A lane of it holds what never overlaps, as arrays of equal
// length: events by start; from and to on the cut clock.
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
    return { ...row, tracks: tracks.map(([rank, some]) => ({ rank, lanes: some })) };
  });
}

// In the first lane where it is alone. A span inside another is a part of it, as a layer of a step,
// and not drawn; transfers at once are never parts of one another, nor is work of one name: threads
// do it.
function putInLane(lanes, e, clock) {
  const holds = ({ last }) => e.kind === "span" && e.end <= last.end && e.name !== last.name;
  if (lanes.some(holds)) return;
  let lane = lanes.find(({ last }) => last.end <= e.start);
  if (!lane && lanes.length === MOST_LANES) {
    lane = lanes.at(-1);
    lane.crowded = true;
  }
  if (!lane) lanes.push(lane = { events: [], from: [], to: [], last: e });
  lane.events.push(e);
  lane.from.push(clock.play(e.start));
  lane.to.push(clock.play(e.end));
  if (e.end >= lane.last.end) lane.last = e;
}

// Where rows and lanes lie: each row gets y, height, and lanes [{lane, y, height}]. Of many units
// each is a thin line, so that eight GPUs still fit on the page.
export function layoutRows(run) {
  let y = STRIP + 8;
  return timelineRows(run).map((row) => {
    const many = row.tracks.length > 1, tall = many ? 8 : 22, start = y, lanes = [];
    for (const track of row.tracks) {
      const least = many ? 4 : track.lanes.length > 3 ? 7 : 12; // in 12 px a name has room
      const each = Math.max(tall / track.lanes.length, track.lanes.length > 1 ? least : 0);
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

// The index of the event of a lane that ends after `at`, in play seconds.
export const firstSeen = (lane, at) => firstAbove(lane.to, at, (end) => end);

// The index of the event nearest to `at`, give or take `slack`; -1 for none.
export function indexAt(lane, at, slack) {
  let best = -1, nearest = slack;
  for (let i = firstSeen(lane, at - slack); lane.from[i] <= at + slack; i++) {
    const away = Math.max(0, lane.from[i] - at, at - lane.to[i]);
    if (away <= nearest) [best, nearest] = [i, away];
  }
  return best;
}

// Bytes that moved or were at work in a run of `length` play seconds, and the share of the time.
export function rowTotals(row, length) {
  let busy = 0, seconds = 0, nbytes = 0;
  for (const { lanes } of row.tracks) {
    const spans = lanes.flatMap(({ events, from, to }) => events.map((e, i) => [from[i], to[i], e]));
    let until = 0; // two lanes at once take their time once
    for (const [start, stop, e] of spans.sort((a, b) => a[0] - b[0])) {
      nbytes += e.nbytes;
      seconds += e.seconds;
      if (e.ink === "idle") continue;
      busy += Math.max(0, stop - Math.max(start, until));
      until = Math.max(until, stop);
    }
  }
  return { share: busy / Math.max(1e-12, row.tracks.length * length), nbytes, seconds };
}

// What goes on over all rows: [{start, stop (trace seconds), words, tokens}]: the load, then each
// request. Those that run at once are one, with the tokens of the first, for they share steps.
export function stagesOf(run) {
  const stages = [];
  for (const { start, stop, prompt, tokens } of run.requests) {
    const last = stages.at(-1);
    if (!last || start >= last.stop) {
      stages.push({ start, stop, tokens, count: 1, words: prompt ? `“${prompt}”` : "request" });
    } else {
      last.stop = Math.max(last.stop, stop);
      last.words = `${++last.count} requests at once`;
    }
  }
  return run.load ? [{ ...run.load, words: "load", tokens: [] }, ...stages] : stages;
}
