"""What live views cost: the same decode with and without them, in a real notebook kernel.

    python -m minillm bench views --rounds 20

The kernel sends what it would send to JupyterLab, to a reader that throws it away; what a browser
spends on drawing is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median

from minillm.errors import MinillmError
from minillm.tools.bench import Progress, rounds, spread

LIMIT = 0.02  # of the run that the views show
TOKENS = 240
# Runs in the kernel. A round is one decode each way; which comes first changes from round to round.
# The clock covers the decode and the views' work beside it, not the drawing of the still behind it.
_SETUP = """
import json, time
from minillm import Engine, SamplingParams
from minillm.charts import watch
engine = Engine.load({model!r})
params = SamplingParams(max_tokens={tokens}, temperature=0.0, ignore_eos=True)

def decode():
    time.sleep(0.1)  # until the page has the view: that happens once, however long the run
    engine.trace.clear()
    began = time.perf_counter()
    engine.generate("Mia put the red key", params)
    return time.perf_counter() - began

def watched():
    with watch(engine.trace) as view:
        seconds = decode()
    return seconds, view.spent

ways = [decode, watched]
"""
_MEASURE = """
ways.reverse()
found = {way.__name__: way() for way in ways}
print(json.dumps([found["decode"], *found["watched"]]))
"""
Round = tuple[float, float, float]  # seconds without views, with them, and of the views' thread


def cost(found: Sequence[Round]) -> str:
    """What live views add to a decode, and what their own thread takes, as shares of the run."""
    shares = [watched / without - 1 for without, watched, _ in found]
    sending = [spent / without for without, _, spent in found]
    return (
        f"{TOKENS} tokens in {median(each[0] for each in found):.2f} s, {len(found)} rounds\n"
        f"live views cost {spread(shares, '{:+.1%}')} of the run; {LIMIT:.0%} is the most wanted\n"
        f"their own thread takes {spread(sending, '{:.1%}')} of the run"
    )


def bench(model: str | None, number: int, progress: Progress) -> str:
    """Measure in a kernel of its own. Raises MinillmError if what it runs fails."""
    from nbclient import NotebookClient, exceptions
    from nbformat import v4

    setup = _SETUP.format(model=model or "data/town", tokens=TOKENS)
    cells = [v4.new_code_cell(code) for code in (setup, _MEASURE)]
    client = NotebookClient(v4.new_notebook(cells=cells), timeout=600)

    def measure() -> Round:
        outputs = client.execute_cell(cells[1], 1).outputs
        return json.loads(next(o.text for o in outputs if o.get("name") == "stdout"))

    try:
        with client.setup_kernel():
            client.execute_cell(cells[0], 0)
            return cost(rounds({"both": measure}, number, progress)["both"])
    except exceptions.CellExecutionError as error:
        found = f"{error.ename}: {error.evalue}; run it in a notebook to see more"
        raise MinillmError(f"wanted a decode in a notebook kernel, found {found}") from error
