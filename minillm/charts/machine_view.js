// The machine as a living picture: sets attributes of named parts and lets dots run along links. It
// knows no event, no unit and no rule: what a moment looks like comes from machine_scene.py.

import { firstAbove } from "./clock.js";
import { announce, newElement } from "./sheet.js";

const FRAME = 30; // ms from dots to dots, at least
const RESTS = { live: 1500, playing: 250 }; // ms after the last moment until dots rest

// Adds what a state changes to `into`, which has all of it.
export function mergeState(into, state) {
  for (const [id, looks] of Object.entries(state)) Object.assign(into[id] ||= {}, looks);
  return into;
}

// The SVG on a page: without its head, for title and note are the page's.
class MachinePicture {
  constructor(pane, { svg, frames }) {
    pane.innerHTML = svg;
    this.svg = pane.firstElementChild;
    const { width, height } = this.svg.viewBox.baseVal, head = Number(this.svg.dataset.head);
    this.svg.setAttribute("viewBox", `0 ${head} ${width} ${height - head}`);
    this.parts = new Map([...pane.querySelectorAll("[data-id]")].map((p) => [p.dataset.id, p]));
    this.says = new Map([...this.svg.querySelectorAll("title")].map((title) => {
      title.remove(); // a browser would show it beside the tip
      return [title.dataset.of, title.textContent];
    }));
    Object.assign(this, { frames, seen: {}, lanes: new Map(), sum: {}, at: -1 });
  }

  set(state) {
    for (const [id, looks] of Object.entries(state)) {
      const part = this.parts.get(id), seen = this.seen[id] ||= {};
      for (const [name, value] of Object.entries(part ? looks : {})) {
        if (seen[name] === value) continue;
        seen[name] = value;
        if (name === "text") part.textContent = value;
        else if (name === "data-flow") this._flow(id, part, value);
        else if (name !== "tip") part.setAttribute(name, value);
      }
    }
  }

  // Everything at frame `at`: frames say what changes.
  upTo(at) {
    if (at < this.at) [this.sum, this.at] = [{}, -1];
    while (this.at < at) mergeState(this.sum, this.frames[++this.at].set);
    return this.sum;
  }

  _flow(id, part, speed) {
    if (speed) this.lanes.set(id, { part, speed, at: this.lanes.get(id)?.at || 0 });
    else this.lanes.delete(id);
  }

  // Dots are dashes of no length with round ends: moving the dashes moves them all.
  move(seconds) {
    for (const lane of this.lanes.values()) {
      lane.at = (lane.at + seconds * lane.speed) % 1e6;
      lane.part.setAttribute("stroke-dashoffset", (-lane.at).toFixed(1));
    }
    return this.lanes.size > 0;
  }

  // What a part is, and its figures: lines.
  about(id) { return `${this.says.get(id)}${this.seen[id]?.tip || ""}`.split("\n"); }
}

// Draw run in el: draw(t, view) sets the moment; dots go on by themselves until the next one.
// onPick({request, index}) is told of the token when someone chooses its card.
export function machineView(el, run, { onPick } = {}) {
  const root = newElement("div", "minillm-machine");
  const pane = root.appendChild(newElement("div", "minillm-machine-pane"));
  el.append(root);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let data = null, picture = null, moment = 0, until = 0, raf = 0, last = 0;
  const tips = partTips(root, () => picture, () => {
    const request = run.requestAt(moment), done = request?.tokens.filter((x) => x.stop <= moment);
    if (done?.length && onPick) onPick({ request: request.number, index: done.length - 1 });
  });
  const tick = (now) => {
    const due = now - last >= FRAME, moves = !due || picture.move(Math.min(100, now - last) / 1000);
    last = due ? now : last;
    raf = moves && now < until ? requestAnimationFrame(tick) : 0;
  };
  const look = (t, { live, atRest, selection }) => {
    const { frames, tokens, still } = data;
    const own = selection && tokens[`${selection.request} ${selection.index}`];
    if (live) return [still, run.live];
    if (own) return [picture.upTo(own.at), own.set];
    const at = Math.min(frames.length - 1, firstAbove(frames, t + 1e-7, (frame) => frame.t));
    return atRest || at < 0 ? [still] : [picture.upTo(at)];
  };
  return {
    draw(t, view) {
      if (data !== run.meta.picture) {
        data = run.meta.picture;
        picture = new MachinePicture(pane, data);
        Object.assign(picture.svg, { tabIndex: 0 }).dataset.keys = "own";
      }
      moment = t;
      look(t, view).forEach((state) => picture.set(state));
      tips.refresh();
      const now = performance.now();
      until = now + (view.live ? RESTS.live : view.playing ? RESTS.playing : 0);
      if (raf || until === now || calm.matches) return;
      [last, raf] = [now, requestAnimationFrame(tick)];
    },
    destroy() {
      cancelAnimationFrame(raf);
      root.remove();
    },
  };
}

// All that is told of the part under the pointer, or of the one that the arrow keys have reached.
function partTips(root, picture, pick) {
  const tip = root.appendChild(newElement("div", "minillm-machine-tip"));
  tip.hidden = true;
  let chosen = null;
  const write = () => {
    const lines = chosen ? picture().about(chosen) : [];
    tip.hidden = !chosen;
    tip.replaceChildren(...lines.map((line, i) => newElement(["b", "i"][i] || "span", "", line)));
    return lines;
  };
  const choose = (id, aloud) => {
    if (id === chosen) return;
    picture().parts.get(chosen)?.removeAttribute("data-chosen");
    chosen = id;
    const lines = write(), part = picture().parts.get(id);
    if (!part) return;
    part.setAttribute("data-chosen", "");
    if (aloud) announce(root, lines.map((line) => line.replace(/\.?$/, ".")).join(" "));
    const box = part.getBoundingClientRect(), frame = root.getBoundingClientRect();
    const left = box.left - frame.left + box.width / 2 - tip.offsetWidth / 2;
    const below = box.bottom - frame.top + 8, above = box.top - frame.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(0, Math.min(left, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${below + tip.offsetHeight > frame.height && above > 0 ? above : below}px`;
  };
  const step = (by) => {
    const ids = [...picture().says.keys()], place = ids.indexOf(chosen);
    choose(ids[(place + by + ids.length + (place < 0 && by < 0 ? 1 : 0)) % ids.length], true);
  };
  const keys = {
    ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1),
    ArrowUp: () => step(-1), Escape: () => choose(null), Enter: pick,
  };
  const partOf = (event) => event.target.closest("[data-id]")?.dataset.id.split("/")[0];
  root.addEventListener("pointerover", (event) => {
    const id = partOf(event);
    choose(picture()?.says.has(id) ? id : null);
  });
  for (const away of ["pointerleave", "focusout"]) root.addEventListener(away, () => choose(null));
  root.addEventListener("click", (event) => { if (partOf(event) === "token") pick(); });
  root.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  return { refresh() { if (chosen) write(); } };
}
