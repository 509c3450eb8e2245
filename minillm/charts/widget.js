// The widget: what charts/live.py sends becomes a run, and every view of the model a player of it.
//
// Events come as custom messages while the cell runs, and as the trait `columns` when it is over,
// so that a page that is loaded again still has them. They are kept beside the model, not in a
// view: JupyterLab drops a view that is scrolled away, and shows one twice if asked to.

import { Run, unpackRows } from "./run.js";
import { mergeState } from "./machine_view.js";
import { player } from "./player.js";

const stores = new Map(); // by the model's key: a page may load this module once or many times
const MANY = 8000; // events while live; beyond, what is old and no counter or text is dropped

function storeOf(model) {
  const key = model.get("key");
  if (!stores.has(key)) {
    stores.set(key, { run: new Run(model.get("meta")), kinds: [], players: new Set(), state: {} });
  }
  return stores.get(key);
}

function takeAll(model, store) {
  const columns = model.get("columns");
  if (!columns) return false;
  store.run.replace(unpackRows(columns), model.get("meta"));
  return true;
}

export default {
  initialize({ model }) {
    const store = storeOf(model);
    store.live = !takeAll(model, store);
    model.on("msg:custom", (message) => {
      if (!message.columns || !store.live) return;
      if (message.anew) {
        store.kinds = [];
        store.run.replace([], store.run.meta);
        store.run.live = {};
      }
      mergeState(store.run.live, message.machine || {});
      store.kinds.push(...message.columns.kinds);
      store.run.append(unpackRows({ ...message.columns, kinds: store.kinds }));
      store.run.forgetBeyond(MANY);
      store.players.forEach((one) => one.arrived());
    });
    model.on("change:columns", () => {
      if (!takeAll(model, store)) return;
      [store.live, store.unplayed] = [false, store.players.size === 0];
      [...store.players].forEach((one, place) => one.finish(place === 0));
    });
    return () => stores.delete(model.get("key"));
  },
  render({ model, el }) {
    const store = storeOf(model), { run, live, state: from } = store;
    const one = player(el, run, { views: model.get("views"), live, from });
    store.players.add(one);
    store.state = one.state; // the next one goes on from here
    if (store.unplayed) one.finish(true); // the run was over before there was anyone to watch
    store.unplayed = false;
    return () => { store.players.delete(one); one.destroy(); };
  },
};
