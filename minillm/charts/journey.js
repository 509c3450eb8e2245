// Where the microseconds of a token went, and which bytes moved for it.

import { baseOf, formatBytes, formatPercent, formatSeconds, readsOf } from "./run.js";
import { newElement } from "./sheet.js";

export const quoted = (text) => `“${(text.trim() || text).replaceAll("\n", "⏎")}”`;

// {said: "token 3 “key” took 2.41 ms: 61 % attention, …", parts, moved: "11.6 MiB read from …"}
export function journeyOf(run, token) {
  const { start, stop } = token.own, whole = stop - start;
  const parts = run.parts(start, stop).filter((part) => part.seconds > 0);
  const largest = parts.slice().sort((a, b) => b.seconds - a.seconds);
  const named = largest.filter((part) => part.seconds >= 0.01 * whole).slice(0, 4);
  const shares = named.map((part) => `${formatPercent(part.seconds, whole)} ${part.name}`);
  if (named.length < parts.length) shares.push("…");
  const text = token.text ? ` ${quoted(token.text)}` : "";
  return {
    said: `token ${token.index}${text} took ${formatSeconds(whole)}: ${shares.join(", ")}`,
    moved: bytesMoved(run, token.own), parts, whole,
  };
}

// "11.6 MiB read from HBM (predicted), 8 B of ids in, 16 KiB of logits out"
function bytesMoved(run, { start, stop }) {
  const middle = (e) => e.start + e.seconds / 2;
  const events = run.between(start, stop).filter((e) =>
    e.nbytes && start <= middle(e) && middle(e) <= stop);
  const sums = new Map();
  const add = (what, nbytes) => sums.set(what, (sums.get(what) || 0) + nbytes);
  for (const e of readsOf(events)) {
    add(`read from HBM${e.bytes_how === "predicted" ? " (predicted)" : ""}`, e.nbytes);
  }
  for (const e of events) if (e.kind === "transfer") add(wayWords(run, e), e.nbytes);
  return [...sums].map(([what, nbytes]) => `${formatBytes(nbytes)} ${what}`).join(", ");
}

// "of ids in" is what goes into HBM, "of logits out" what comes back; other ways by their ends.
function wayWords(run, e) {
  const what = `of ${e.label || "data"}`, ends = [e.source, e.target].map(baseOf).join(" → ");
  const row = run.meta.rows.find(([key]) => key === e.row); // of a network its name
  if (baseOf(e.resource) === "network") return `${what} over ${row[1]}`;
  const way = { "dram → hbm": "in", "hbm → dram": "out" }[ends];
  return `${what} ${way || ends.toUpperCase()}`;
}

// The token after the first whose time is the median: the one to show if none was chosen.
export function typicalToken(request) {
  const took = ({ own }) => own.stop - own.start;
  const later = request.tokens.slice(1).sort((a, b) => took(a) - took(b));
  return later[(later.length - 1) >> 1] || request.tokens[0] || null;
}

// The box below the chips: a sentence, a bar with a name under each part, a line on bytes.
export function journeyBox(box, run) {
  let shown = null;
  const stack = ({ parts, whole }) => {
    const bar = newElement("div", "minillm-stack");
    bar.setAttribute("role", "img");
    const told = parts.map((part) => `${part.name} ${formatSeconds(part.seconds)}`);
    bar.setAttribute("aria-label", told.join(", "));
    for (const { name, ink, seconds } of parts) {
      const piece = newElement("div", ""), block = newElement("i");
      piece.style.flex = `${seconds / whole} 1 0`;
      block.style.setProperty("--ink", `var(--m-${ink})`);
      block.dataset.meaning = ink;
      const time = formatSeconds(seconds), room = (box.clientWidth * seconds) / whole;
      piece.title = `${name}: ${time}, ${formatPercent(seconds, whole)}`;
      const wordings = [`${name} ${time}`, name, time];
      const fitting = wordings.find((words) => 6.3 * words.length < room);
      piece.append(block, newElement("span", "", fitting));
      bar.append(piece);
    }
    return bar;
  };
  return {
    // token: the chosen one, or a typical one as an example; null leaves the box empty
    show(token, isExample = false) {
      const key = token && `${token.request} ${token.index} ${isExample} ${box.clientWidth}`;
      if (key === shown) return;
      shown = key;
      if (!token) return box.replaceChildren();
      const { said, moved, ...journey } = journeyOf(run, token);
      const hint = isExample ? "Choose a word to see its own journey." : "";
      box.replaceChildren(newElement("p", "", isExample ? `A typical word: ${said}` : said),
        stack(journey), newElement("p", "minillm-moved", [moved, hint].filter(Boolean).join(" · ")));
    },
  };
}
