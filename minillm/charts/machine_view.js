// The machine as a living picture: memories that fill, dots on the links, the stage that is lit,
// and the word just made. Where things stand comes from machine_layout.py, in meta.layout.

import { MachinePicture } from "./machine_picture.js";
import { setText } from "./machine_svg.js";
import { announce } from "./sheet.js";

const NARROW_BELOW = 640; // px: in less the words of a wide sheet would be too small, or too many
const WIDEST_NARROW = 520; // px, as in the styles
const FRAME = 33, FRAME_LIVE = 50; // ms from dots to dots; live, the run needs the CPU

// Draw run in el: draw(t, view) sets the moment; dots go on by themselves until the next one.
// onPick({request, index}) is told of the token when someone chooses its card.
export function machineView(el, run, { onPick } = {}) {
  const root = document.createElement("div");
  root.className = "minillm-machine";
  el.appendChild(root);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let picture = null, last = null, visible = true, width = 0;
  let raf = 0, timer = 0, next = 0, frameAt = 0;

  const ask = () => { if (!raf && !next && visible) raf = requestAnimationFrame(tick); };
  const tick = (now) => {
    raf = 0;
    if (!visible) return;
    const moves = picture.move(now, Math.min(0.1, (now - frameAt) / 1000));
    frameAt = now;
    const pause = (last[1].live ? FRAME_LIVE : FRAME) - 12; // the rest is the wait for a frame
    if (moves) next = setTimeout(() => { next = 0; ask(); }, pause);
  };
  const build = () => {
    const { layout } = run.meta;
    width ||= root.clientWidth;
    const sheet = width && width < NARROW_BELOW ? layout.narrow : layout.wide;
    if (picture?.sheet !== sheet) {
      picture?.destroy();
      picture = new MachinePicture(root, run, sheet);
      tips.follow(picture);
    }
    picture.resize(sheet === layout.narrow ? Math.min(width, WIDEST_NARROW) : width || sheet.width);
  };
  const draw = (t, view) => {
    last = [t, view];
    if (!visible || !run.meta.layout) return;
    build();
    clearTimeout(timer);
    const due = picture.show(t, view, performance.now(), calm.matches);
    if (due) timer = setTimeout(() => picture.say(performance.now()), due);
    tips.refresh();
    ask();
  };
  const again = () => { if (last) draw(...last); };
  const pick = () => {
    const request = run.requestAt(last[0]), count = picture.scene.words.length;
    if (request && count && onPick) onPick({ request: request.number, index: count - 1 });
  };
  const tips = partTips(root, pick);
  const sizes = new ResizeObserver((entries) => {
    width = entries.at(-1).contentRect.width;
    again();
  });
  sizes.observe(root);
  const sight = new IntersectionObserver((entries) => {
    const before = visible;
    visible = entries.at(-1).isIntersecting;
    if (visible && !before) again();
  });
  sight.observe(root);
  return {
    draw,
    destroy() {
      visible = false;
      cancelAnimationFrame(raf);
      clearTimeout(timer);
      clearTimeout(next);
      sizes.disconnect();
      sight.disconnect();
      root.remove();
    },
  };
}

// All figures of the part under the pointer, or of the one that the arrow keys have reached.
function partTips(root, pick) {
  const tip = document.createElement("div");
  [tip.className, tip.hidden] = ["minillm-machine-tip", true];
  root.append(tip);
  let picture = null, chosen = null;

  const partOf = (id) => picture.svg.querySelector(`[data-part="${id}"]`);
  const write = () => {
    const lines = chosen && picture.about(chosen);
    tip.hidden = !lines;
    if (!lines) return null;
    while (tip.children.length < lines.length) {
      tip.append(document.createElement(["b", "i"][tip.children.length] || "span"));
    }
    [...tip.children].forEach((child, i) => setText(child, lines[i] || ""));
    return lines;
  };
  const choose = (id, aloud) => {
    if (id === chosen) return;
    if (chosen) partOf(chosen)?.classList.remove("chosen");
    chosen = id;
    const lines = write(), part = id && partOf(id);
    if (!part) return;
    part.classList.add("chosen");
    if (aloud) announce(root, lines.map((line) => line.replace(/\.?$/, ".")).join(" "));
    const box = part.getBoundingClientRect(), frame = root.getBoundingClientRect();
    const left = box.left - frame.left + box.width / 2 - tip.offsetWidth / 2;
    const below = box.bottom - frame.top + 8, above = box.top - frame.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(0, Math.min(left, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${below + tip.offsetHeight > frame.height && above > 0 ? above : below}px`;
  };
  const step = (by) => {
    const ids = [...picture.boxes.keys(), ...picture.pipes.keys()], place = ids.indexOf(chosen);
    choose(ids[(place + by + ids.length + (place < 0 && by < 0 ? 1 : 0)) % ids.length], true);
  };
  const keys = {
    ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1),
    ArrowUp: () => step(-1), Escape: () => choose(null), Enter: () => pick(),
  };
  root.addEventListener("pointerover", (event) => {
    choose(event.target.closest("[data-part]")?.dataset.part ?? null);
  });
  root.addEventListener("pointerleave", () => choose(null));
  root.addEventListener("focusout", () => choose(null));
  root.addEventListener("click", (event) => {
    if (event.target.closest("[data-part=token]")) pick();
  });
  root.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  return {
    follow(next) { [picture, chosen, tip.hidden] = [next, null, true]; },
    refresh() { if (chosen) write(); },
  };
}
