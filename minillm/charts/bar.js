// The bar of the player: play, scrub over the cut clock, pace, one token on or back.

import { formatSeconds } from "./run.js";
import { newElement } from "./sheet.js";

const SHAPES = {
  play: "M4 2.5v11l9.5-5.5z", pause: "M4 2.5h3v11h-3zM9 2.5h3v11h-3z",
  again: "M8 2a6 6 0 1 0 6 6h-2a4 4 0 1 1-4-4v2.5l4-3.5-4-3.5z",
  back: "M11 2.5v11l-8-5.5zM2 2.5h1.6v11h-1.6z", on: "M5 2.5v11l8-5.5zM12.4 2.5h1.6v11h-1.6z",
  less: "M2 7h12v2h-12z", more: "M2 7h5v-5h2v5h5v2h-5v5h-2v-5h-5z",
};

// "40 × slower", "real time", "2 × faster"
export function paceWords(slower) {
  if (slower === 1) return "real time";
  if (slower < 1) return `${Math.round(1 / slower)} × faster`;
  return `${slower.toLocaleString("en")} × slower`;
}

function roundButton(words, shape, act, small = true) {
  const button = newElement("button", `minillm-round ${small ? "minillm-small" : "minillm-play"}`);
  button.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves keys pressed here to us
  button.addEventListener("click", act);
  drawButton(button, words, shape);
  return button;
}

function drawButton(button, words, shape) {
  if (button.dataset.shape === shape) return;
  button.dataset.shape = shape;
  button.setAttribute("aria-label", words);
  button.title = words;
  const path = `<path d="${SHAPES[shape]}"/>`;
  button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true">${path}</svg>`;
}

// act: {toggle(), pace(+1 slower or -1), step(+1 or -1), seek(p)}
export function controlBar(box, run, act) {
  const play = roundButton("play (space)", "play", () => act.toggle(), false);
  const badge = newElement("span", "minillm-badge"), scrub = newElement("div", "minillm-scrub");
  const phases = newElement("div", "minillm-phases"), slider = newElement("input");
  scrub.append(phases, slider);
  Object.assign(slider, { type: "range", min: 0, step: "any" });
  slider.setAttribute("aria-label", "time in the run");
  slider.dataset.lmSuppressShortcuts = "true";
  slider.addEventListener("input", () => act.seek(Number(slider.value)));
  const now = newElement("span", "minillm-now");
  now.title = "time in the run, without its long pauses";
  const pace = newElement("span", "minillm-group minillm-pace"), words = newElement("output");
  pace.append(roundButton("slower", "less", () => act.pace(1)), words,
    roundButton("faster", "more", () => act.pace(-1)));
  const step = newElement("span", "minillm-group");
  step.append(roundButton("one token back (←)", "back", () => act.step(-1)),
    newElement("span", "", "token"), roundButton("one token on (→)", "on", () => act.step(1)));
  box.append(play, badge, scrub, now, pace, step);
  let drawn = null;

  return {
    // p: place on the cut clock; mode: "live", "auto" (plays itself) or "hand"
    show({ p, mode, playing, slower }) {
      const { clock } = run, end = clock.length; // time without the pauses: what the pace is of
      box.dataset.mode = mode;
      badge.textContent = mode === "live" ? "live" : `replay · ${paceWords(slower)}`;
      if (mode === "live") {
        const busy = run.work.length.toLocaleString("en");
        now.innerHTML = `<b>${formatSeconds(run.end - run.begin)}</b> · ${busy} events`;
        return;
      }
      const paper = `${clock.length} ${phases.clientWidth}`;
      if (drawn !== paper) drawPhases(phases, run);
      drawn = paper;
      const ended = p >= clock.length && !playing;
      drawButton(play, playing ? "pause (space)" : ended ? "play again (space)" : "play (space)",
        playing ? "pause" : ended ? "again" : "play");
      slider.max = clock.length;
      slider.value = p;
      const said = `${formatSeconds(p)} of ${formatSeconds(end)}`;
      slider.setAttribute("aria-valuetext", said);
      now.innerHTML = `<b>${formatSeconds(p)}</b> of ${formatSeconds(end)}`;
      words.textContent = paceWords(slower);
      const [slow, fast] = pace.querySelectorAll("button");
      [slow.disabled, fast.disabled] = [slower >= PACES.at(-1), slower <= PACES[0]];
    },
  };
}

const MANY_CUTS = 8;
export const PACES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 10, 20, 40, 100, 200, 400, 1000,
  2000, 4000];

// Below the thumb: when weights came in, when each request ran, and where a pause was cut (unless
// that is everywhere, as when the caller rests after each word).
function drawPhases(box, run) {
  const { clock } = run, percent = (t) => 100 * (clock.length ? clock.play(t) / clock.length : 0);
  const phases = run.load ? [{ name: "load", ...run.load }] : [];
  for (const { number, start, stop } of run.requests) {
    phases.push({ name: `request ${number}`, start, stop });
  }
  if (!phases.length && run.work.length) phases.push({ name: "", start: run.begin, stop: run.end });
  box.replaceChildren();
  let free = -1; // requests of a batch lie on one another: the first has its name
  for (const { name, start, stop } of phases) {
    const bar = newElement("i"), left = percent(start), wide = percent(stop) - left;
    bar.style.cssText = `left: ${left}%; width: calc(${wide}% - 1px)`;
    box.append(bar);
    if (left < free || (wide / 100) * box.clientWidth < 6.2 * name.length) continue;
    free = left + wide - 1e-6;
    const label = newElement("span", "", name);
    label.style.cssText = `left: ${left}%; max-width: ${wide}%`;
    box.append(label);
  }
  for (const { play } of clock.cuts.length > MANY_CUTS ? [] : clock.cuts) {
    const mark = newElement("s");
    mark.style.left = `${(100 * play) / clock.length}%`;
    box.append(mark);
  }
}
