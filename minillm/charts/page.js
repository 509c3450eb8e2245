// The page of its own that charts/page.py writes: the run is in it as JSON.

import { Run, unpackRows } from "./run.js";
import { player } from "./player.js";

// As light or dark as the system is, said the way JupyterLab says it.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => { document.body.dataset.jpThemeLight = String(!dark.matches); };
dark.addEventListener("change", follow);
follow();
const data = JSON.parse(document.getElementById("data").textContent);
const run = new Run(data.meta);
run.append(unpackRows(data.columns));
player(document.getElementById("run"), run, { views: data.views });
