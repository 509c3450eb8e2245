"""Any run, played again: in a notebook, or in one HTML file that needs neither kernel nor network.

    python -m minillm replay run.json --html run.html
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path

from minillm.charts import bundle, facts
from minillm.charts.ink import amount, counted
from minillm.charts.live import MANY, RunView, at_most, checked, for_page
from minillm.charts.wire import Packer
from minillm.files import save
from minillm.trace import Trace

# Filled by `page`. The policy lets the page run its own script and nothing else, and load nothing.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body class="minillm-page">
<main>
<h1>{title}</h1>
<p>{about}</p>
<div id="run"></div>
<noscript>This page plays a run with JavaScript, which is off here.</noscript>
</main>
<script type="application/json" id="data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def replay(source: str | Path | Trace, *views: str) -> RunView:
    """A recorded run to play: a trace, or a file that `trace.save` wrote. All views by default.

    Raises MinillmError for a file that is no trace, an empty trace, an unknown view.

    >>> replay("run.json").save("run.html")
    """
    trace = source if isinstance(source, Trace) else Trace.load(source)
    facts.work(trace)  # an empty trace is an error that says what to do
    view = RunView(checked(views), trace)
    view.finish(trace)
    return view


def save_page(trace: Trace, path: str | Path, views: Sequence[str] = ()) -> None:
    """Write the page of a run to `path`, all of it or nothing. Raises MinillmError."""
    save(path, page(trace, checked(views)), "a page")


def page(trace: Trace, views: Sequence[str]) -> str:
    """The HTML file of a run: styles, script and events are all in it."""
    work, events = facts.work(trace), at_most(MANY, trace.events)
    model, prompt = trace.meta.get("model", "a model"), facts.prompt(trace)
    short = prompt if len(prompt) <= 60 else prompt[:59] + "…"
    title = f"A run of {model}" + (f": “{short}”" if short else "")
    tokens = len({(e.request, e.token) for e in work if e.label == "text" and e.token is not None})
    lasted = amount(max(e.end for e in work) - work[0].start, "s")
    machine = trace.meta.get("machine", "")
    about = [f"{counted(tokens, 'token')} in {lasted}", *([machine] if machine else []), (
        "Press play, or choose a word. This file holds the whole run and needs no network.")]
    script = "\n" + bundle.script("page.js")
    data = {"meta": for_page(trace, views), "views": list(views),
            "columns": Packer().pack(events)}  # fmt: skip
    return _PAGE.format(
        title=html.escape(title), about=html.escape(" · ".join(about)),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=bundle.style(), script=script, data=_inline(data),
    )  # fmt: skip


def _inline(data: dict) -> str:
    """JSON inside a script element: no text in it may look like the element's end."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
