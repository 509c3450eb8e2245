// The timeline: which resource was busy when, from the first weight to the last word.
import { TimeView } from "./time_view.js";
import { STRIP, firstSeen, indexAt, layoutRows, stagesOf } from "./timeline_rows.js";
import { eventFacts, timelineWords } from "./timeline_words.js";
import { paintLane, paintNames, paintRule, paintStrip } from "./timeline_paint.js";

// A click seeks to its trace time.
export class Timeline extends TimeView {
  constructor(el, run, { onSeek }) {
    super(el, "timeline", run, onSeek);
    Object.assign(this, { rows: [], lanes: [], on: null, top: STRIP });
  }

  layOut() {
    this.rows = layoutRows(this.run);
    this.lanes = this.rows.flatMap((row) => row.lanes);
    this.stages = stagesOf(this.run);
    this.leave();
    const last = this.rows.at(-1);
    this.bottom = last ? last.y + last.height + 6 : STRIP + 30;
  }

  words() { return timelineWords(this.run, this.rows); }

  inkPlot(g) {
    const { run, sheet, scale, rows } = this;
    paintStrip(g, sheet, run, scale, this.stages, run.token(this.view.selection));
    for (const row of rows) {
      if (row !== rows.at(-1)) paintRule(g, sheet, scale, row.y + row.height + 4.5);
      paintNames(g, sheet, row, scale, run.clock.length);
      for (const place of row.lanes) paintLane(g, sheet, scale, place);
    }
  }

  shinePlot(g) {
    if (!this.on) return;
    const { scale, sheet, on: { lane, i, y, height } } = this;
    const x0 = scale.x(lane.from[i]), x1 = scale.x(lane.to[i]);
    Object.assign(g, { strokeStyle: sheet.ink.text, lineWidth: 1.5 });
    g.strokeRect(x0 - 1, y - 1, Math.max(x1 - x0, 1) + 2, height + 2);
  }

  hover(x, y) {
    const { scale } = this, inside = x >= scale.left - 3 && x <= scale.right + 3;
    this.point(inside ? scale.at(x) : null);
    const near = (place) => y >= place.y - 2 && y <= place.y + place.height + 2;
    const place = inside && this.lanes.find(near);
    if (!place) return this.pick(null);
    const i = indexAt(place.lane, scale.at(x), 4 / scale.perSecond);
    return this.pick(i < 0 ? null : { ...place, i }, x);
  }

  leave() {
    this.pick(null);
    this.point(null);
  }

  // Show the figures of {lane, y, height, i}, null for none; x: of the pointer, if it was that.
  pick(on, x = null) {
    const { sheet, scale, run } = this;
    if (on || this.on) sheet.touch("glass");
    this.on = on;
    if (!on) return sheet.card.hide();
    const { lane, i } = on, middle = scale.x((lane.from[i] + lane.to[i]) / 2);
    return this.tell(x ?? middle, on, eventFacts(run, lane.events[i]), x === null);
  }

  // Left and right along a lane, up and down to the next one.
  step(key) {
    const { on, lanes } = this;
    if (!lanes.length) return false;
    const was = on ? lanes.findIndex((place) => place.lane === on.lane) : 0;
    const down = { ArrowDown: 1, ArrowUp: -1 }[key] || 0, ahead = key === "ArrowRight" ? 1 : -1;
    const now = Math.min(Math.max(was + down, 0), lanes.length - 1), { lane } = lanes[now];
    let i = on && now === was ? on.i : firstSeen(lane, on ? on.lane.from[on.i] : 0);
    if (on && !down) i += ahead;
    this.pick({ ...lanes[now], i: Math.min(Math.max(i, 0), lane.from.length - 1) });
    return true;
  }

  enter() {
    if (this.on) this.onSeek(this.on.lane.events[this.on.i].start);
    return Boolean(this.on);
  }
}
