// Where the microseconds of a token went, and which bytes moved for it.

import { baseOf, formatBytes, formatPercent, formatSeconds, readsOf } from "./run.js";

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
  for (const e of events) if (e.kind === "transfer") add(wayWords(e), e.nbytes);
  return [...sums].map(([what, nbytes]) => `${formatBytes(nbytes)} ${what}`).join(", ");
}

// "of ids in" is what goes into HBM, "of logits out" what comes back; other ways by their ends.
function wayWords(e) {
  const what = `of ${e.label || "data"}`, from = baseOf(e.source), to = baseOf(e.target);
  if (baseOf(e.resource) === "network") {
    return `${what} over ${e.link === "infiniband" ? "InfiniBand" : "NVLink"}`;
  }
  if (from === "dram" && to === "hbm") return `${what} in`;
  if (from === "hbm" && to === "dram") return `${what} out`;
  return `${what} ${from.toUpperCase()} → ${to.toUpperCase()}`;
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
  const line = (name, words) => {
    const p = document.createElement("p");
    p.className = name;
    p.textContent = words;
    return p;
  };
  const stack = ({ parts, whole }) => {
    const bar = document.createElement("div");
    bar.className = "minillm-stack";
    bar.setAttribute("role", "img");
    const told = parts.map((part) => `${part.name} ${formatSeconds(part.seconds)}`);
    bar.setAttribute("aria-label", told.join(", "));
    for (const part of parts) {
      const piece = document.createElement("div"), ink = document.createElement("i");
      const name = document.createElement("span");
      piece.style.flex = `${part.seconds / whole} 1 0`;
      ink.style.setProperty("--ink", `var(--m-${part.ink})`);
      ink.dataset.meaning = part.ink;
      const share = formatPercent(part.seconds, whole);
      piece.title = `${part.name}: ${formatSeconds(part.seconds)}, ${share}`;
      const room = (box.clientWidth * part.seconds) / whole, time = formatSeconds(part.seconds);
      const wordings = [`${part.name} ${time}`, part.name, time];
      name.textContent = wordings.find((words) => 6.3 * words.length < room) || "";
      piece.append(ink, name);
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
      box.replaceChildren(line("", isExample ? `A typical word: ${said}` : said), stack(journey),
        line("minillm-moved", [moved, hint].filter(Boolean).join(" · ")));
    },
  };
}
