// The player: lays the views out, keeps the time, and moves every view to it.
//
// While a cell runs it follows the newest event (live). Then it is a player of the same run, on a
// clock without the long pauses. A short run plays itself once, slowly, and stops at any touch.

import { attend } from "./attend.js";
import { PACES, controlBar } from "./bar.js";
import { journeyBox, journeyOf, typicalToken } from "./journey.js";
import { tokenChips } from "./chips.js";
import { machineView } from "./machine_view.js";
import { MemoryView } from "./memory_view.js";
import { newElement } from "./sheet.js";
import { Timeline } from "./timeline_view.js";

const MAKERS = {
  machine: machineView,
  timeline: (el, run, hands) => new Timeline(el, run, hands),
  memory: (el, run, hands) => new MemoryView(el, run, hands),
};
const SHORT = 6; // seconds on the cut clock: a run up to this long plays itself once
const EYE = 0.15; // seconds: what the eye takes for "now"

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// The pace at place p unless someone chose one. The whole run takes about 20 seconds: the load has
// 6 of them, for it may be much longer or shorter than the words; and at most 6 words a second.
export function paceAt(run, p) {
  const { clock, requests } = run;
  const load = requests.length ? clock.play(requests[0].start) : clock.length;
  const nearest = (seconds, length) => {
    const off = (pace) => Math.abs(Math.log(pace * Math.max(1e-9, length) / seconds));
    return PACES.reduce((a, b) => (off(b) < off(a) ? b : a));
  };
  const words = clock.length - load, least = load > 0 && words > 0 ? 14 : 20;
  if (p < load || words <= 0) return nearest(words > 0 ? 6 : 20, load);
  return nearest(Math.min(60, Math.max(least, run.tokens.length / 6)), words);
}

// views: names of MAKERS. from: the state of an earlier player of this run, to go on from there.
// Returns {arrived(): more events came, finish(itself): the run is over, and if it is short it now
// plays itself, destroy(), state}.
export function player(el, run, { views = Object.keys(MAKERS), live = false, from = {} } = {}) {
  return new Player(layOut(el, views), run, { ...from, live });
}

class Player {
  constructor(root, run, from) {
    // p: place on the cut clock. slower: the pace that was chosen, null: paceAt. auto: it began by
    // itself. selection: the chosen token. request: the number of the one whose words are shown.
    this.state = { p: Infinity, playing: false, auto: false, slower: null, selection: null,
      request: null, heights: {}, ...from };
    Object.assign(this, { root, run, frame: 0, last: 0, visible: true });
    this.bar = controlBar(root.bar, run, this);
    this.journey = journeyBox(root.journey, run);
    this.chips = tokenChips(root.text, run, {
      onChoose: (token) => { if (!this.state.live) this.choose(token); },
      onRequest: (step) => this.turn(step),
    });
    this.leave = attend(this);
    this.build();
    this.draw();
    this.ask(); // a second time, when the page knows how wide we are
  }

  // -- what the widget says ----------------------------------------------------------------------

  arrived() { if (this.visible) this.ask(); }

  finish(itself) {
    Object.assign(this.state, { live: false, slower: null });
    const short = this.run.clock.length > 0 && this.run.clock.length <= SHORT;
    if (itself && short && !calm()) this.play(0, true);
    this.draw();
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    this.leave();
    this.shown.forEach((view) => view.destroy());
    this.root.el.remove();
  }

  // -- what people do ----------------------------------------------------------------------------

  get now() { return this.run.clock.trace(Math.min(this.state.p, this.run.clock.length)); }
  get slower() { return this.state.slower ?? paceAt(this.run, this.state.p); }
  get ended() { return this.state.p >= this.run.clock.length; }

  stop() { Object.assign(this.state, { playing: false, auto: false }); }

  play(p, auto = false) {
    this.seek(p);
    Object.assign(this.state, { playing: true, auto });
    document.dispatchEvent(new CustomEvent("minillm-play", { detail: this }));
  }

  toggle() {
    if (!this.state.playing) return this.play(this.ended ? 0 : this.state.p);
    this.stop();
    this.ask();
  }

  seek(p) {
    this.stop();
    Object.assign(this.state, { selection: null, request: null });
    this.state.p = Math.min(this.run.clock.length, Math.max(0, p));
    this.ask();
  }

  pace(step) {
    const place = PACES.indexOf(this.slower) + step;
    this.state.slower = PACES[Math.min(PACES.length - 1, Math.max(0, place))];
    this.ask();
  }

  choose(token) {
    this.seek(this.run.clock.play(token.stop));
    this.state.selection = token;
    const { said, moved } = journeyOf(this.run, token);
    this.root.voice.textContent = `${said}. ${moved}`;
  }

  // One token on (+1) or back (-1) from the chosen one, or from the moment that is shown.
  step(step) {
    const all = this.run.tokens, t = this.now;
    if (!all.length) return;
    let place = all.indexOf(this.run.token(this.state.selection));
    if (place < 0) {
      place = all.findLastIndex((x) => x.start <= t);
      const underWay = place >= 0 && t < all[place].stop;
      if (underWay === step > 0) place -= step;
    }
    this.choose(all[Math.min(all.length - 1, Math.max(0, place + step))]);
    this.draw();
    this.chips.focus();
  }

  // The words of the request before or after.
  turn(step) {
    const all = this.run.requests, place = all.indexOf(this.request()) + step;
    this.state.request = (all[place] || all[0]).number;
    this.ask();
  }

  request() {
    const { requests } = this.run;
    if (this.state.live) return requests.at(-1);
    return requests.find((r) => r.number === this.state.request) || this.run.requestAt(this.now)
      || requests[0];
  }

  // -- what is drawn -----------------------------------------------------------------------------

  build() {
    const { root, run, state } = this;
    root.places.forEach((place, i) => { // views made anew are empty for a moment: do not jump
      place.style.minHeight = `${state.heights[root.names[i]] || 0}px`;
    });
    setTimeout(() => root.places.forEach((place) => { place.style.minHeight = ""; }), 500);
    const onSeek = (t) => { if (!state.live) this.seek(run.clock.play(t)); };
    const onPick = (picked) => {
      const token = run.token(picked);
      if (token && !state.live) this.choose(token);
    };
    const hands = { onSeek, onPick };
    this.shown = root.names.map((name, i) => MAKERS[name](root.places[i], run, hands));
  }

  measure() {
    const { places, names } = this.root;
    places.forEach((place, i) => { this.state.heights[names[i]] = viewHeight(place); });
  }

  draw() {
    const { run, state } = this, { live, playing, selection } = state;
    const atRest = !live && !playing && this.ended, slower = live ? 1 : this.slower;
    const t = live ? run.end : selection ? selection.stop : this.now;
    const window = selection ? selection.stop - selection.start // all that moved for the token
      : atRest ? Math.max(1e-3, run.end - run.begin) : EYE / slower; // at rest: all that moved
    const view = { live, playing: playing && !live, atRest, slower, window, selection };
    for (const one of this.shown) one.draw(t, view);
    const mode = live ? "live" : state.auto ? "auto" : "hand";
    this.bar.show({ p: Math.min(state.p, run.clock.length), mode, playing, slower });
    const request = this.request();
    this.chips.show(request, t, selection, atRest);
    this.journey.show(selection || (request && !live ? typicalToken(request) : null), !selection);
  }

  ask() { this.frame ||= requestAnimationFrame((time) => this.tick(time)); }

  tick(time) {
    const { state } = this, moving = state.playing && !state.live;
    this.frame = 0;
    if (moving && time - this.last < 30) return this.ask(); // 30 frames a second are enough
    if (moving && this.last && this.visible) {
      state.p += Math.min(0.1, (time - this.last) / 1000) / this.slower;
      if (this.ended) this.seek(Infinity);
    }
    this.last = state.playing ? time : 0;
    if (this.visible || !moving) this.draw();
    if (state.playing && !state.live) this.ask();
  }
}

const viewHeight = (place) => Math.max(0, ...[...place.children].map((child) =>
  child.getBoundingClientRect().bottom - place.getBoundingClientRect().top));

// The machine, under it bar, text and journey, then the charts over time.
function layOut(el, views) {
  const root = newElement("div", "minillm");
  const block = (name) => root.appendChild(newElement("div", name));
  root.tabIndex = 0;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "a run of the model: space plays, arrows go from word to word");
  root.dataset.lmSuppressShortcuts = "true";
  const names = Object.keys(MAKERS).filter((name) => views.includes(name)), places = [];
  const place = (name) => { places.push(block(`minillm-view minillm-${name}`)); };
  names.filter((name) => name === "machine").forEach(place);
  const parts = ["bar", "text", "journey"].map((name) => block(`minillm-${name}`));
  const [bar, text, journey] = parts;
  names.filter((name) => name !== "machine").forEach(place);
  const voice = block("minillm-quiet minillm-voice");
  voice.setAttribute("aria-live", "polite");
  el.append(root);
  return { el: root, names, places, bar, text, journey, voice };
}
