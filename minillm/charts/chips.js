// The text of a request: its prompt, faint, and each generated token as a chip to choose.

import { formatSeconds } from "./run.js";
import { quoted } from "./journey.js";
import { newElement } from "./sheet.js";

const shownText = (text) => text.replaceAll("\n", "⏎").trimStart() || (text ? "␣" : "·");
const LONG = 400; // letters of a prompt; of a longer one the end is shown

// onChoose(token); onRequest(+1 or -1). `show` tells which request, what time, which choice.
export function tokenChips(box, run, { onChoose, onRequest }) {
  const head = newElement("div", "minillm-requests"), words = newElement("div", "minillm-words");
  words.setAttribute("role", "group");
  words.setAttribute("aria-label", "generated tokens: choose one to see its journey");
  box.append(head, words);
  const name = newElement("span");
  const steps = [-1, 1].map((step) => {
    const button = newElement("button", "minillm-round minillm-small", step < 0 ? "‹" : "›");
    button.dataset.lmSuppressShortcuts = "true";
    button.setAttribute("aria-label", step < 0 ? "request before" : "next request");
    button.addEventListener("click", () => onRequest(step));
    return button;
  });
  head.append(steps[0], name, steps[1]);
  let known = null, chips = [], marked = null, chosen = null;

  const add = (token) => {
    const chip = newElement("button", "minillm-chip");
    chip.dataset.lmSuppressShortcuts = "true";
    chip.tabIndex = token.index === 0 ? 0 : -1; // one stop for Tab; arrows go from token to token
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => onChoose(chip.token));
    words.append(chip);
    return chip;
  };
  const begin = (request) => {
    const said = request.prompt.trimEnd();
    const end = said.length > LONG ? `… ${said.slice(-LONG)}` : said;
    words.replaceChildren(newElement("span", "minillm-prompt", end));
    [chips, marked, chosen] = [[], null, null];
  };
  const update = (request) => { // while live a token comes before its text
    const { number, tokens } = request;
    if (!known || number !== known.number || tokens.length < chips.length) begin(request);
    known = request;
    tokens.forEach((token, i) => {
      const chip = chips[i] ||= add(token), before = tokens[i - 1];
      const first = !(before && token.text !== "" && !/^\s/.test(token.text)); // of a word
      chip.token = token;
      chip.textContent = shownText(token.text);
      chip.toggleAttribute("data-first", first);
      chips[i - 1]?.toggleAttribute("data-last", first);
      const took = formatSeconds(token.stop - token.start);
      chip.title = `token ${token.index} ${quoted(token.text)} · ${took}`;
    });
  };
  const into = (chip) => { // into view, without moving the page
    const top = chip.offsetTop, bottom = top + chip.offsetHeight, high = words.clientHeight;
    if (bottom > words.scrollTop + high) words.scrollTop = bottom - high + 4;
    else if (top < words.scrollTop) words.scrollTop = Math.max(0, top - 4);
  };
  const mark = (current) => { // chips before `current` are done, those behind it come later
    chips.forEach((chip, i) => {
      const when = i < current ? "done" : i === current ? "now" : "later";
      if (chip.dataset.when !== when) chip.dataset.when = when;
    });
    if (current !== marked && chips[current]) into(chips[current]);
    marked = current;
  };

  return {
    show(request, t, selection, atRest) {
      box.hidden = !request;
      if (!request) return;
      const all = run.requests, place = all.findIndex((r) => r.number === request.number);
      head.hidden = all.length < 2;
      name.textContent = `request ${request.number} · ${place + 1} of ${all.length}`;
      steps[0].disabled = place === 0;
      steps[1].disabled = place === all.length - 1;
      if (request !== known) update(request);
      const current = request.tokens.findIndex((token) => t <= token.stop + 1e-10);
      mark(current < 0 || atRest ? chips.length : t < request.start ? -1 : current);
      const mine = selection && selection.request === request.number;
      const choice = mine ? chips[selection.index] : null;
      if (choice === chosen) return;
      chosen?.setAttribute("aria-pressed", "false");
      if (choice) {
        for (const chip of chips) chip.tabIndex = chip === choice ? 0 : -1;
        choice.setAttribute("aria-pressed", "true");
        into(choice);
      }
      chosen = choice;
    },
    // Keyboard steps keep the focus with the chosen chip, if it was on a chip.
    focus() {
      const there = words.contains(words.getRootNode().activeElement);
      if (chosen && there) chosen.focus({ preventScroll: true });
    },
  };
}
