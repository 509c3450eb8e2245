// What the timeline says of an event and of a whole run. Nothing here draws.
import { baseOf, formatBytes, formatPercent, formatRate, formatSeconds } from "./run.js";
import { rowTotals } from "./timeline_rows.js";

// What the card of an event says: {title, lines}.
export function eventFacts(run, e) {
  const many = run.tiers.includes("hbm:1"), lines = [];
  const place = many && baseOf(e.resource) === "compute" ? ` · GPU ${e.rank}` : "";
  const rate = e.nbytes && e.seconds && e.label !== "text" ? e.nbytes / e.seconds : 0;
  const ceiling = rate ? run.meta.ceilings?.[e.limit] : null;
  if (e.nbytes) lines.push(bytesWords(e));
  lines.push([
    formatSeconds(e.seconds), rate ? formatRate(rate) : "",
    ceiling ? `${formatPercent(rate, ceiling)} of ${formatRate(ceiling)}` : "",
  ].filter(Boolean).join(" · "));
  if (e.token !== null) lines.push(tokenWords(e));
  else if (e.step !== null) lines.push(`step ${e.step}`);
  const detail = e.label === "text" ? `“${e.detail.trim()}”` : e.detail;
  if (e.detail) lines.push(clipped(detail, 60));
  lines.push(e.bytes_how === "predicted" ? `time ${e.how}, bytes predicted` : e.how);
  return { title: `${e.said.replace(":", " ")}${place}`, lines };
}

const clipped = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function bytesWords(e) {
  const size = formatBytes(e.nbytes);
  const [from, to] = [e.source, e.target].map((tier) => tier.toUpperCase().replace(":", " "));
  if (e.kind === "transfer") return `${size} from ${from} to ${to}`;
  if (baseOf(e.resource) !== "compute") return e.label ? `${size} of ${e.label}` : size;
  return `${size} read from HBM`;
}

function tokenWords(e) {
  return e.request === null ? `token ${e.token}` : `token ${e.token} of request ${e.request}`;
}

// A sentence for those who listen: which resource was busy for how much of the run.
export function timelineWords(run, rows) {
  if (!run.work.length) return "Timeline by resource: nothing has happened yet.";
  const { length } = run.clock, tokens = run.tokens.length;
  const busy = rows.map((row) => `${row.name} ${formatPercent(rowTotals(row, length).share)}`);
  const made = tokens ? ` ${tokens} tokens of ${run.requests.length} requests.` : "";
  return `Timeline by resource, ${formatSeconds(length)} long. Busy: ${busy.join(", ")}.${made}`;
}
